"""Prompts in other manners than their hand's, so that a gate reads what is asked for and not how it is written.

The same edits and the same words around prompts of every split: they say nothing of the scope.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

CHANGED = 0.4  # of the words of more than three letters, misspelt

BEFORE = (
    "Good evening, I hope this finds you well.",
    "Me again, for the third time today.",
    "It is raining here and the bus is late, so I have a moment.",
    "A quick one from a tired person.",
    "Hello from my kitchen table!",
    "ok so my sister and I were just talking.",
)
AFTER = (
    "Many thanks in advance!",
    "That would really help me out.",
    "Take your time, nothing is burning.",
    "I'll make some tea in the meantime.",
    "Sorry if I asked this before.",
    "ok, over to you",
)
QUESTIONS = (
    "How long does a comet take around the sun?",
    "Why do cats purr?",
    "Which river in Europe is the longest?",
    "What does a notary do all day?",
    "Could you recommend a calm board game for four?",
    "Translate 'lighthouse' into Portuguese.",
    "What should I look for in a used bicycle?",
    "Who built the first telescope?",
)
EARLIER = (
    'Earlier I asked you: "{}" Thanks, that helped.',
    'You told me about this a minute ago: "{}" Now something else.',
    'After "{}" here is my next one:',
    'We talked about "{}" before lunch, good. Next:',
)


def misspelt(text: str, draw: random.Random) -> str:
    """In lower case, with letters of some words swapped, left out or doubled."""
    return " ".join(_mistyped(word, draw) if len(word) > 3 else word for word in text.lower().split(" "))


def _mistyped(word: str, draw: random.Random) -> str:
    if draw.random() >= CHANGED:
        return word
    place = draw.randrange(1, len(word) - 2)
    head, letter, after, tail = word[:place], word[place], word[place + 1], word[place + 2 :]
    return head + draw.choice([after + letter, after, letter * 2 + after]) + tail


def capitals(text: str, draw: random.Random) -> str:
    return text.upper()


def small_talk(text: str, draw: random.Random) -> str:
    return f"{draw.choice(BEFORE)} {text} {draw.choice(AFTER)}"


def later_turn(text: str, draw: random.Random) -> str:
    """After a question about something else, which is told."""
    return f"{draw.choice(EARLIER).format(draw.choice(QUESTIONS))} {text}"


MANNERS: tuple[Callable[[str, random.Random], str], ...] = (misspelt, capitals, small_talk, later_turn)


def in_other_manners(rows: Sequence[dict]) -> list[dict]:
    """A copy of each row in each of `MANNERS`, with its id, and so in its fold; the same ones every time."""
    return [
        row | {"prompt": manner(row["prompt"], random.Random(f"{manner.__name__}/{row['id']}"))}
        for manner in MANNERS
        for row in rows
    ]
