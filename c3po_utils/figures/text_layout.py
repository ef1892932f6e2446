"""Text as pictures need it: measured in the figures' font, wrapped, and with what the font lacks spelled out."""

from __future__ import annotations

import unicodedata
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font

SIZE = 6.5  # points
TYPE = {"fontsize": SIZE, "va": "baseline", "parse_math": False}


@cache
def _glyphs(weight: str) -> FT2Font:
    return get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))


@cache
def _advance(character: str, weight: str) -> float:
    """Inches that a character takes."""
    font = _glyphs(weight)
    font.set_size(SIZE, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 72


def width(text: str, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    return sum(_advance(character, weight) for character in text)


def drawable(text: str) -> str:
    """The text with what the figures' font lacks spelled out: [unicorn face], or [cjk text] for a run of
    letters."""
    shown = []
    for character in text.expandtabs(4):
        if "\ufe00" <= character <= "\ufe0f":  # variation selectors, as after an emoji
            continue
        if character == "\n" or (character.isprintable() and _glyphs("normal").get_char_index(ord(character))):
            shown.append(character)
        elif unicodedata.category(character)[0] not in "CM":
            name = unicodedata.name(character, "unknown sign").lower()
            name = f"[{name.split()[0]} text]" if character.isalpha() else f"[{name}]"
            shown += [name] if shown[-1:] != [name] else []
    return "".join(shown)


def wrap(text: str, room: float, max_lines: int, weight: str = "normal") -> list[str]:
    """Lines no wider than `room` inches; the last of `max_lines` ends in an ellipsis when more would
    follow."""
    lines: list[str] = []
    for paragraph in drawable(text).strip().split("\n"):
        lines += _fill(paragraph, room, weight, max_lines + 1)
        if len(lines) > max_lines:
            break
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and width(f"{last} …", weight) > room:
        last = last[:-1].rstrip()
    return [*lines[: max_lines - 1], f"{last} …".lstrip()]


def _fill(paragraph: str, room: float, weight: str, enough: int) -> list[str]:
    """Greedy lines of one paragraph, no more than enough; words wider than a line are broken, best at an underscore."""
    lines = [""]
    for word in paragraph.split():
        joined = f"{lines[-1]} {word}".strip()
        if width(joined, weight) <= room:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if width(lines[-1] + character, weight) > room:
                head, mark, tail = lines[-1].rpartition("_")
                lines[-1:] = [head + mark, tail] if head else [lines[-1], ""]
            lines[-1] += character
            if len(lines) > enough:
                return lines[:enough]
    return lines


def signed(score: float) -> str:
    """A number with its sign, to two digits; what rounds to nothing is 0."""
    return "0" if abs(score) < 0.005 else f"{score:+.2g}".replace("-", "−")
