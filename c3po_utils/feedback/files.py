"""Feedback files, YAML and JSON, to records: kinds of values, and errors that name file, line, key and nearest name."""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from c3po_utils.feedback import patterns, text
from c3po_utils.runs import documents, nearest

MOST_PROBLEMS = 100  # of a file, told at one time
LONGEST_NAME = 64  # characters: two of them, joined by +, are one folder's name
ID_WORDS = 5  # of a sentence, in the id that is made from it
Place = Callable[[], str]  # "file, line 3": looked for when it is wanted


class FeedbackError(ValueError):
    """All that is wrong with files of feedback, or with a selection: one line each in `problems`."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class Record(BaseModel):
    """An immutable record whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


R = TypeVar("R", bound=Record)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text that is not empty")
    return value.strip()


def _slug(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9]+([_-][a-z0-9]+)*", value):
        raise ValueError("expected a name of lower-case letters and digits, with _ or - between them")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"expected a name of at most {LONGEST_NAME} characters, as folders have it")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Slug = Annotated[str, BeforeValidator(_slug)]


def new_id(content: str, kind: str, taken: set[str]) -> str:
    """A readable id from a sentence's first longer words; numbered where there are none, or it is taken."""
    plain = unicodedata.normalize("NFKD", content).encode("ascii", "ignore").decode().lower()
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if len(word) > 3][:ID_WORDS]
    room = LONGEST_NAME - len(f"_{len(taken) + 1}")  # an id has a limit, and words of models have none
    stem, number = "_".join(words)[:room].rstrip("_") or kind, 1
    id = stem if words else f"{stem}_1"
    while id in taken:
        number += 1
        id = f"{stem}_{number}"
    return id


def some(expected: str) -> BeforeValidator:
    """A list that is not empty; one text stands for a list of it."""

    def validate(value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"expected {expected}")
        return value

    return BeforeValidator(validate)


def _needle(value: Any) -> str:
    if not isinstance(value, str) or not text.normalise(value):
        raise ValueError("expected a text (in quotes: YAML has its own ideas of yes, no, 7, # and &)")
    return value


def _needle_with_word(value: Any) -> str:
    if not text.cleaned(_needle(value)):
        raise ValueError("expected a text with a letter or a digit in it, as the rest is ignored")
    return value


TEXTS = some("a text or a list of texts")
Texts = Annotated[tuple[Annotated[Any, BeforeValidator(_needle)], ...], TEXTS]
TextsWithWords = Annotated[tuple[Annotated[Any, BeforeValidator(_needle_with_word)], ...], TEXTS]
Regex = Annotated[str, Field(strict=True, min_length=1), AfterValidator(patterns.tried)]
Count = Annotated[int, Field(strict=True, ge=1)]


def read_yaml(path: Path, key: str, model: type[R]) -> tuple[list[tuple[R, Place]], list[str]]:
    """The records below a top key of a YAML file, each with its place ("file, line 3"); and the problems.

    A file with many problems is not read on after `MOST_PROBLEMS` of them.
    """
    try:
        document = documents.load_file(path)
    except documents.DocumentError as error:
        return [], [f"{path}, line {error.line}: {error}"]
    except OSError as error:
        return [], [f"{path}: {error}"]
    records: list[tuple[R, Place]] = []
    found = chain(document.problems, _read_records(path, document, key, model, records))
    with documents.no_collector():
        problems = sorted(islice(found, MOST_PROBLEMS))
    told = [f"{path}, line {line}: {problem}" for line, problem in problems]
    return records, [*told, f"{path}: and so on; these are the first {len(told)}"] if next(found, None) else told


def _read_records(
    path: Path, document: documents.Document, key: str, model: type[R], records: list[tuple[R, Place]]
) -> Iterator[tuple[int, str]]:
    """Line and problem of each thing that is wrong; what is right goes into `records`."""
    data = document.value
    items = data.get(key) if isinstance(data, dict) else None
    if not isinstance(items, list) or not items:
        yield 1, f"expected the top key {key!r} with a list of records, found {_short(data)}"
    for other in (data.keys() - {key}) if items else ():
        yield document.line((other,)), f"expected no top key but {key!r}, found {_short(other)}"
    for number, item in enumerate(items if isinstance(items, list) else ()):
        try:
            records.append((model.model_validate(item), partial(_place, path, document, (key, number))))
        except ValidationError as error:
            for loc, problem in problems_of(error, model):
                place = (key, number, *loc)
                yield document.line(place), f"{dotted(place)}: {problem}"


def _place(path: Path, document: documents.Document, loc: documents.Loc) -> str:
    return f"{path}, line {document.line(loc)}"


def parse_json(content: str | bytes, model: type[R], path: Path, line: int | None = None) -> R:
    """The record in a JSON text: a file, or one `line` of a JSON Lines file. Raises FeedbackError."""
    try:
        return model.model_validate(json.loads(content, object_pairs_hook=unrepeated))
    except json.JSONDecodeError as error:
        found = _short(error.doc[error.pos :] or None)
        place = f"{path}, line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise FeedbackError([f"{place}: expected JSON, found {found} ({error.msg})"]) from error
    except ValidationError as error:
        place = f"{path}, line {line}" if line else str(path)
        found = [f"{place}, {dotted(loc)}: {problem}" for loc, problem in problems_of(error, model)]
        raise FeedbackError(found) from error
    except (ValueError, RecursionError) as error:
        problem = "expected fewer lists and objects inside each other" if isinstance(error, RecursionError) else error
        raise FeedbackError([f"{path}{f', line {line}' if line else ''}: {problem}"]) from error


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each key once, found {twice!r} twice in one object")
    return data


def dotted(loc: documents.Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in loc).lstrip(".")


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    shortener.maxlevel = 2
    return shortener.repr(value)


def problems_of(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[documents.Loc, str]]:
    """Where, and what was expected and found, in our words."""
    for problem in error.errors(include_url=False):
        loc, found = problem["loc"], _short(problem["input"])
        expected = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        expected = re.sub("a valid dictionary.*", "a mapping", expected).replace("a valid tuple", "a list")
        match problem["type"]:
            case "missing":
                expected, found = "expected this key", "nothing"
            case "extra_forbidden":
                keys = _model_at(model, loc[:-1]).model_fields
                expected, found = f"expected a known key ({nearest(loc[-1], keys)})", _short(loc[-1])
            case "literal_error":
                valid = re.findall("'(.*?)'", expected)
                expected += f" ({nearest(problem['input'], valid)})"
        yield loc, f"{expected}, found {found}"


def _model_at(model: type[BaseModel], loc: documents.Loc) -> type[BaseModel]:
    """The model of the mapping at `loc`; records in a value of any type are of the model that holds it."""
    for part in loc:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
