"""The `c3po` command: what it prints, and how errors of the user's files are told."""

import yaml
from click.testing import CliRunner

from c3po_utils.cli import c3po
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
