"""The `c3po` command: what it prints, and how errors of the user's files are told."""

import yaml
from click.testing import CliRunner

from c3po_utils.cli import c3po

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
