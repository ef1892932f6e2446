"""Finished stages of several runs in one, from folders and from URLs; nothing half, nothing overwritten."""

from __future__ import annotations

import shlex

import fsspec
import pytest
from click.testing import CliRunner

from c3po_utils.batch.collect import Conflict, collect
from c3po_utils.cli import c3po
from c3po_utils.evaluation import collect as load_scores
from c3po_utils.runs.files import read_json, write_jsonl
from c3po_utils.runs.parameters import read_overrides
from c3po_utils.runs.stage import Stage


def store_evaluated(run, id: str, method: str, score: int = 1, rows: str = "r") -> Stage:
    """A finished evaluation, with an executed notebook beside it."""
    with Stage(run / "eval" / id / method, {"method": method, "rows": rows}, "answers.jsonl") as stage:
        row = {"prompt_id": f"{id}/in_scope/a/1", "feedback": id, "method": method, "split": "in_scope"}
        row |= {"category": "a", "prompt": "p", "baseline": "b", "answer": "a", "status": "ok", "passes": True}
        row |= {"baseline_passes": False, "score": score, "scored_by": "metric"}
        write_jsonl(stage.path("answers.jsonl"), [row])
        stage.path("03_evaluate.ipynb").write_text("{}")
    return stage


@pytest.mark.parametrize("manifest", ["[]", '{"status": "done"}', '{"status": '])
def test_a_stage_with_a_damaged_manifest_is_left_out(tmp_path, manifest):
    store_evaluated(tmp_path / "one", "tea", "scd")
    damaged = store_evaluated(tmp_path / "one", "tea", "c3po").path("manifest.json")
    for overwritten in (False, True):
        if overwritten:
            store_evaluated(tmp_path / "all", "tea", "c3po", score=0)
        damaged.write_text(manifest)
        done = CliRunner().invoke(c3po, ["collect", str(tmp_path / "one"), str(tmp_path / "all")])
        assert done.exit_code == 0, done.output
        assert f"left out: eval/tea/c3po of {tmp_path}/one: not finished" in done.output
    assert load_scores(tmp_path / "all").score.tolist() == [0, 1]


