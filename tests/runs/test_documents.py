"""YAML documents within bounds: what is read, what is refused, where, and how soon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import load_feedbacks, load_prompts
from c3po_utils.runs import documents, files, parameters
from c3po_utils.runs.config import load_config
from c3po_utils.runs.document_reader import DEEPEST
from c3po_utils.runs.parameters import ParameterError
from tests.speed import within

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 99)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))
HOSTILE = {  # what, and the line where it is told
    "aliases for aliases": (BOMB, 4),
    "merged aliases": (MERGES, 3),
    "a chain of aliases": (CHAIN, DEEPEST),
    "brackets": ("x:\n" + "[" * 100_000, 2),
    "closed brackets": ("x:\n" + "[" * 100_000 + "]" * 100_000, 2),
    "braces": ("x:\n" + "{a: " * 100_000, 2),
    "dashes": ("x:\n" + "- " * 100_000 + "y", 2),
    "questions": ("? " * 100_000 + "y", 1),
    "deep keys": ("\n".join(" " * n + "a:" for n in range(2000)), DEEPEST + 1),
    "a long text": ("x: 1\ny: " + "z" * 20_000_000, 2),
    "a long quoted text": ('x: 1\ny: "' + "z\\n" * 5_000_000 + '"', 2),
    "a long block of text": ("x: 1\ny: |\n" + "  some more text\n" * 500_000, 2),
    "a long number": ("x: 1\ny: " + "9" * 1_000_000, 2),
    "a long number of minutes": ("x: 1\ny: 1" + ":59" * 300_000, 2),
    "a long binary number": ("x: 1\ny: 0b" + "1" * 1_000_000, 2),
    "a text as number": ("x: 1\ny: !!int abc", 2),
    "nothing as number": ("x: 1\ny: !!float ''", 2),
    "a text as truth": ("x: 1\ny: !!bool abc", 2),
    "an anchor twice": ("x: &a 1\ny: &a 2", 2),
    "an alias of nothing": ("x: 1\ny: *a", 2),
    "a control character": ("x: 1\ny: \x07", 2),
    "a merge of no mapping": ("x:\n  <<: 3", 2),
    "a list as key": ("x: 1\n[a]: 2", 2),
    "python": ("x: 1\ny: !!python/object/apply:os.system [ls]", 2),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_documents_end_at_once_with_their_line(tmp_path, what):
    text, line = HOSTILE[what]
    path = tmp_path / "file.yaml"
    path.write_text(text)
    for read in (load_feedbacks, load_config):
        with within(1), pytest.raises((FeedbackError, ParameterError)) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}, line {line}: expected"), str(caught.value)[:300]
        assert len(str(caught.value)) < 1000 + len(str(path))


def test_an_alias_inside_what_it_stands_for_has_no_end(tmp_path):
    record = "- &r {id: a, content: x, domain: x, effect: x, source: human, kind: style, metric: &m "
    path = tmp_path / "file.yaml"
    path.write_text(f"feedbacks:\n{record}{{name: all_of, value: [*m]}}}}\n- *r\n")
    with within(1), pytest.raises(FeedbackError, match=r"line 2: found \*m inside of what it stands for"):
        load_feedbacks(path)
    with within(1), pytest.raises(ParameterError, match=r"line 2: found \*m inside of what it stands for"):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "feedbacks: [x]\n" + "".join(f"k{n}: 1\n" for n in range(20_000)),
        "feedbacks:\n- id: a\n" + "".join(f"  k{n}: 1\n" for n in range(20_000)),
        "feedbacks:\n" + "- x\n" * 100_000,
        "feedbacks:\n- id: a\n" + "  id: b\n" * 100_000,
        f"feedbacks:\n- id: a\n  ? {'l' * 50_000}\n  : 1\n",
    ],
)
def test_of_many_problems_the_first_are_told(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with within(2), pytest.raises(FeedbackError) as caught:
        load_feedbacks(path)
    assert 5 < len(caught.value.problems) <= 101
    assert max(map(len, caught.value.problems)) < 500


def test_a_huge_file_is_not_even_read(tmp_path):
    path = tmp_path / "file.yaml"
    with open(path, "wb") as file:
        file.truncate(10 * 2**30)  # a hole: it takes no room
    with within(1), pytest.raises(FeedbackError, match="line 1: expected a file of at most 32 MiB, found 10240 MiB"):
        load_feedbacks(path)


def test_a_run_may_not_stand_on_itself(tmp_path):
    (tmp_path / "a.yaml").write_text(f"base: ../{tmp_path.name}/b.yaml\nrun: x")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ParameterError, match=r"b\.yaml, base: expected another file, found 'a\.yaml'"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a mapping of settings, found 'None'"),
        ("- a", "expected a mapping of settings"),
        ("run: x\nbase: 3", "base: expected the name of a YAML file, found 3"),
        ("run: x\nmethods: []\nrun: y", "line 3: run: expected each key once, found it on line 1 too"),
        ("run: [x", "expected YAML"),
    ],
)
def test_a_runs_file_is_a_mapping_with_each_key_once(tmp_path, text, problem):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ParameterError) as caught:
        load_config(tmp_path / "run.yaml")
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))
    assert problem in str(caught.value)


def test_overrides_are_read_within_the_same_bounds():
    assert parameters.read_overrides(["a=[1, x]", "day=2024-01-01"]) == {"a": [1, "x"], "day": "2024-01-01"}
    for value in ("[", "[" * 100_000, "&a [*a]", "{a: 1, a: 2}"):
        with within(1), pytest.raises(SystemExit, match="override 'key="):
            parameters.read_overrides([f"key={value}"])


def test_what_merges_and_aliases_are_meant_for():
    text = "base: &b {x: 1, y: [a]}\nmore: {<<: *b, x: 2}\nboth: {<<: [{z: 3, x: 4}, *b]}\nsame: [*b, *b]"
    value = documents.load(text).value
    assert value == yaml.safe_load(text)
    assert value["more"] == {"x": 2, "y": ["a"]}


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
)


@given(junk, st.booleans(), st.sampled_from(["", "---\n"]))
def test_values_are_those_of_pyyaml(value, flow, start):
    text = start + yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)
    assert documents.load(text).value == yaml.safe_load(text)


def test_every_part_has_its_line():
    document = documents.load("# a comment\n\na:\n  - x: 1\n    y: [2,\n      3]\n  -\n    z: 4\na: b\n")
    assert [document.line(loc) for loc in [(), ("a",), ("b",)]] == [3, 9, 3]
    assert document.problems == [(9, "a: expected each key once, found it on line 3 too")]
    document = documents.load("a:\n  - x: 1\n    y: [2,\n      3]\n  -\n    z: 4\n")
    parts = [("a", 0), ("a", 0, "y"), ("a", 0, "y", 1), ("a", 0, "y", 1, "none"), ("a", 1), ("a", 1, "z"), ("a", 2)]
    assert [document.line(loc) for loc in parts] == [2, 3, 4, 4, 6, 6, 1]


DEEP, DIGITS = "[" * 100_000 + "]" * 100_000, "9" * 5000


@pytest.mark.parametrize("value", [DEEP, DIGITS, '{"a":' * 100_000])
def test_hostile_json_is_an_error_of_its_file_and_line(tmp_path, value):
    (tmp_path / "one.json").write_text(f'{{"feedback": {value}}}')
    with within(1), pytest.raises(FeedbackError, match=r"one\.json.*expected|one\.json: Exceeds"):
        load_prompts("one", tmp_path)
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "x"}}\n{{"prompt": {value}}}\n')
    with within(1), pytest.raises(ValueError, match=r"rows\.jsonl, line 2: expected one JSON object"):
        files.read_jsonl(tmp_path / "rows.jsonl")
    with within(1), pytest.raises(ValueError, match=r"one\.json: expected JSON"):
        files.read_json(tmp_path / "one.json")
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])


def test_bytes_that_are_no_text_have_a_line(tmp_path):
    Path(tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(FeedbackError, match=r"latin\.yaml, line 2: expected text in UTF-8"):
        load_feedbacks(tmp_path / "latin.yaml")
