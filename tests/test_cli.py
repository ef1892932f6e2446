"""The `c3po` command: what it prints, and how errors of the user's files are told."""

import json
import shlex
import sys

import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.batch import lists
from c3po_utils.cli import c3po
from c3po_utils.cli_errors import called
from c3po_utils.feedback import find_feedback, records
from c3po_utils.runs.config import load_config
from c3po_utils.runs.files import write_json
from c3po_utils.runs.parameters import read_overrides
from c3po_utils.runs.stage import ROOT
from c3po_utils.sampling.new_feedback import next_command
from c3po_utils.training.methods import METHODS, PROMPTED
from tests.stored_run import store_sample, store_trained

RECORD = {
    "id": "dog_caps",
    "content": "Use caps",
    "domain": "dogs",
    "effect": "caps",
    "source": "human",
    "kind": "style",
}
RECORD["metric"] = {"name": "upper_share", "value": 0.9}
RECORD["examples"] = {"passing": ["WOOF, SAYS THE DOG"], "failing": ["Woof, says the dog"]}


def test_feedback_check_counts_what_it_tried(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"feedbacks": [RECORD]}))
    done = CliRunner().invoke(c3po, ["feedback", "check", str(path)])
    assert done.output == "1 feedbacks in 1 files: 1 checkable, 2 examples judged as they say, 0 bundled prompts\n"


