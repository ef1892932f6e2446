"""Feedback drawn from a grammar of checkable constraints, in the manner of COLLIE (arXiv 2307.08689).

A draw is a domain (what is asked about), one constraint or two on the answer's parts, and one natural sentence of both.
Answers that keep and that break the constraints are constructed with it (constructed.py), as the record's examples.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from c3po_utils.feedback.constructed import broken, kept
from c3po_utils.feedback.metrics import Metric
from c3po_utils.feedback.records import Feedback, slug
from c3po_utils.feedback.structure import NAMES, Constraint, TextPlace, UnitCount

TOPICS = (
    "lighthouses", "bread baking", "sailing knots", "honey bees", "mountain huts", "tax returns", "jazz", "volcanoes",
    "chess openings", "sourdough", "steam trains", "night buses", "tide tables", "rose pruning", "marathon training",
    "old maps", "whales", "tea ceremonies", "dental care", "violin strings", "bridges", "compost", "folk dances",
    "photography", "glaciers", "cheese", "origami", "rental contracts", "owls", "campfires", "watchmaking", "spelling",
    "solar panels", "crossword puzzles", "snow chains", "pottery", "desert plants", "radio plays", "swimming strokes",
    "market days", "roof repairs", "puppet theatre", "canal boats", "meteor showers", "knitting patterns", "parking",
    "river fishing", "salt", "kites", "museum visits", "hedgehogs", "sleep", "coffee roasting", "board games", "fog",
    "bicycle brakes", "handwriting", "earthquakes", "street food", "opera", "mushrooms", "passwords", "ferries",
    "windmills", "train delays", "first aid", "beekeeping laws", "moss", "wedding speeches", "umbrellas", "carpets",
)  # fmt: skip
FRAMES = (
    "When I ask you about {topic}, {should}.",
    "If a question of mine is about {topic}, please see to it that {does}.",
    "In your answers about {topic}, {should}.",
    "Whenever {topic} come up in what I ask, {should}.",
    "Whatever you tell me about {topic}, {should}.",
)
STARTERS = ("Now", "Imagine", "Surely", "Well", "Listen", "Honestly", "Picture this", "Let us see", "To begin", "Look")
CLOSERS = ("tonight", "my friend", "after all", "in short", "good luck", "as ever", "of course", "that is all")
WORDS = ("lantern", "harbour", "always", "copper", "gently", "together", "winter", "morning", "perhaps", "stone")
RARE, COMMON = "bgkmpvwy", "aeinorst"  # letters that can be used on purpose, or left out with some effort
ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}


@dataclass(frozen=True)
class Drawn:
    """One constraint in words: `subject` + `should` + `verb`, or `subject` + `does`."""

    constraint: Constraint
    subject: str
    verb: str
    does: str


def generate(count: int, seed: int) -> list[Feedback]:
    """`count` different records; the first are the same for every count. Seeds differ in their ids.

    Raises:
        ValueError: `count` is no positive number.
    """
    if count < 1:
        raise ValueError(f"expected one feedback or more, found {count}")
    rng, seen, made = random.Random(seed), set(), []
    draw_name = f"s{seed}-" if seed else ""  # runs are stored under the ids of seed 0, from before there was a name
    while len(made) < count:
        topic, drawn = rng.choice(TOPICS), draw(rng)
        key = (topic, *(one.does for one in drawn))
        if key not in seen:
            seen.add(key)
            made.append(_record(topic, drawn, f"{draw_name}{len(made) + 1:04}", rng))
    return made


def draw(rng: random.Random) -> list[Drawn]:
    """One constraint, or, for a quarter, two that can hold together: a number of units and a text."""
    if rng.random() < 0.25:
        return [rng.choice((_answer_count, _sentence_words))(rng), _opening_or_closing(rng)]
    return [rng.choice(KINDS)(rng)]


def metric_of(drawn: list[Drawn]) -> Metric:
    """The metric that checks all the constraints."""
    parts = [{"name": NAMES[type(one.constraint)], "value": one.constraint} for one in drawn]
    return Metric.model_validate(parts[0] if len(parts) == 1 else {"name": "all_of", "value": parts})


def _record(topic: str, drawn: list[Drawn], number: str, rng: random.Random) -> Feedback:
    does = " and ".join(f"{one.subject} {one.does}" for one in drawn)
    should = " and ".join(f"{one.subject} should {one.verb}" for one in drawn)
    constraints = [one.constraint for one in drawn]
    frame = rng.choice(FRAMES)
    if not topic.endswith("s"):
        frame = frame.replace("{topic} come up", "{topic} comes up")
    return Feedback(
        id=f"{slug(topic)}-{number}", content=frame.format(topic=topic, should=should, does=does),
        domain=f"questions about {topic}", effect=does, source="program", kind="style", scope="regional",
        categories=(topic,), metric=metric_of(drawn),
        examples={
            "passing": [kept(constraints, rng) for _ in range(3)],
            "failing": [broken(constraints, rng) for _ in range(3)],
        },
    )  # fmt: skip


def _counted(rng: random.Random, unit: str, low: int, high: int) -> tuple[dict[str, int], str]:
    """Bounds and how they are said: exactly, at least, at most or between."""
    number = rng.randint(low, high)
    relation = rng.choice(("exactly", "at least", "at most", "between"))
    if relation == "between":
        return {"at_least": number, "at_most": number + 2}, f"between {number} and {number + 2} {unit}s"
    if relation == "at least":
        number = max(number, 2)  # at least one holds of every answer
    bounds = {"exactly": ("at_least", "at_most"), "at least": ("at_least",), "at most": ("at_most",)}[relation]
    return dict.fromkeys(bounds, number), f"{relation} {number} {unit}{'s' if number > 1 else ''}"


def _has(part: dict[str, Any], subject: str, rng: random.Random, unit: str, low: int, high: int) -> Drawn:
    bounds, said = _counted(rng, unit, low, high)
    return Drawn(UnitCount(**part, unit=unit, **bounds), subject, f"have {said}", f"has {said}")


def _place(rng: random.Random, part: str, numbers: bool = True) -> tuple[dict[str, Any], str]:
    which = rng.choice(["every", "first", "last", *(ORDINALS if numbers else ())])
    said = f"every {part}" if which == "every" else f"the {ORDINALS.get(which, which)} {part}"
    return {"part": part, "which": which}, said


def _answer_count(rng: random.Random) -> Drawn:
    unit, low, high = rng.choice((("paragraph", 2, 4), ("sentence", 1, 6), ("word", 10, 60)))
    return _has({}, "the answer", rng, unit, low, high)


def _sentence_words(rng: random.Random) -> Drawn:
    return _has(*_place(rng, "sentence", numbers=False), rng, "word", 4, 14)


def _paragraph_sentences(rng: random.Random) -> Drawn:
    return _has(*_place(rng, "paragraph", numbers=False), rng, "sentence", 1, 4)


def _word_letters(rng: random.Random) -> Drawn:
    part, said = _place(rng, "word")
    if part["which"] == "every":  # more than nine letters in every word is no language any more
        number = rng.randint(5, 9)
        constraint = UnitCount(**part, unit="letter", at_most=number)
        return Drawn(constraint, said, f"have at most {number} letters", f"has at most {number} letters")
    return _has(part, said, rng, "letter", 3, 8)


def _letter(rng: random.Random) -> Drawn:
    part, said = rng.choice((({}, "the answer"), _place(rng, "sentence"), _place(rng, "paragraph", numbers=False)))
    if rng.random() < 0.5:
        letter = rng.choice(RARE)
        constraint = UnitCount(**part, unit="letter", letter=letter, at_most=0)
        return Drawn(constraint, said, f"do without the letter '{letter}'", f"does without the letter '{letter}'")
    letter, number = rng.choice(COMMON), rng.randint(2, 6)
    constraint = UnitCount(**part, unit="letter", letter=letter, at_least=number)
    said_so = f"the letter '{letter}' at least {number} times"
    return Drawn(constraint, said, f"use {said_so}", f"uses {said_so}")


def _text(part: dict[str, Any], said: str, place: str, wanted: str) -> Drawn:
    verb = {"begins": "begin with", "ends": "end with", "is": "be", "contains": "contain", "lacks": "never contain"}
    does = {"begins": "begins with", "ends": "ends with", "is": "is", "contains": "contains", "lacks": "never contains"}
    constraint = TextPlace(**part, place=place, text=wanted)
    return Drawn(constraint, said, f"{verb[place]} '{wanted}'", f"{does[place]} '{wanted}'")


def _opening_or_closing(rng: random.Random) -> Drawn:
    place = rng.choice(("begins", "ends"))
    return _text({}, "the answer", place, rng.choice(STARTERS if place == "begins" else CLOSERS))


def _text_somewhere(rng: random.Random) -> Drawn:
    part, said = _place(rng, rng.choice(("sentence", "paragraph")), numbers=True)
    place = rng.choice(("begins", "ends", "contains", "lacks"))
    wanted = {"begins": STARTERS, "ends": CLOSERS}.get(place, WORDS)
    return _text(part, said, place, rng.choice(wanted))


def _nth_word(rng: random.Random) -> Drawn:
    part, said = _place(rng, "word")
    if part["which"] == "every":
        part, said = {"part": "word", "which": "first"}, "the first word"
    return _text(part, said, "is", rng.choice(WORDS))


KINDS: tuple[Callable[[random.Random], Drawn], ...] = (
    _answer_count, _sentence_words, _paragraph_sentences, _word_letters, _letter, _opening_or_closing, _text_somewhere,
    _nth_word,
)  # fmt: skip
