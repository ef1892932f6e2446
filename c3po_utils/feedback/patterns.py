"""Regular expressions of the user's, within bounds: what they are tried on comes from models, and may be anything."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

import regex

from c3po_utils.feedback.text import one_spelling

SECONDS = 1.0  # of processor time that a search may take: an honest one takes microseconds
PROBE_SECONDS = 0.1
PROBE = 48  # times that a probe repeats its piece: 2^48 steps do not end, 48^3 do at once
LONGEST = 1000  # characters of a pattern
_ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\(?:u([\da-fA-F]{4})|U([\da-fA-F]{8})|x([\da-fA-F]{2}))")
_CLASS = re.compile(r"(?<!\\)\[\^?\]?((?:\\.|[^\]\\])*)\]", re.DOTALL)
_RANGE = re.compile(r"(?=(.)-(.))", re.DOTALL)
# Typing errors that are allowed (`{e<=1}`) are in `regex`, and plain text in Python's `re`.
_FUZZY = re.compile(r"(?<!\\)\{[\d\s<=]*[eids]\s*[<=,+:}]")


class EndlessSearch(ValueError):
    """A search that was given up."""


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> regex.Pattern:
    """The pattern, its literal quotes and spaces in the one spelling that answers have.

    Python's `re` says what a pattern is; the `regex` package searches, since only its searches can be given up.
    Raises ValueError for none, and where the two read it in different ways.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"expected a regular expression of at most {LONGEST} characters")
    spelled = one_spelling(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(spelled)
            compiled = regex.compile(spelled, regex.VERSION0)
    except (re.error, regex.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression of Python's re ({error})") from error
    _refuse_respelled(pattern)
    if fuzzy := _FUZZY.search(spelled):
        raise ValueError(rf"expected \{{ before a brace that is no number of repeats, found {fuzzy.group()!r}")
    return compiled


def _refuse_respelled(pattern: str) -> None:
    """Raise ValueError where the one spelling would make another pattern: of an escape, or of a range in a class."""
    for escape in _ESCAPED.finditer(pattern):
        char = chr(int(next(filter(None, escape.groups())), 16))
        if (plain := one_spelling(char)) != char:
            raise ValueError(f"expected {plain!r} for {escape.group()!r}: answers are read in one spelling")
    for inside in _CLASS.finditer(pattern):
        for first, last in _RANGE.findall(inside.group(1)):
            if one_spelling(first) != first or one_spelling(last) != last:
                raise ValueError(
                    f"expected single characters for the range {first}-{last}: answers are read in one spelling,"
                    f" where it would be {one_spelling(first)!r} to {one_spelling(last)!r}"
                )


def found(pattern: str, text: str, seconds: float = SECONDS) -> bool:
    """Whether the pattern is found somewhere in the text. Raises EndlessSearch where that takes too long."""
    try:
        return compile_pattern(pattern).search(text, timeout=seconds) is not None
    except TimeoutError:
        problem = f"the pattern {pattern!r} has no end after {seconds:g} s on a text of {len(text):,} characters"
        hint = "a repeat inside a repeat, as in (a|aa)+ or (a+)+, can match one text in millions of ways"
        raise EndlessSearch(f"{problem}, {text[:40]!r}...: {hint}") from None


@lru_cache(maxsize=1024)
def tried(pattern: str) -> str:
    """The pattern, if it comes to an end on repeats of the characters and words in it, which no part follows.

    Raises ValueError: it does not, or is no pattern. One that passes can still meet a text that it has no end on.
    """
    pieces = dict.fromkeys([*re.findall(r"[^\W_]", pattern)[:20], *re.findall(r"\w+\s?", pattern)[:5], *"aA0 \n.-"])
    compile_pattern(pattern)
    for piece in pieces:
        found(pattern, f"{piece * PROBE}\x00{pattern}\x00", PROBE_SECONDS)  # what must follow is there, but elsewhere
    return pattern
