"""Reading feedback files: YAML and JSON into records; errors name file, line, key and the nearest name."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

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


class _Loader(yaml.SafeLoader):
    """YAML as everybody knows it, but for dates: they stay text."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)


def read_yaml(path: Path, key: str, model: type[R]) -> tuple[list[tuple[R, str]], list[str]]:
    """The records below a top key of a YAML file, each with its place ("file, line 3"); and the problems."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        problems = list(_repeated_keys(root))
        data = loader.construct_document(root) if root else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        return [], [f"{path}{_yaml_problem(error)}"]
    items = data.get(key) if isinstance(data, dict) else None
    if not isinstance(items, list) or not items:
        problems.append((1, f"expected the top key {key!r} with a list of records, found {_short(data)}"))
    for other in (data.keys() - {key}) if items else ():
        problems.append((_line(root, (other,)), f"expected no top key but {key!r}, found {other!r}"))
    records = []
    for number, item in enumerate(items if isinstance(items, list) else ()):
        try:
            records.append((model.model_validate(item), f"{path}, line {_line(root, (key, number))}"))
        except ValidationError as error:
            for loc, problem in _problems(error, model):
                place = (key, number, *loc)
                problems.append((_line(root, place), f"{_dotted(place)}: {problem}"))
    return records, [f"{path}, line {line}: {problem}" for line, problem in sorted(problems)]


def parse_json(content: str, model: type[R], path: Path, line: int | None = None) -> R:
    """The record in a JSON text: a file, or one `line` of a JSON Lines file. Raises FeedbackError."""
    try:
        return model.model_validate(json.loads(content, object_pairs_hook=_unrepeated))
    except json.JSONDecodeError as error:
        found = _short(content[error.pos :] or None)
        place = f"{path}, line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise FeedbackError([f"{place}: expected JSON, found {found} ({error.msg})"]) from error
    except ValidationError as error:
        place = f"{path}, line {line}" if line else str(path)
        found = [f"{place}, {_dotted(loc)}: {problem}" for loc, problem in _problems(error, model)]
        raise FeedbackError(found) from error
    except ValueError as error:
        raise FeedbackError([f"{path}{f', line {line}' if line else ''}: {error}"]) from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each key once, found {twice!r} twice in one object")
    return data


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Line and problem of the keys that a mapping has twice: YAML would silently keep the last."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        nodes += [value for _, value in node.value]
        first: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                yield line, f"{name}: expected each key once, found it on line {first[name]} too"
            first.setdefault(name, line)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": {error}"
    return f", line {mark.line + 1}: expected YAML ({error.problem}; texts with : # & * or quotes go in quotes)"


def _line(node: yaml.Node, loc: Loc) -> int:
    """The line, from 1, of the deepest part of `loc` that the document has."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            inner = {key.value: (key, value) for key, value in node.value}.get(str(part))
        else:
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            inner = (items[part],) * 2 if isinstance(part, int) and part < len(items) else None
        if inner is None:
            break
        line, node = inner[0].start_mark.line, inner[1]
    return line + 1


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    shortener.maxlevel = 2
    return shortener.repr(value)


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Loc, str]]:
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
