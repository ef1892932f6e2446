"""Adherence checks: does an answer show the effect of a feedback? A registry of small pure functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, get_type_hints

from lingua import Language, LanguageDetector, LanguageDetectorBuilder
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, TypeAdapter, ValidationInfo, field_validator

from c3po_utils.feedback import patterns, text
from c3po_utils.feedback.files import Count, Record, Regex, Texts, TextsWithWords, some
from c3po_utils.runs import nearest

ENOUGH_TO_TELL = 20_000  # characters for a language; of an endless word, it takes the square of its length
FEW_LETTERS = 5  # with fewer cased letters, `upper_share` says nothing ("OK.", "A+")


@dataclass(frozen=True)
class Registered:
    """A metric's function, and which of `value`, `baseline`, `case_sensitive` it takes."""

    name: str
    function: Callable[..., bool]
    takes: tuple[str, ...]

    @cached_property
    def value_type(self) -> TypeAdapter:
        """What a value must be: the annotation of the function's `value`; None where it takes no value."""
        hints = get_type_hints(self.function, include_extras=True)
        return TypeAdapter(hints.get("value", Annotated[Any, BeforeValidator(_no_value)]))


METRICS: dict[str, Registered] = {}


def metric(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Register a check under `name`; ValueError for a name that is taken, or a parameter that no check gets.

    The function gets the answer, normalised and never empty, and by keyword whichever of `value`, `baseline` and
    `case_sensitive` its signature names; the annotation of `value` validates the value on load. Its docstring says
    when it is true, then, after "Value: ", what its value is.
    """

    def register(function: Callable[..., bool]) -> Callable[..., bool]:
        _, *takes = inspect.signature(function).parameters
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered already")
        if unknown := set(takes) - {"value", "baseline", "case_sensitive"}:
            raise ValueError(f"metric {name!r}: no check gets {', '.join(sorted(unknown))}")
        METRICS[name] = Registered(name, function, tuple(takes))
        return function

    return register


class Metric(Record):
    """One check with its value, as in YAML: `{name: contains_any, value: [lol], case_sensitive: true}`."""

    name: str
    value: Any = Field(default=None, validate_default=True)
    case_sensitive: StrictBool = False

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"expected the name of a metric ({nearest(name, METRICS)})")
        return name

    @field_validator("value")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        known = METRICS.get(info.data.get("name"))
        return known.value_type.validate_python(value) if known else value

    @field_validator("case_sensitive")
    @classmethod
    def _taken(cls, option: bool, info: ValidationInfo) -> bool:
        known = METRICS.get(info.data.get("name"))
        if option and known and "case_sensitive" not in known.takes:
            raise ValueError(f"expected no such option for {known.name}")
        return option

    def parts(self) -> list[Metric]:
        """This metric, or the ones that an `all_of` is made of, however deep."""
        if self.name == "all_of":
            return [part for one in self.value for part in one.parts()]
        return [self]

    @property
    def needs_baseline(self) -> bool:
        return any("baseline" in METRICS[part.name].takes for part in self.parts())


def check(spec: Metric, answer: str, baseline: str) -> bool:
    """Whether the answer satisfies the metric beside the untuned model's `baseline`; an empty answer satisfies none.

    Raises patterns.EndlessSearch, which names metric and pattern, where a search is given up.
    """
    answer = text.normalise(answer)
    if not answer:
        return False
    known = METRICS[spec.name]
    given = {"value": spec.value, "baseline": text.normalise(baseline), "case_sensitive": spec.case_sensitive}
    try:
        return known.function(answer, **{name: given[name] for name in known.takes})
    except patterns.EndlessSearch as error:
        raise patterns.EndlessSearch(f"metric {spec.name}: {error}") from error


def metrics_table() -> str:
    """The registry as a Markdown table, from the docstrings; feedback/README.md shows it."""
    lines = ["| name | true when | value | `case_sensitive` |", "|---|---|---|---|"]
    for name, known in METRICS.items():
        when, _, value = " ".join(inspect.getdoc(known.function).split()).partition(" Value: ")
        option = "optional" if "case_sensitive" in known.takes else ""
        lines.append(f"| `{name}` | {when} | {value.rstrip('.')} | {option} |")
    return "\n".join(lines) + "\n"


def _no_value(value: Any) -> None:
    if value is not None:
        raise ValueError("expected no value")


def _language_code(value: Any) -> str:
    codes = {_code(language) for language in Language.all_spoken_ones()}
    if value not in codes:
        hint = nearest(value, codes) if isinstance(value, str) else "in quotes: YAML reads no as false"
        raise ValueError(f"expected an ISO 639-1 code in lower case, such as 'fr' ({hint})")
    return value


@metric("shorter_than_baseline")
def _(answer: str, baseline: str, value: Annotated[StrictFloat, Field(gt=0, lt=1)]) -> bool:
    """The answer has at most `value` times the baseline's characters.
    Value: a ratio between 0 and 1, such as 0.67: far enough from 1 that chance does not pass."""
    return len(answer) <= value * len(baseline)


@metric("longer_than_baseline")
def _(answer: str, baseline: str, value: Annotated[StrictFloat, Field(gt=1)]) -> bool:
    """The answer has at least `value` times the baseline's characters, and there is a baseline.
    Value: a ratio above 1, such as 1.5: far enough from 1 that chance does not pass."""
    return 0 < value * len(baseline) <= len(answer)


@metric("contains_any")
def _(answer: str, value: Texts, case_sensitive: bool) -> bool:
    """At least one of the texts occurs, as whole words. Value: a text or a list of texts."""
    return any(text.occurs(needle, answer, case_sensitive) for needle in value)


@metric("contains_all")
def _(answer: str, value: Texts, case_sensitive: bool) -> bool:
    """Each of the texts occurs, as whole words. Value: a text or a list of texts."""
    return all(text.occurs(needle, answer, case_sensitive) for needle in value)


@metric("contains_none")
def _(answer: str, value: Texts, case_sensitive: bool) -> bool:
    """None of the texts occurs as whole words. Value: a text or a list of texts."""
    return not any(text.occurs(needle, answer, case_sensitive) for needle in value)


def _starts(needles: Texts, answer: str, case_sensitive: bool) -> bool:
    words = [text.whole_words(needle, case_sensitive) for needle in needles]
    return any(one.match(answer, place) for one in words for place in {0, text.OPENING.match(answer).end()})


@metric("starts_with")
def _(answer: str, value: Texts, case_sensitive: bool) -> bool:
    """The answer begins with one of the texts, after quotes and Markdown marks if any.
    Value: a text or a list of texts."""
    return _starts(value, answer, case_sensitive)


@metric("not_starts_with")
def _(answer: str, value: Texts, case_sensitive: bool) -> bool:
    """The answer begins with none of the texts, nor with quotes or Markdown marks and one of them.
    Value: a text or a list of texts."""
    return not _starts(value, answer, case_sensitive)


@metric("ends_with")
def _(answer: str, value: Texts) -> bool:
    """The answer's last words are exactly one of the texts, case and punctuation too; white space may follow.
    Value: a text or a list of texts."""
    return any(text.ends_with(answer, needle, True) for needle in value)


@metric("ends_with_cleaned")
def _(answer: str, value: TextsWithWords) -> bool:
    """The answer's last words are one of the texts; case, and punctuation or emoji after it, do not matter.
    Value: a text or a list of texts."""
    end = text.cleaned(answer)
    return any(text.ends_with(end, text.cleaned(needle), False) for needle in value)


@metric("regex_found")
def _(answer: str, value: Regex) -> bool:
    """The pattern is found somewhere in the answer.
    Value: a regular expression of Python's `re`, where case matters unless it begins with `(?i)`."""
    return patterns.found(value, answer)


@metric("regex_not_found")
def _(answer: str, value: Regex) -> bool:
    """The pattern is found nowhere in the answer.
    Value: a regular expression of Python's `re`, where case matters unless it begins with `(?i)`."""
    return not patterns.found(value, answer)


@metric("phone_number")
def _(answer: str) -> bool:
    """The answer gives a phone number; dates, years, prices and short numbers (911) are none. Value: none."""
    return text.PHONE_NUMBER.search(answer) is not None


def _code(language: Language) -> str:
    return language.iso_code_639_1.name.lower()


@cache
def _detector() -> LanguageDetector:
    """Trigrams only: some 60 MB of memory rather than 900, and no worse from 120 characters on."""
    return LanguageDetectorBuilder.from_all_spoken_languages().with_low_accuracy_mode().build()


@metric("language_is")
def _(answer: str, value: Annotated[Any, BeforeValidator(_language_code)]) -> bool:
    """The answer is most likely in this language; a guess for answers below some 120 characters.
    Value: an ISO 639-1 code, such as `fr`."""
    language = _detector().detect_language_of(answer[:ENOUGH_TO_TELL])
    return language is not None and _code(language) == value


@metric("upper_share")
def _(answer: str, value: Annotated[StrictFloat, Field(gt=0, le=1)]) -> bool:
    """At least this share of the letters is upper case, out of 5 or more letters that have a case.
    Value: a share above 0 and up to 1, such as 0.9."""
    upper, lower = sum(map(str.isupper, answer)), sum(map(str.islower, answer))
    return upper + lower >= FEW_LETTERS and upper / (upper + lower) >= value


@metric("bulleted_list")
def _(answer: str, value: Count) -> bool:
    """At least `value` lines begin with a bullet (`-`, `*`, `+`, `•` and the like) and a space; code aside.
    Value: a number of items, 1 or more."""
    return text.count_items(text.BULLET, answer) >= value


@metric("numbered_list")
def _(answer: str, value: Count) -> bool:
    """At least `value` lines begin with a number (`1.` or `1)`, bold or not) and a space; code aside.
    Value: a number of items, 1 or more."""
    return text.count_items(text.NUMBER, answer) >= value


@metric("sentences_at_most")
def _(answer: str, value: Count) -> bool:
    """The answer has no more sentences; a heading or a list item counts as one. Value: 1 or more."""
    return len(text.sentences(answer)) <= value


@metric("sentences_at_least")
def _(answer: str, value: Count) -> bool:
    """The answer has no fewer sentences; a heading or a list item counts as one. Value: 1 or more."""
    return len(text.sentences(answer)) >= value


@metric("words_at_most")
def _(answer: str, value: Count) -> bool:
    """The answer has no more words, parted by white space. Value: 1 or more."""
    return len(text.words(answer)) <= value


@metric("words_at_least")
def _(answer: str, value: Count) -> bool:
    """The answer has no fewer words, parted by white space. Value: 1 or more."""
    return len(text.words(answer)) >= value


@metric("ends_with_question")
def _(answer: str) -> bool:
    """The answer's last sentence ends with a question mark, before quotes or emoji if any. Value: none."""
    return text.FINAL_QUESTION.match(answer) is not None


@metric("all_of")
def _(answer: str, baseline: str, value: Annotated[tuple[Metric, ...], some("a list of metrics")]) -> bool:
    """Every one of several metrics holds. Value: a list of metrics, each `{name: ..., value: ...}`."""
    return all(check(part, answer, baseline) for part in value)
