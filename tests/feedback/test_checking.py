"""What is wrong with sets and prompts, told at one time; and prompts of two categories that are too alike."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.cli import c3po
from c3po_utils.feedback import records
from c3po_utils.feedback.checking import check_sets, near_duplicates, overlaps
from c3po_utils.feedback.records import Prompt
from tests.feedback.test_records import RECORD


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A feedback folder of the test's own: two sets and the prompts of both, all right."""
    monkeypatch.setattr(records, "FEEDBACK_FOLDER", tmp_path)
    monkeypatch.setattr(records.load_prompts, "__defaults__", (tmp_path / "prompts",))
    monkeypatch.setattr(records.load_general_prompts, "__defaults__", (tmp_path / "prompts" / "general.jsonl",))
    (tmp_path / "prompts").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"feedbacks": [RECORD | {"id": name}]}, sort_keys=False))
        store(tmp_path, name)
    line = {"id": "general-1", "kind": "qa", "prompt": "Why?"}
    (tmp_path / "prompts" / "general.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


def store(folder, name: str, *categories: list[str]) -> None:
    """Prompts, each category with the same in scope and, in other words, near scope."""
    given = categories or (["Is my dog fat?"], ["Will he bite strangers?"])
    made = [{"name": f"c{n}", "in_scope": texts, "near_scope": [f"Cat {n}"]} for n, texts in enumerate(given)]
    (folder / "prompts" / f"{name}.json").write_text(json.dumps({"feedback": name, "categories": made}))


def run(*files) -> tuple[int, str, str]:
    done = CliRunner().invoke(c3po, ["feedback", "check", *map(str, files)])
    return done.exit_code, done.stdout, done.stderr


def test_what_is_right_is_counted(folder):
    assert run() == (0, "2 feedbacks in 2 files: 0 checkable, 0 examples judged as they say, 8 bundled prompts\n", "")
    assert run(folder / "one.yaml")[1].startswith("1 feedbacks in 1 files")
    assert run(folder / "one.yaml")[1].endswith("4 bundled prompts\n")


def test_sets_and_prompts_are_told_at_one_time(folder):
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("human", "humn"))
    (folder / "prompts" / "one.json").write_text('{"feedback": "one", "categories": 3}')
    (folder / "prompts" / "two.json").write_text("{")
    (folder / "prompts" / "general.jsonl").write_text("{}\n[\n")
    status, out, err = run()
    assert (status, out) == (1, "")
    lines = err.removeprefix("Error: ").replace(f"{folder}/", "").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "one.yaml, line 6", "prompts/one.json, categories", "prompts/two.json, line 1, column 2",
        "prompts/general.jsonl, line 1, id", "prompts/general.jsonl, line 1, kind",
        "prompts/general.jsonl, line 1, prompt", "prompts/general.jsonl, line 2, column 2",
    ]  # fmt: skip
    _, _, err = run(folder / "one.yaml")  # its own prompts, though the record is wrong, and nobody else's
    assert [line.partition(", ")[0] for line in err.replace(f"{folder}/", "").splitlines()] == [
        "Error: one.yaml", "prompts/one.json",
    ]  # fmt: skip


def test_prompts_are_those_beside_the_set_and_must_fill_both_folds(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("sets")
    (elsewhere / "prompts").mkdir()
    (elsewhere / "mine.yaml").write_text((folder / "one.yaml").read_text())  # an id that feedback/ has, too
    assert run(elsewhere / "mine.yaml")[1].endswith(" 0 bundled prompts\n")
    (elsewhere / "prompts" / "one.json").write_text("garbage{")
    assert f"{elsewhere}/prompts/one.json, line 1" in run(elsewhere / "mine.yaml")[2]
    store(elsewhere, "one", ["Is my dog fat?"], [])
    expected = f"{elsewhere}/prompts/one.json, categories: expected two or more with prompts in scope, found ['c0']"
    assert expected in run(elsewhere / "mine.yaml")[2]


def test_prompts_of_two_categories_that_are_too_alike_are_warned_of(folder):
    store(folder, "one", ["Is my old dog fat?", "Is my old dog ill?"], ["Is my old dog fit?"], ["Will he bite?"])
    status, out, err = run(folder / "one.yaml")
    assert (status, out[:11]) == (0, "1 feedbacks")
    warnings = err.replace(str(folder / "prompts"), "").splitlines()
    assert warnings[0].startswith("Warning: /one.json, in_scope: expected categories apart, found 2 pairs sharing 0.4")
    assert "0.67 one/in_scope/c0/01 'Is my old dog fat?' and one/in_scope/c1/01 'Is my old dog fit?'" in warnings[0]
    assert len(warnings) == 1


def test_the_closest_come_first_and_splits_do_not_mix():
    prompts = [
        Prompt("a", "in_scope", "x", "one two three four"),
        Prompt("b", "in_scope", "y", "one two three five"),
        Prompt("c", "in_scope", "z", "one two three four!"),
        Prompt("d", "near_scope", "y", "one two three four"),
        Prompt("e", "in_scope", "x", "one two three four"),
    ]
    found = [(round(share, 2), one.id, other.id) for share, one, other in near_duplicates(prompts)]
    assert found == [(1, "a", "c"), (1, "c", "e"), (0.6, "a", "b"), (0.6, "b", "c"), (0.6, "b", "e")]


def test_overlaps():
    found = overlaps(["Text my dog, please", "please TEXT my cat", "lunch"])
    assert found.tolist() == [[0, 3 / 5, 0], [0, 0, 0], [0, 0, 0]]
    assert overlaps(["!", "?"]).tolist() == [[0, 0], [0, 0]]
    assert overlaps([]).shape == (0, 0)


def test_all_that_comes_with_the_kit_is_right():
    checked = check_sets(*sorted(records.FEEDBACK_FOLDER.glob("*.yaml")), all_prompts=True)
    assert checked.problems == []
    bundled = list((records.FEEDBACK_FOLDER / "prompts").glob("*.json"))
    assert {prompt.id.partition("/")[0] for prompt in checked.prompts} == {path.stem for path in bundled}
