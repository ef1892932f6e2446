"""Metrics of an answer's parts: how many units a paragraph, sentence or word has, which text stands where in it.

With their compositions (`all_of`) they are the constraints of COLLIE (arXiv 2307.08689): a level, a unit to count or a
text to find, and a relation. programmatic.py draws feedback from them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from c3po_utils.feedback import text
from c3po_utils.feedback.files import Record, Text
from c3po_utils.feedback.metrics import metric

LEVELS = ("answer", "paragraph", "sentence", "word", "letter")  # each is made of the next
Which = Literal["every", "first", "last"] | Annotated[int, Field(strict=True, ge=1)]


class Part(Record):
    """Which parts of an answer are looked at: `every` paragraph, the `last` sentence, the third (3) word."""

    part: Literal["answer", "paragraph", "sentence", "word"] = "answer"
    which: Which = "every"

    def of(self, answer: str) -> list[str]:
        """Their texts; none where the answer has too few."""
        found = [answer] if self.part == "answer" else SPLIT[self.part](answer)
        if self.which == "every":
            return found
        place = {"first": 0, "last": len(found) - 1}.get(self.which, self.which)
        place = place - 1 if isinstance(self.which, int) else place
        return found[place : place + 1] if place >= 0 else []


def _paragraphs(answer: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", answer) if re.search(r"[^\W_]", part)]


def _bare_words(part: str) -> list[str]:
    """Words without the punctuation at their ends."""
    return [text.cleaned(word) for word in text.words(part)]


SPLIT = {
    "paragraph": _paragraphs,
    "sentence": text.sentences,
    "word": _bare_words,
    "letter": lambda part: [letter for letter in part if letter.isalpha()],
}


class UnitCount(Part):
    """How many paragraphs, sentences, words or letters (or of one `letter`) each of the parts has."""

    unit: Literal["paragraph", "sentence", "word", "letter"]
    letter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    at_least: Annotated[int, Field(strict=True, ge=0)] = 0
    at_most: Annotated[int, Field(strict=True, ge=0)] | None = None

    @model_validator(mode="after")
    def _can_be_meant(self) -> UnitCount:
        if LEVELS.index(self.unit) <= LEVELS.index(self.part):
            raise ValueError(f"expected a unit smaller than the part {self.part!r}, found {self.unit!r}")
        if self.letter and self.unit != "letter":
            raise ValueError(f"expected the unit 'letter' to count one letter, found {self.unit!r}")
        if not self.at_least and self.at_most is None:
            raise ValueError("expected at_least, at_most or both, found neither")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"expected at_most of {self.at_least} or more, found {self.at_most}")
        return self

    def number(self, part: str) -> int:
        """How many of its units a part has."""
        units = SPLIT[self.unit](part)
        return len(units) if self.letter is None else sum(one.casefold() == self.letter.casefold() for one in units)


class TextPlace(Part):
    """A text that each of the parts begins or ends with, is, contains, or lacks; whole words, in any case."""

    place: Literal["begins", "ends", "is", "contains", "lacks"]
    text: Text

    def holds(self, part: str) -> bool:
        """Whether the text stands there in a part; punctuation around it does not matter."""
        found, wanted = _bare_words(part.casefold()), _bare_words(self.text.casefold())
        size = len(wanted)
        match self.place:
            case "begins":
                return found[:size] == wanted
            case "ends":
                return found[-size:] == wanted
            case "is":
                return found == wanted
        inside = any(found[start : start + size] == wanted for start in range(len(found) - size + 1))
        return inside == (self.place == "contains")

    @model_validator(mode="after")
    def _has_words(self) -> TextPlace:
        if not _bare_words(self.text):
            raise ValueError(f"expected a text with a letter or digit in it, found {self.text!r}")
        return self


@metric("unit_count")
def _(answer: str, value: UnitCount) -> bool:
    """Each of the parts looked at has `at_least` to `at_most` units, or of one letter.
    Value: a mapping of `part` (answer, paragraph, sentence, word), `which` (every, first, last or a number), `unit`
    (paragraph, sentence, word, letter), `letter`, `at_least`, `at_most`."""
    high = float("inf") if value.at_most is None else value.at_most
    parts = value.of(answer)
    return bool(parts) and all(value.at_least <= value.number(part) <= high for part in parts)


@metric("text_place")
def _(answer: str, value: TextPlace) -> bool:
    """Each of the parts looked at has the text in its place, as whole words.
    Value: a mapping of `part` and `which` as for `unit_count`, `place` (begins, ends, is, contains, lacks), `text`."""
    parts = value.of(answer)
    return bool(parts) and all(value.holds(part) for part in parts)


Constraint = UnitCount | TextPlace
NAMES: dict[type[Any], str] = {UnitCount: "unit_count", TextPlace: "text_place"}
