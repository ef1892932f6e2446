"""The reference implementation's metrics as ours, by one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from c3po_utils.feedback.foreign import short
from c3po_utils.feedback.python_data import Member
from c3po_utils.runs import nearest

MORE, LESS = ("greater_eq_than", "greater_than"), ("less_eq_than", "less_than")
LENGTH_RATIO = 1.5


class Mapped(NamedTuple):
    """Our metric where the comparison asks for more, where it asks for less, and its value from the reference's."""

    more: str
    less: str
    value: Callable[[Any], Any]
    note: str


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of texts, found {short(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {short(value)}")
    return value


def _number(value: Any) -> str:
    """A pattern for one phone number, its digits set apart in any way."""
    digits = re.findall(r"\d", _text(value))
    if len(digits) < 3:
        raise ValueError(f"expected a phone number, found {short(value)}")
    return r"(?<!\d)" + r"[ ().-]*".join(digits) + r"(?!\d)"


def _words(value: Any) -> dict[str, Any]:
    return {"part": "answer", "unit": "word", "at_least": value, "at_most": value}


def _letters(value: Any) -> dict[str, Any]:
    return {"part": "word", "unit": "letter", "at_most": value}


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError(f"expected no metric_value, found {short(value)}")


INSIDE = "as whole words; there also inside words"
METRICS: dict[str, Mapped] = {
    "length": Mapped("longer_than_baseline", "shorter_than_baseline", _nothing, "by `--length-ratio`, or 1 / it"),
    "contains_any_string": Mapped("contains_any", "contains_none", _texts, INSIDE),
    "contains_all_strings": Mapped("contains_all", "", _texts, INSIDE),
    "contains_none_strings": Mapped("contains_none", "contains_any", _texts, INSIDE),
    "contains_phone_number": Mapped("regex_found", "regex_not_found", _number, "its digits; or else `phone_number`"),
    "starts_with": Mapped("starts_with", "not_starts_with", _text, "also after quotes and Markdown marks"),
    "doesnt_start_with": Mapped("not_starts_with", "starts_with", _text, "nor after quotes and Markdown marks"),
    "ends_with": Mapped("ends_with", "", _text, "case matters; not there"),
    "ends_with_cleaned": Mapped("ends_with_cleaned", "", _text, ""),
    "regex_search": Mapped("regex_found", "regex_not_found", _text, ""),
    "regex_search_false": Mapped("regex_not_found", "regex_found", _text, ""),
    "is_language": Mapped("language_is", "", _text, "another detector"),
    "word_count": Mapped("unit_count", "", _words, "exactly so many words"),
    "word_length_leq": Mapped("unit_count", "", _letters, "so many letters in every word, at most"),
}  # fmt: skip
WITHOUT = ("sentiment_polarity", "is_length", "first_words")  # metrics that have no counterpart


def metrics_table() -> str:
    """The mapping as a Markdown table; feedback/README.md shows it."""
    lines = ["| there | here, if more is better | if less is better | what differs |", "|---|---|---|---|"]
    for name, mapped in METRICS.items():
        less = f"`{mapped.less}`" if mapped.less else "–"
        lines.append(f"| `{name}` | `{mapped.more}` | {less} | {mapped.note} |")
    names = ", ".join(f"`{name}`" for name in WITHOUT)
    return "\n".join([*lines, f"| {names} | – | – | have no counterpart: such a record is refused |", ""])


def member(value: Any, enum: str) -> str:
    """The name, in lower case, of an enum's member."""
    if not isinstance(value, Member) or value.enum != enum:
        raise ValueError(f"expected a member of {enum}, found {short(value)}")
    return value.name.lower()


def metric(fields: dict[str, Any], length_ratio: float) -> dict[str, Any] | None:
    """Our metric. Raises ValueError: type, metrics, values, comparison do not go together, or have no counterpart."""
    found, kind = fields.get("metric"), member(fields["type"], "Type")
    if kind not in ("quantitative", "qualitative"):
        raise ValueError(f"expected the type quantitative or qualitative, found {kind!r}")
    if (found is not None) != (kind == "quantitative"):
        raise ValueError(f"expected {'none' if found else 'one'} where the type is {kind}, found {short(found)}")
    if found is None:
        return None
    values, comparison = fields.get("metric_value"), fields.get("comparison")
    if not isinstance(found, list):
        return _mapped(found, values, comparison, length_ratio)
    if not isinstance(values, list) or len(values) != len(found) or not found:
        raise ValueError(f"expected one metric_value for each of {len(found)} metrics, found {short(values)}")
    parts = [_mapped(one, value, comparison, length_ratio) for one, value in zip(found, values, strict=True)]
    return {"name": "all_of", "value": parts}


def _mapped(metric: Any, value: Any, comparison: Any, length_ratio: float) -> dict[str, Any]:
    name, direction = member(metric, "Metric"), member(comparison, "Comparison")
    if name not in METRICS:
        raise ValueError(f"expected a metric that has a counterpart ({nearest(name, METRICS)}), found {name!r}")
    if direction not in (*MORE, *LESS):
        raise ValueError(f"expected a known comparison ({nearest(direction, (*MORE, *LESS))}), found {direction!r}")
    if name == "contains_phone_number" and value is None and direction in MORE:
        return {"name": "phone_number"}
    ours = METRICS[name].more if direction in MORE else METRICS[name].less
    if not ours:
        raise ValueError(f"expected another comparison of {name}, found {direction!r}: less of it has no counterpart")
    mapped = METRICS[name].value(value)
    if name == "length":
        mapped = float(length_ratio) if direction in MORE else round(1 / length_ratio, 3)
    return {"name": ours, "value": mapped}