def test_runs_are_collected_into_one_whose_scores_are_all_of_theirs(tmp_path):
    for name, id in (("one", "tea"), ("two", "milk")):
        store_evaluated(tmp_path / name, id, "c3po")
    (done,) = collect([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "all").values()
    assert done.brought == ["eval/tea/c3po", "eval/milk/c3po"]
    assert set(load_scores(tmp_path / "all").feedback) == {"tea", "milk"}
    assert (tmp_path / "all/eval/tea/c3po/03_evaluate.ipynb").exists()
    (again,) = collect([str(tmp_path / "one")], tmp_path / "all").values()
    assert (again.brought, again.known) == ([], ["eval/tea/c3po"])


def test_a_checkout_that_keeps_no_adapters_is_given_them(tmp_path):
    for name in ("full", "checkout"):
        with Stage(tmp_path / name / "train/tea/c3po", {"seed": 0}, "weights", "config") as stage:
            stage.notes |= {"wall_s": 1.0, "peak_gib": 1.0}
            stage.path("weights").write_text("w")
            stage.path("config").write_text("c")
        stage.path("02_train.ipynb").write_text(name)
    copied = tmp_path / "checkout/train/tea/c3po/manifest.json"
    copied.write_bytes((tmp_path / "full/train/tea/c3po/manifest.json").read_bytes())
    stage.path("weights").unlink()
    assert not stage.done
    (done,) = collect([str(tmp_path / "full")], tmp_path / "checkout").values()
    assert done.brought == ["train/tea/c3po"]
    assert stage.done
    assert stage.path("02_train.ipynb").read_text() == "checkout", "what is here stays"


def test_what_is_unfinished_or_damaged_is_left_out_and_said(tmp_path):
    store_evaluated(tmp_path / "one", "tea", "c3po")
    store_evaluated(tmp_path / "one", "tea", "dpo").path("answers.jsonl").write_text("{}\n")
    (partial := tmp_path / "one/eval/tea/scd").mkdir()
    (partial / "answers.jsonl").write_text("{}\n")
    (done,) = collect([str(tmp_path / "one")], tmp_path / "all").values()
    assert done.brought == ["eval/tea/c3po"]
    assert done.left_out[f"eval/tea/scd of {tmp_path}/one"] == "not finished"
    assert done.left_out[f"eval/tea/dpo of {tmp_path}/one"].startswith("answers.jsonl: damaged: expected ")
    assert sorted(path.name for path in (tmp_path / "all/eval/tea").iterdir()) == ["c3po"]


@pytest.mark.parametrize(
    ("changed", "says"), [({"rows": "s"}, "rows differ"), ({"score": 0}, "settings and inputs are the same, its data")]
)
def test_stages_that_differ_are_refused_by_name_and_nothing_is_brought(tmp_path, changed, says):
    store_evaluated(tmp_path / "one", "milk", "c3po")
    store_evaluated(tmp_path / "one", "tea", "c3po")
    store_evaluated(tmp_path / "two", "tea", "c3po", **changed)
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(Conflict, match=f"eval/tea/c3po of {tmp_path}/two is not that of {tmp_path}/one: .*{says}"):
        collect(runs, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    done = collect(runs, tmp_path / "all", side_by_side=True)
    assert {folder.name: what.brought for folder, what in done.items()} == {
        "one": ["eval/milk/c3po", "eval/tea/c3po"],
        "two": ["eval/tea/c3po"],
    }


def test_what_is_at_the_destination_is_not_overwritten(tmp_path):
    kept = store_evaluated(tmp_path / "all", "tea", "c3po", score=0)
    store_evaluated(tmp_path / "one", "tea", "c3po")
    done = CliRunner().invoke(c3po, ["collect", str(tmp_path / "one"), str(tmp_path / "all")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: eval/tea/c3po of ")
    assert load_scores(tmp_path / "all").score.tolist() == [0]
    assert kept.done


def test_a_run_behind_a_url_is_collected_as_one_here(tmp_path):
    store_evaluated(tmp_path / "one", "tea", "c3po")
    remote = fsspec.filesystem("memory")
    remote.put(f"{tmp_path}/one/", "/bucket/one/", recursive=True)
    done = CliRunner().invoke(c3po, ["collect", "memory://bucket/one", str(tmp_path / "all")])
    assert "1 stages collected, 0 were there already" in done.output
    assert "--figures-only" in done.output
    manifest = read_json(tmp_path / "all/eval/tea/c3po/manifest.json")
    assert manifest == read_json(tmp_path / "one/eval/tea/c3po/manifest.json")


def test_runs_are_collected_into_a_local_folder_only(tmp_path):
    store_evaluated(tmp_path / "one", "tea", "c3po")
    done = CliRunner().invoke(c3po, ["collect", str(tmp_path / "one"), "s3://bucket/all"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: run 's3://bucket/all': expected a local folder")


def test_the_command_for_figures_can_be_pasted_whatever_the_folders_name(tmp_path):
    store_evaluated(tmp_path / "one", "tea", "c3po")
    folder = str(tmp_path / "my runs, all")
    done = CliRunner().invoke(c3po, ["collect", str(tmp_path / "one"), folder])
    words = shlex.split(done.output.splitlines()[-1].partition("figures: ")[2])
    assert words[-5:-2] == ["run", "RUN", f"run={folder}"]
    given = read_overrides(words[-3:-1])
    assert given == {"run": folder, "figures": {"runs": [folder], "output": f"{folder}/figures"}}


def test_a_run_that_is_not_there_is_told_with_the_nearest(tmp_path):
    done = CliRunner().invoke(c3po, ["collect", "embeded", str(tmp_path / "all")])
    assert done.exit_code == 1
    assert "no run 'embeded'" in done.output
    assert "did you mean 'embedded'" in done.output
