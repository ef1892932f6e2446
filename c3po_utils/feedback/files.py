"""Feedback files, YAML and JSON, to records: kinds of values, and errors that name file, line, key and nearest name."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from c3po_utils.feedback import text
from c3po_utils.runs import nearest

Loc = tuple[int | str, ...]  # where a value is, as keys and list places: ("feedbacks", 0, "metric", "name")


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
    return value


Text = Annotated[str, BeforeValidator(_text)]
Slug = Annotated[str, BeforeValidator(_slug)]


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


def _regex(value: str) -> str:
    try:
        text.compile_regex(value)
    except re.error as error:
        raise ValueError(f"expected a regular expression of Python's re ({error})") from error
    return value


TEXTS = some("a text or a list of texts")
Texts = Annotated[tuple[Annotated[Any, BeforeValidator(_needle)], ...], TEXTS]
TextsWithWords = Annotated[tuple[Annotated[Any, BeforeValidator(_needle_with_word)], ...], TEXTS]
Regex = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_regex)]
Count = Annotated[int, Field(strict=True, ge=1)]


class _Resolver(VersionedResolver):
    """What unquoted texts are to PyYAML (YAML 1.1: `no` is false, but `y` a text), dates aside: they stay text."""

    processing_version = (1, 1)
    versioned_resolver: ClassVar = {
        first: [(tag, regex) for tag, regex in kinds if tag != "tag:yaml.org,2002:timestamp"]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Constructor(RoundTripConstructor):
    """Values with their places, and the keys that a mapping has twice: YAML would silently keep the last."""

    yaml_constructors = {None: SafeConstructor.construct_undefined} | {
        f"tag:yaml.org,2002:{kind}": getattr(constructor, f"construct_yaml_{kind}")
        for constructor, kinds in [(RoundTripConstructor, "map seq"), (SafeConstructor, "str int float bool null")]
        for kind in kinds.split()
    }

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.repeated: list[tuple[int, str]] = []  # line and problem

    def construct_scalar(self, node: Any) -> str:
        return str(super().construct_scalar(node))  # ruamel's own texts remember how they were written

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if not isinstance(key_node, ScalarNode):
            raise ConstructorError(None, None, "found unhashable key", key_node.start_mark)
        if key in mapping:
            problem = f"{key}: expected each key once, found it on line {mapping.lc.key(key)[0] + 1} too"
            self.repeated.append((key_node.start_mark.line + 1, problem))
        return True


def _load_yaml(content: str) -> tuple[Any, list[tuple[int, str]]]:
    """What a YAML text says, mappings and lists with their places (`lc`); and the lines where a key is repeated."""
    loader = YAML(typ="rt", pure=True)
    loader.Resolver, loader.Constructor = _Resolver, _Constructor
    return loader.load(content), loader.constructor.repeated


def read_yaml(path: Path, key: str, model: type[R]) -> tuple[list[tuple[R, str]], list[str]]:
    """The records below a top key of a YAML file, each with its place ("file, line 3"); and the problems."""
    try:
        data, problems = _load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        return [], [f"{path}{_yaml_problem(error)}"]
    items = data.get(key) if isinstance(data, dict) else None
    if not isinstance(items, list) or not items:
        problems.append((1, f"expected the top key {key!r} with a list of records, found {_short(data)}"))
    for other in (data.keys() - {key}) if items else ():
        problems.append((_line(data, (other,)), f"expected no top key but {key!r}, found {other!r}"))
    records = []
    for number, item in enumerate(items if isinstance(items, list) else ()):
        try:
            records.append((model.model_validate(item), f"{path}, line {_line(data, (key, number))}"))
        except ValidationError as error:
            for loc, problem in problems_of(error, model):
                place = (key, number, *loc)
                problems.append((_line(data, place), f"{dotted(place)}: {problem}"))
    return records, [f"{path}, line {line}: {problem}" for line, problem in sorted(problems)]


def parse_json(content: str, model: type[R], path: Path, line: int | None = None) -> R:
    """The record in a JSON text: a file, or one `line` of a JSON Lines file. Raises FeedbackError."""
    try:
        return model.model_validate(json.loads(content, object_pairs_hook=unrepeated))
    except json.JSONDecodeError as error:
        found = _short(content[error.pos :] or None)
        place = f"{path}, line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise FeedbackError([f"{place}: expected JSON, found {found} ({error.msg})"]) from error
    except ValidationError as error:
        place = f"{path}, line {line}" if line else str(path)
        found = [f"{place}, {dotted(loc)}: {problem}" for loc, problem in problems_of(error, model)]
        raise FeedbackError(found) from error
    except ValueError as error:
        raise FeedbackError([f"{path}{f', line {line}' if line else ''}: {error}"]) from error


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each key once, found {twice!r} twice in one object")
    return data


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": {error}"
    return f", line {mark.line + 1}: expected YAML ({error.problem}; texts with : # & * or quotes go in quotes)"


def _line(data: Any, loc: Loc) -> int:
    """The line, from 1, of the deepest part of `loc` that the document has."""
    line = data.lc.line if hasattr(data, "lc") else 0
    for part in loc:
        try:
            line = (data.lc.key if isinstance(data, dict) else data.lc.item)(part)[0]
            data = data[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1


def dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    shortener.maxlevel = 2
    shortener.repr_CommentedMap, shortener.repr_CommentedSeq = shortener.repr_dict, shortener.repr_list  # ruamel's
    return shortener.repr(value)


def problems_of(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Loc, str]]:
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
                expected, found = f"expected a known key ({nearest(loc[-1], keys)})", repr(loc[-1])
            case "literal_error":
                valid = re.findall("'(.*?)'", expected)
                expected += f" ({nearest(problem['input'], valid)})"
        yield loc, f"{expected}, found {found}"


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """The model of the mapping at `loc`; records in a value of any type are of the model that holds it."""
    for part in loc:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