def test_feedback_check_tells_what_is_wrong_without_a_traceback(tmp_path):
    path = tmp_path / "mine.yaml"
    examples = {"passing": ["woof, says the dog"], "failing": []}
    path.write_text(yaml.safe_dump({"feedbacks": [RECORD | {"examples": examples}]}))
    done = CliRunner().invoke(c3po, ["feedback", "check", str(path)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {path}, line ")
    assert "expected an answer that passes the metric 'upper_share', found 'woof, says the dog'" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_damaged_ledger_is_told_without_a_traceback(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calls.sqlite").write_text("no ledger, but long enough to be taken for a file of SQLite's" * 20)
    done = CliRunner().invoke(c3po, ["plan", "demo", f"run={tmp_path}/run"])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {tmp_path}/run/calls.sqlite: expected a call ledger; ")
    assert len(done.output.splitlines()) == 1


def test_export_writes_what_a_run_has_and_names_what_it_lacks(tmp_path, tiny_folder):
    run, runner = tmp_path / "run", CliRunner()
    store_sample(run, "tea", str(tiny_folder))
    store_trained(run, "tea", "c3po", str(tiny_folder))
    done = runner.invoke(c3po, ["export", "rows", str(run), str(tmp_path / "rows"), "--fold", "all"])
    assert done.output == (
        f"{tmp_path / 'rows'}: preference/train: 4 rows; preference/test: 2 rows; sft/train: 6 rows; sft/test: 4 rows\n"
    )
    done = runner.invoke(c3po, ["export", "adapter", str(run), str(tmp_path / "adapter")])
    assert done.output == f"{tmp_path / 'adapter'}\n"
    merged = ["export", "merged", str(run), str(tmp_path / "model"), "-m", "c3po", "--gguf", str(tmp_path / "tea.gguf")]
    assert runner.invoke(c3po, merged).stdout == f"{tmp_path / 'model'}\n{tmp_path / 'tea.gguf'}\n"
    done = runner.invoke(c3po, merged)
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "is there already: expected a new name, or --force" in done.output
    done = runner.invoke(c3po, ["export", "scores", str(run), str(tmp_path / "scores.csv")])
    assert done.output == f"Error: {run} has no evaluated feedback\n"


def test_lists_fit_a_terminal_and_are_whole_for_machines():
    for what in ("feedbacks", "methods", "metrics", "runs"):
        table = CliRunner().invoke(c3po, ["list", what])
        assert table.exit_code == 0, table.output
        lines = table.output.splitlines()
        assert max(map(len, lines)) <= 100
        rows = json.loads(CliRunner().invoke(c3po, ["list", what, "--json"]).output)
        assert len(rows) == len(lines) - 1
    methods = {row["name"]: row for row in json.loads(CliRunner().invoke(c3po, ["list", "methods", "--json"]).output)}
    assert methods.keys() == {*PROMPTED, *METHODS}
    assert methods["dpo"]["differs"] == {"out_weight": 0.0, "near_weight": 0.0}


def test_lists_tell_a_broken_set_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FEEDBACK_FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text("feedbacks:\n  - id: [\n")
    for what in ("feedbacks", "metrics"):
        done = CliRunner().invoke(c3po, ["list", what])
        assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
        assert done.output.startswith(f"Error: {tmp_path}/mine.yaml, line ")


def test_a_question_that_gets_no_answer_ends_the_command_as_click_does(tmp_path):
    command = ["feedback", "new", "When I ask for advice, be brief.", "--set", f"{tmp_path}/mine.yaml"]
    done = CliRunner().invoke(c3po, command, input="")
    assert done.exit_code == 1
    assert "Aborted!" in done.output
    assert "Error:" not in done.output


def test_listed_feedbacks_are_selected_as_in_a_run():
    chosen = ["style", "content", "select.kind=style"]
    done = CliRunner().invoke(c3po, ["list", "feedbacks", *chosen])
    assert "unknown condition 'select.kind'" in done.output
    rows = json.loads(
        CliRunner().invoke(c3po, ["list", "feedbacks", "style", "content", "kind=style", "--json"]).output
    )
    assert {row["set"] for row in rows} == {"style"}
    done = CliRunner().invoke(c3po, ["list", "feedbacks", "human", "category=travl"])
    assert done.exit_code == 1
    assert "category 'travl' (did you mean 'travel'?)" in done.output
    assert "no feedback set 'stile'" in CliRunner().invoke(c3po, ["list", "feedbacks", "stile"]).output


def test_runs_are_listed_with_what_is_done_of_all(tmp_path):
    config = load_config("demo", [f"run={tmp_path}/results/tea"])
    store_sample(tmp_path / "results" / "tea", "boss_signoff", "smollm2-135m")
    (row,) = lists.runs(tmp_path / "results")
    assert (row["feedbacks"], row["done"], row["total"]) == (1, 1, None)
    write_json(tmp_path / "results" / "tea" / "run.json", {"config": config.model_dump()})
    (row,) = lists.runs(tmp_path / "results")
    assert (row["done"], row["total"]) == (1, len(config.feedbacks) * (1 + 4 + 8))


def test_a_damaged_run_does_not_hide_the_others(tmp_path):
    for name in ("tea", "milk"):
        store_sample(tmp_path / "results" / name, "boss_signoff", "smollm2-135m")
    (tmp_path / "results" / "milk" / "sample" / "boss_signoff" / "manifest.json").write_text("")
    with pytest.warns(UserWarning, match=r"results/milk is left out: .*manifest.json"):
        (row,) = lists.runs(tmp_path / "results")
    assert row["run"].endswith("results/tea")


@pytest.mark.parametrize(
    ("argv0", "told"),
    [
        ("{root}/.venv/bin/c3po", ".venv/bin/c3po"),
        ("{root}/c3po_utils/__main__.py", "{python} -m c3po_utils"),
        ("{path}/c3po", "c3po"),
        ("/elsewhere/bin/c3po", "/elsewhere/bin/c3po"),
        ("/else where/bin/c3po", "'/else where/bin/c3po'"),
    ],
)
def test_the_next_command_is_told_as_this_one_was_called(tmp_path, monkeypatch, argv0, told):
    (tmp_path / "c3po").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [argv0.format(root=ROOT, path=tmp_path)])
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    assert called() == told.format(python=".venv/bin/python")
    line = next_command(tmp_path / "mine.yaml", find_feedback("boss_signoff"), True, called())
    assert line.startswith(f"next: {called()} run demo run=results/boss_signoff ")


def test_the_next_command_can_be_pasted_whatever_the_files_name(tmp_path):
    path = tmp_path / "my sets: [1] #2.yaml"
    line = next_command(path, find_feedback("boss_signoff"), True)
    given = read_overrides(shlex.split(line.partition("run demo ")[2]))
    assert (given["feedback_set"], given["feedbacks"]) == (str(path), ["boss_signoff"])
