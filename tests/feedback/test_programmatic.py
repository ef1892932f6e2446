"""Programmatic feedback: metrics of an answer's parts against another reading of it, and the sentences drawn."""

import random
import re
from collections import Counter

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from c3po_utils.cli import c3po
from c3po_utils.feedback import records
from c3po_utils.feedback.constructed import broken, holds, kept, random_document, written
from c3po_utils.feedback.metrics import Metric, check
from c3po_utils.feedback.programmatic import draw, generate, metric_of
from c3po_utils.feedback.records import load_feedbacks
from c3po_utils.feedback.structure import LEVELS, TextPlace, UnitCount

DRAWS = 1000


def metric(name: str, **value) -> Metric:
    return Metric.model_validate({"name": name, "value": value})


def test_metrics_accept_what_was_constructed_and_reject_what_was_broken():
    rng, answers = random.Random(1), Counter()
    for _ in range(DRAWS):
        drawn = draw(rng)
        constraints, spec = [one.constraint for one in drawn], metric_of(drawn)
        good, bad = kept(constraints, rng), broken(constraints, rng)
        assert check(spec, good, ""), (constraints, good)
        assert not check(spec, bad, ""), (constraints, bad)
        document = random_document(rng)
        agree = all(holds(document, constraint) for constraint in constraints)
        assert check(spec, written(document), "") == agree, (constraints, written(document))
        answers[agree] += 1
    assert min(answers.values()) > DRAWS / 10, "random texts both keep and break constraints"


def test_draws_cover_every_level_unit_and_relation():
    rng = random.Random(2)
    constraints = [one.constraint for _ in range(DRAWS) for one in draw(rng)]
    counts = [one for one in constraints if isinstance(one, UnitCount)]
    assert {one.unit for one in counts} == set(LEVELS[1:])
    assert {one.part for one in constraints} == set(LEVELS[:-1])
    assert {one.which for one in constraints} == {"every", "first", "last", 2, 3, 4, 5}
    assert {one.place for one in constraints if isinstance(one, TextPlace)} == {
        "begins", "ends", "is", "contains", "lacks",
    }  # fmt: skip
    assert any(one.letter for one in counts)


def test_200_feedbacks_are_one_sentence_each_checkable_and_all_different():
    made = generate(200, seed=1)
    assert [len({getattr(one, key) for one in made}) for key in ("id", "content")] == [200, 200]
    for one in made:
        assert re.fullmatch(r"[A-Z][^.?!]+\.", one.content), one.content
        assert one.metric, one.id
        assert (len(one.examples.passing), len(one.examples.failing)) == (3, 3)
    assert generate(50, seed=1) == made[:50] != generate(50, seed=2)


def test_the_command_writes_a_set_that_loads(tmp_path):
    path = tmp_path / "drawn.yaml"
    done = CliRunner().invoke(c3po, ["feedback", "generate", str(path), "--programmatic", "20", "--seed", "3"])
    assert (done.exit_code, done.output) == (0, f"20 drawn with seed 3\n{path}\n")
    assert load_feedbacks(path) == generate(20, seed=3)
    again = CliRunner().invoke(c3po, ["feedback", "generate", str(path), "--programmatic", "20"])
    assert again.output == f"Error: {path} is there already: expected the name of a new file\n"
    neither = CliRunner().invoke(c3po, ["feedback", "generate", str(tmp_path / "x.yaml")])
    assert "expected one of --programmatic N, --style N and --content N" in neither.output


def test_draws_lie_beside_each_other_and_none_is_written_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FEEDBACK_FOLDER", tmp_path)

    def drawn(name: str, seed: int):
        given = ["feedback", "generate", str(tmp_path / name), "--programmatic", "100", "--seed", str(seed)]
        return CliRunner().invoke(c3po, given)

    for seed in range(3):
        assert drawn(f"drawn{seed}.yaml", seed).exit_code == 0
    made = [generate(100, seed)[15] for seed in range(3)]
    assert [one.id.endswith(f"-s{seed}-0016") for seed, one in enumerate(made)] == [False, True, True]
    assert [records.find_feedback(one.id) for one in made] == made
    again = drawn("again.yaml", 2)
    assert again.exit_code == 1
    assert f"{tmp_path / 'again.yaml'}: expected new ids, found '{generate(1, 2)[0].id}'" in again.output
    assert not (tmp_path / "again.yaml").exists()


