"""The notebooks, end to end by papermill: on a tiny random model, and two training steps on the embedded one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.batch import run_notebooks
from c3po_utils.batch.graph import finished, graph
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.cli import c3po
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import read_json, read_jsonl, write_json, write_jsonl
from c3po_utils.runs.jobs import feedback_names, train_job
from c3po_utils.runs.stage import MANIFEST, fingerprint
from tests.whole_run import SMALL, config_for


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_folder, own_feedback):
    run = tmp_path_factory.mktemp("run")
    methods = ["base_resampled", "in_context", "in_context_cot", "revised", "scd", "c3po"]
    config = config_for(run, own_feedback, str(tiny_folder), methods).model_copy(update={"figures": {"paper": True}})
    run_notebooks(config)
    return run, config


def test_the_pipeline_fills_the_run_folder(tiny_run):
    run, config = tiny_run
    rows = read_jsonl(run / "sample" / "wordy" / "rows.jsonl")
    assert len(rows) == 27
    assert all(row["revised"] for row in rows if row["split"] == "in_scope")
    assert {path.name for path in (run / "eval" / "wordy").iterdir()} == {
        *config.methods,
        "prompted",
    }
    table = pd.read_csv(run / "figures" / "table2.csv")
    assert set(table.method) == set(config.methods)
    for score in ("S_in", "S_near", "S_out", "S_overall"):
        assert (table[f"{score}_lo"] <= table[score] + 1e-9).all()
        assert (table[score] <= table[f"{score}_hi"] + 1e-9).all()
    assert {"fig2.png", "fig2.pdf", "fig5.png", "fig6.png", "scores.csv", "table2.md"} <= {
        p.name for p in (run / "figures").iterdir()
    }
    (scd,) = [line for line in (run / "figures" / "table2.md").read_text().splitlines() if line.startswith("| SCD ")]
    assert "0.47 ± .03" in scd  # the paper's, beside the run's own


def test_scores_are_those_of_the_stored_answers(tiny_run):
    run, _ = tiny_run
    answers = read_jsonl(run / "eval" / "wordy" / "c3po" / "answers.jsonl")
    table = pd.read_csv(run / "figures" / "table2.csv").set_index("method")
    in_scope = [row["score"] for row in answers if row["split"] == "in_scope"]
    near = [abs(row["score"]) for row in answers if row["split"] == "near_scope"]
    assert table.S_in["c3po"] == pytest.approx(sum(in_scope) / len(in_scope), abs=1e-4)
    assert table.S_near["c3po"] == pytest.approx(sum(near) / len(near), abs=1e-4)


def test_training_starts_at_ln_2(tiny_run):
    run, _ = tiny_run
    log = json.loads((run / "train" / "wordy" / "c3po" / "log.json").read_text())
    assert len(log) == 2
    assert float(log[0]["dpo"]) == pytest.approx(0.6931, abs=1e-3)


def test_a_second_run_finds_everything_done(tiny_run, monkeypatch):
    _, config = tiny_run
    assert finished(graph(config)) == graph(config).keys()
    monkeypatch.setattr(LocalExecutor, "submit", lambda _, task: pytest.fail(f"{task.name} ran again"))
    run_notebooks(config)


def test_changed_settings_run_again_what_depends_on_them(tiny_run):
    _, config = tiny_run
    changed = config.model_copy(update={"train_methods": {"c3po": {"learning_rate": 1e-5}}})
    undone = graph(changed).keys() - finished(graph(changed))
    assert undone == {"train/wordy/c3po", "eval/wordy/c3po", "compare/wordy", "figures"}


def test_a_variant_has_its_methods_settings_and_its_own(tiny_run):
    run, config = tiny_run
    settings = {"scd": {"learning_rate": 1e-5, "epochs": 3}, "scd@epochs=5": {"epochs": 5}}
    job = train_job(
        config.model_copy(update={"train_methods": settings}), run, feedback_names(config)[0], "scd@epochs=5"
    )
    assert (job.parameters["learning_rate"], job.parameters["epochs"]) == (1e-5, 5)
    assert job.stages[0].folder.name == "scd@epochs=5"


def test_executed_copies_show_no_errors_and_no_secrets(tiny_run):
    run, config = tiny_run
    copies = list(run.rglob("*.ipynb"))
    assert len(copies) == len(graph(config))
    for path in copies:
        outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
        assert all(out.output_type != "error" for out in outputs), path
        logged = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stderr")
        assert "Warning" not in logged, path


TAG = "<script>alert(1)</script> $\\frac{$ a|b"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notebooks_show_what_models_and_people_wrote_as_text(tmp_path, tiny_folder, own_feedback):
    """Every text that a run stores, from the sentence to the answers, holds a tag; no output has it as one."""
    source = Path(own_feedback.partition("#")[0])
    record = yaml.safe_load(source.read_text())["feedbacks"][0]
    record |= {"content": TAG, "domain": TAG, "effect": TAG, "metric": {"name": "contains_none", "value": [TAG]}}
    own = tmp_path / "own" / "own.yaml"
    shutil.copytree(source.parent, own.parent)
    own.write_text(yaml.safe_dump({"feedbacks": [record]}))
    path = own.parent / "prompts" / "wordy.json"
    path.write_text(
        path.read_text().replace("Tea", f"Tea {TAG}".replace("\\", "\\\\")).replace("taste", f"taste {TAG[:8]}")
    )
    config = config_for(tmp_path / "run", f"{own}#wordy", str(tiny_folder), ["base_resampled", "in_context"])
    run_notebooks(config)
    jobs = {node.make().notebook: node.make() for node in graph(config).values()}
    for stored in [*tmp_path.rglob("answers.jsonl"), *tmp_path.rglob("rows.jsonl")]:
        texts = ("answer", "baseline", "revised", "base_resampled", "in_context", "category", "prompt")
        rows = [row | {name: f"{TAG} {row[name]}" for name in texts if row.get(name)} for row in read_jsonl(stored)]
        write_jsonl(stored, rows)
        known = read_json(stored.with_name(MANIFEST))
        write_json(stored.with_name(MANIFEST), known | {"files": {stored.name: fingerprint(stored)}})
    for notebook in ("05_figures.ipynb", "03_evaluate.ipynb", "01_sample.ipynb"):
        notebook.execute(jobs[notebook])
        cells = nbformat.read(jobs[notebook].output, as_version=4).cells
        shown = [out.data for cell in cells for out in cell.get("outputs", []) if "data" in out]
        pages = [
            data[kind] for data in shown for kind in ("text/html", "text/markdown", "image/svg+xml") if kind in data
        ]
        assert any("&lt;script&gt;" in page for page in pages), notebook
        assert not [page for page in pages if "<script" in page], notebook


def test_a_runs_rows_adapters_and_scores_can_be_exported(tiny_run, tmp_path):
    run, _ = tiny_run
    export = ["export", "rows", str(run), str(tmp_path / "rows")]
    assert "preference/train: 6 rows" in CliRunner().invoke(c3po, export).output
    export = ["export", "adapter", str(run), str(tmp_path / "c3po"), "-m", "c3po"]
    assert CliRunner().invoke(c3po, export).exit_code == 0
    card = (tmp_path / "c3po" / "README.md").read_text()
    row = pd.read_csv(run / "figures" / "scores.csv").set_index("method").loc["c3po"]
    assert f"| {row.S_in:.2f} [".replace("-", "−") in card
    assert "- r: 4\n" in card
    export = ["export", "scores", str(run), str(tmp_path / "scores.csv")]
    assert CliRunner().invoke(c3po, export).exit_code == 0
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table[(table.method == "c3po") & (table.split == "in_scope")].score.mean() == pytest.approx(
        row.S_in, abs=1e-4
    )


@pytest.mark.embedded
@pytest.mark.timeout(600)
def test_two_training_steps_on_the_embedded_model(tmp_path):
    config = RunConfig(
        run=str(tmp_path), feedback_set="embedded_tuning", feedbacks=["plant_tip"], methods=["c3po"],
        sample={**SMALL, "options": {"best_of": 4, "max_new_tokens": 32}},
        train={"epochs": 1, "batch_size": 3, "training_arguments": {"warmup_steps": 0}},
    )  # fmt: skip
    run_notebooks(config)
    log = json.loads((tmp_path / "train" / "plant_tip" / "c3po" / "log.json").read_text())
    assert len(log) == 2
    # ln 2, as the tiny model's in float32, but for bfloat16: three pairs of different lengths than their references'
    # pass come to half a nat on a processor with AMX, which beta makes 0.027.
    assert float(log[0]["dpo"]) == pytest.approx(0.6931, abs=5e-2)
    assert float(log[1]["dpo"]) < float(log[0]["dpo"])
    answers = read_jsonl(tmp_path / "eval" / "plant_tip" / "c3po" / "answers.jsonl")
    assert all(row["score"] is not None for row in answers)
