"""Regular expressions within bounds: the user's on what models write, and the kit's own on hostile texts."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from c3po_utils.chat.schemas import Form, Rejected, parse
from c3po_utils.feedback import general, patterns, text
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.metrics import Metric, check
from c3po_utils.feedback.records import Feedback, load_feedbacks
from tests.feedback.test_records import RECORD
from tests.speed import within

ENDLESS = r"(a|aa)+$"  # has to try as many ways as there are to add up a number by ones and twos
SLOW = r"(.*?,){12}P"  # grows with the length to the power of 12: passes on a probe of 48 characters without a comma


@pytest.mark.parametrize("pattern", [ENDLESS, r"^(\w|\w\w)*!$", r"(lol|lo|l|ol)+!$", "(?i)(A|a|AA)+$"])
def test_a_pattern_without_an_end_is_refused_on_loading(tmp_path, pattern):
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump({"feedbacks": [RECORD | {"metric": {"name": "regex_found", "value": pattern}}]}))
    with within(2), pytest.raises(FeedbackError) as caught:
        load_feedbacks(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}, line ")
    assert "feedbacks[0].metric.value: the pattern" in problem
    assert "has no end after 0.1 s on a text of" in problem


@pytest.mark.parametrize("name", ["regex_found", "regex_not_found"])
def test_a_search_without_an_end_is_an_error_that_names_feedback_metric_and_pattern(name):
    metric = {"name": "all_of", "value": [{"name": name, "value": SLOW}]}
    feedback = Feedback.model_validate(RECORD | {"metric": metric})
    named = rf"feedback one, metric all_of: metric {name}: the pattern {re.escape(repr(SLOW))} has no end after 1 s on"
    with within(2), pytest.raises(patterns.EndlessSearch, match=named):
        feedback.passes("1,2," * 25_000, "")


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a*)*$", r"(x+x+)+y", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"\s+$", ".*.*=.*"]
)
@pytest.mark.parametrize("piece", ["a", "x", " ", "aB"])
def test_every_search_ends(pattern, piece):
    with within(2), suppress(patterns.EndlessSearch):
        patterns.found(pattern, "!" + piece * 100_000 + "!")


PATTERNS = [
    r"\b[A-Z]{3}\b",
    "(?i)it's fine",
    r"\d{2,}",
    r"^- ",
    r"(?m)^\d+\.",
    r"(?s)a.b",
    r"(\w)\1",
    r"(?<!\w)lol(?!\w)",
    r"[^\W_]+$",
    r"(?:ha)+",
    r"a{2}",
    r"{a}",
    r"\{e}",
    r"[{}]",
    "a|b|",
    r"(?P<x>a)(?P=x)",
    r"(?>a+)b",
    "a++",
    r"\Aa",
    r"a\Z",
    "ß",
    "(?i)ß",
    "(?i)K",
    r"\s",
    r"[à-ü]",
    "(?a)\\w",
    "$",
    "^",
    r"(?i)[a-z]+ſ",
]


@given(st.sampled_from(PATTERNS), st.text("aAbBhloL'it sfne-.12\n{}eßsSſkK\u212a_ü"))
def test_what_is_found_is_what_pythons_re_finds(pattern, answer):
    assert patterns.found(patterns.tried(pattern), answer) == bool(re.search(pattern, answer))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(lol){e<=1}", "expected \\{ before a brace"),  # plain text for re, a fuzzy search for regex
        ("[[a-z]--[aeiou]]", "Possible nested set"),
        ("a{99999999999}", "the repetition number is too large"),
        ("(" * 900 + ")" * 99, "expected a regular expression"),
        ("a" * 1001, "at most 1000 characters"),
        ("\\p{L}", "bad escape"),
        ("it\\u2019s", "expected \"'\" for '\\\\u2019'"),
        ("[‐-―]", "expected single characters for the range ‐-―"),
    ],
)
def test_what_is_no_pattern_of_pythons_re_is_refused(pattern, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        patterns.tried(pattern)


class Ideas(Form):
    """A form with a list."""

    ideas: list[str]
    note: str = ""


def fields(answer: str) -> None:
    with suppress(Rejected):
        parse(answer, Ideas)


READERS = {
    "bullets": lambda s: text.count_items(text.BULLET, s),
    "numbers": lambda s: text.count_items(text.NUMBER, s),
    "sentences": text.sentences,
    "words": text.words,
    "phone": text.PHONE_NUMBER.search,
    "question": text.FINAL_QUESTION.match,
    "cleaned": text.cleaned,
    "folded": text.folded,
    "opening": text.OPENING.match,
    "occurs": lambda s: text.occurs("x y z", s, False),
    "ends": lambda s: text.ends_with(s or "x", "x y", False),
    "turn": lambda s: general._first_turn("<human>: " + s),
    "json": fields,
    "tagged": lambda s: fields(f"<ideas>{s}</ideas>"),
    "items": lambda s: fields(f"<ideas><item>a</item>{s}<item>b</item></ideas>"),
    "thinking": lambda s: fields(f"<think>{s}"),
}
PIECES = [
    " ",
    "\t",
    "\n",
    " \n",
    "- ",
    "-",
    "1. ",
    "1",
    "1.",
    "1-",
    "(1",
    "1-800-",
    "+1 ",
    "0",
    "01 ",
    "555-",
    "x y ",
    "x ",
    "y",
    "?",
    "? ",
    "!",
    ".",
    ". ",
    "A.",
    "...x",
    "```",
    "```\n",
    " ```",
    "*",
    "_",
    "> ",
    "#",
    '"',
    "“",
    "{",
    '{"a":',
    '{"a":1}',
    '{"a": "',
    "[",
    "\\",
    "<",
    "<item>",
    "</item>",
    "<item></item>",
    "<human>:",
    "<bot>:",
    "</think>",
    "<ideas>",
    ",",
    ", ",
    "9",
    "\u200b",
    "e\u0301",
    "。",
    "你",
]


@pytest.mark.parametrize("read", READERS)
def test_reading_100_000_characters_takes_no_time(read):
    for piece in PIECES:
        for before, after in (
            ("", ""),
            ("- ", "\nx"),
            ("1. ", "\nx"),
            ("x", "x"),
            ("<item>", "x</item>x"),
            ('{"ideas": ', "}"),
        ):
            with within(1):
                READERS[read](before + piece * (100_000 // len(piece)) + after)


def test_an_endless_word_is_of_some_language_at_once():
    check(Metric(name="language_is", value="de"), "warm", "")
    with within(1):
        assert not check(Metric(name="language_is", value="de"), "x" * 200_000, "")


def test_a_number_of_thousands_of_digits_is_no_form():
    with pytest.raises(Rejected, match="expected JSON or tags"):
        parse('{"ideas": [' + "1" * 5000 + "]}", Ideas)