def test_the_ids_of_the_first_seed_stay():
    assert [one.id for one in generate(2, 0)] == ["museum-visits-0001", "parking-0002"]


@pytest.mark.parametrize(
    "more", [["--estimate"], ["--model", "openai:m"], ["--ledger", "x.sqlite"], ["--allow-short"], ["budget_usd=1"]]
)
def test_the_draw_refuses_what_is_for_a_model(tmp_path, more):
    path = tmp_path / "drawn.yaml"
    done = CliRunner().invoke(c3po, ["feedback", "generate", str(path), "--programmatic", "3", *more])
    assert done.exit_code == 2
    assert f"--programmatic asks no model: expected it without {more[0]}" in done.output
    assert not path.exists()


@pytest.mark.parametrize("kind", ["--programmatic", "--style", "--content"])
@pytest.mark.parametrize("count", ["0", "-3"])
def test_a_set_of_fewer_than_one_is_refused(tmp_path, kind, count):
    done = CliRunner().invoke(c3po, ["feedback", "generate", str(tmp_path / "x.yaml"), kind, count, "--model", "m"])
    assert done.exit_code == 2
    assert f"{count} is not in the range x>=1" in done.output


@pytest.mark.parametrize(
    ("value", "answer", "passes"),
    [
        ({"unit": "sentence", "at_most": 2}, "One. Two.", True),
        ({"unit": "sentence", "at_most": 2}, "One. Two. Three.", False),
        ({"part": "paragraph", "unit": "sentence", "at_least": 2}, "One. Two.\n\nThree. Four.", True),
        ({"part": "paragraph", "unit": "sentence", "at_least": 2}, "One. Two.\n\nThree.", False),
        ({"part": "sentence", "which": "last", "unit": "word", "at_most": 2}, "One two three. Four five.", True),
        ({"part": "sentence", "which": 3, "unit": "word", "at_most": 2}, "One two three. Four five.", False),
        ({"part": "word", "unit": "letter", "at_most": 4}, "“Well-off”, no", False),
        ({"part": "word", "which": "first", "unit": "letter", "at_least": 7}, "“Well-off”, no", True),
        ({"unit": "letter", "letter": "e", "at_most": 0}, "No such sign.", True),
        ({"unit": "letter", "letter": "e", "at_most": 0}, "EVERY.", False),
    ],
)
def test_units_are_counted_in_parts(value, answer, passes):
    assert check(metric("unit_count", **value), answer, "") == passes


@pytest.mark.parametrize(
    ("value", "answer", "passes"),
    [
        ({"place": "begins", "text": "Picture this"}, "“Picture this: a boat.”", True),
        ({"place": "ends", "text": "good luck"}, "Off you go. Good luck!", True),
        ({"place": "ends", "text": "good luck"}, "Good luck, and go!", False),
        ({"part": "word", "which": 2, "place": "is", "text": "copper"}, "The “Copper” pot.", True),
        ({"part": "sentence", "place": "contains", "text": "sea"}, "The sea. By the sea.", True),
        ({"part": "sentence", "place": "contains", "text": "sea"}, "The sea. By the seaside.", False),
        ({"place": "lacks", "text": "after all"}, "It is, after all, fine.", False),
        ({"place": "lacks", "text": "after all"}, "All of it came after.", True),
    ],
)
def test_texts_stand_in_their_places(value, answer, passes):
    assert check(metric("text_place", **value), answer, "") == passes


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("unit_count", {"part": "word", "unit": "sentence", "at_most": 1}, "a unit smaller than the part 'word'"),
        ("unit_count", {"unit": "word", "letter": "e", "at_most": 1}, "expected the unit 'letter'"),
        ("unit_count", {"unit": "word"}, "at_least, at_most or both, found neither"),
        ("unit_count", {"unit": "word", "at_least": 3, "at_most": 2}, "at_most of 3 or more, found 2"),
        ("unit_count", {"unit": "word", "at_least": 3, "which": 0}, "which"),
        ("text_place", {"place": "begins", "text": "..."}, "a text with a letter or digit in it"),
    ],
)
def test_constraints_that_cannot_be_meant_are_refused(name, value, says):
    with pytest.raises(ValidationError, match=says):
        metric(name, **value)
