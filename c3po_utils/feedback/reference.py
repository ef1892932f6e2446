"""Feedback of the reference implementation, Python modules of `Feedback(...)` records, as records of ours.

The modules are read from their syntax tree (python_data.py) and never run. What has no counterpart here is a problem
with file, line and key.
"""

from __future__ import annotations

import ast
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from c3po_utils.feedback.files import FeedbackError, dotted, new_id, problems_of
from c3po_utils.feedback.foreign import unknown
from c3po_utils.feedback.python_data import NotData, Reader, assigned, called
from c3po_utils.feedback.records import Feedback
from c3po_utils.feedback.reference_metrics import LENGTH_RATIO, member, metric

RECORD = "Feedback"
ENUMS = frozenset({"Scope", "Type", "Metric", "Comparison"})
POSITIONAL = ("content", "domain", "effect", "scope", "type")  # the order of all others differs between versions
DATA = ("prompts", "negative_prompts", "general_prompts")  # filled while it runs
FIELDS = (*POSITIONAL, "metric", "metric_value", "comparison", "categories", *DATA)
STATED = {  # what a label, the name of a list or that of a module says of its records
    "manual": ("source", "human"), "human": ("source", "human"), "gpt": ("source", "model"),
    "model": ("source", "model"), "collie": ("source", "program"), "program": ("source", "program"),
    "style": ("kind", "style"), "content": ("kind", "content"),
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What the modules do not say: `source` and `kind` of records that state none, and how much longer is longer."""

    source: str = ""
    kind: str = ""
    length_ratio: float = LENGTH_RATIO


def reference_key(content: str, domain: str, effect: str) -> str:
    """The id that the reference gives a feedback: the names of its data folders end with it."""
    return str(uuid.uuid5(uuid.UUID(int=0), content + domain + effect))


def has_records(tree: ast.Module) -> bool:
    """Whether a module makes `Feedback(...)` records."""
    return any(isinstance(node, ast.Call) and called(node) == RECORD for node in ast.walk(tree))


def only_constants(tree: ast.Module) -> bool:
    """Whether a module holds nothing but imports, constants and the reference's own classes."""
    return all(_passed_over(statement) or list(assigned(statement)) for statement in tree.body)


def read_module(path: Path, tree: ast.Module, given: Given, ids: dict[str, str]) -> tuple[list[Feedback], list[str]]:
    """The records of a module, and what of it is not understood, with file, line and key.

    Args:
        ids: ids of ours by the reference's (`reference_key`), to which those of new records are added.
    """
    reader, records, problems = Reader(path, tree, ENUMS), [], []
    for line, name, call in _calls(reader, problems):
        try:
            record = _record(reader, call, given, [name, path.stem], ids)
        except NotData as error:
            problems.append(f"{path}, line {error.line}: {error}")
        except FeedbackError as error:
            problems += [f"{path}, line {line}: {problem}" for problem in error.problems]
        else:
            repeated = [known for known in records if known.id == record.id]
            problems += [
                f"{path}, line {line}: expected each record once, found {known.id!r} again" for known in repeated
            ]
            records += [] if repeated else [record]
    return records, problems


def _calls(reader: Reader, problems: list[str]) -> Iterator[tuple[int, str, ast.Call]]:
    """Line, name of the list, and call of every record at a module's top; what else stands there is a problem."""
    lists: set[str] = set()
    for statement in reader.tree.body:
        given = list(assigned(statement)) or list(_added(statement))
        if not given and not _passed_over(statement):
            found = type(statement).__name__
            problems.append(
                f"{reader.path}, line {statement.lineno}: expected constants and records, found code ({found})"
            )
        for name, value in given:
            items = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
            if any(_is_record(item) for item in items) or (all(_is_list(item, lists) for item in items) and items):
                lists.add(name)
                yield from ((item.lineno, name, item) for item in items if _is_record(item))
                items = [item for item in items if not _is_record(item) and not _is_list(item, lists)]
            else:
                items = [value]
            for item in items:
                try:
                    reader.value(item)
                except NotData as error:
                    problems.append(f"{reader.path}, line {error.line}: {name}: {error}")
                except FeedbackError as error:
                    problems += error.problems


def _is_record(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and called(node) == RECORD


def _is_list(node: ast.expr, lists: set[str]) -> bool:
    """Whether it stands for records that were read already: names of lists, unpacked or added."""
    parts = [node]
    while parts:
        match parts.pop():
            case ast.Starred(value=part):
                parts.append(part)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                parts += [left, right]
            case ast.Name(id=name) if name in lists:
                pass
            case _:
                return False
    return True


def _added(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """`name.append(value)` and `name.extend(value)`."""
    match statement:
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append" | "extend"), args=[value])
        ):
            yield name, value


def _passed_over(statement: ast.stmt) -> bool:
    """Imports, texts that are comments, and the reference's own classes."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.ClassDef(name=name):
            return name in ENUMS or name == RECORD
    return False


def _record(reader: Reader, call: ast.Call, given: Given, names: list[str], ids: dict[str, str]) -> Feedback:
    """Raises FeedbackError with all that is wrong with it, and NotData for code in it."""
    fields, problems = _fields(reader, call)
    problems += [f"{key}: expected this key, found nothing" for key in POSITIONAL if fields.get(key) is None]
    problems += [f"{key}: expected None, found data" for key in DATA if fields.get(key) is not None]
    if problems:
        raise FeedbackError(problems)
    made = {key: fields[key] for key in ("content", "domain", "effect")}
    made["categories"] = fields.get("categories") or []
    made["scope"] = _told(problems, "scope", lambda: member(fields["scope"], "Scope").strip("_"))
    made["metric"] = _told(problems, "metric", lambda: metric(fields, given.length_ratio))
    labels = [label for label in made["categories"] if isinstance(label, str)]
    for key in ("source", "kind"):
        made[key] = _told(problems, key, lambda key=key: _stated(key, labels, names, getattr(given, key)))
    try:
        feedback = Feedback.model_validate(
            {"id": "unnamed", **{key: made[key] for key in made if made[key] is not None}}
        )
    except ValidationError as error:
        told = {problem.partition(":")[0] for problem in problems}
        problems += [f"{dotted(loc)}: {text}" for loc, text in problems_of(error, Feedback) if str(loc[0]) not in told]
    except (RecursionError, OverflowError) as error:  # Python's re, of a pattern
        problems.append(f"metric_value: {error}")
    if problems:
        raise FeedbackError(problems)
    key = reference_key(*(fields[name] for name in ("content", "domain", "effect")))
    ids.setdefault(key, new_id(feedback.content, feedback.kind, set(ids.values())))
    return feedback.model_copy(update={"id": ids[key]})


def _told(problems: list[str], key: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        problems.append(f"{key}: {error}")
        return None


def _fields(reader: Reader, call: ast.Call) -> tuple[dict[str, Any], list[str]]:
    """The values by field, and what is wrong with the fields' names."""
    if len(call.args) > len(POSITIONAL):
        raise FeedbackError([f"expected keywords after {', '.join(POSITIONAL)}, found {len(call.args)} values without"])
    fields: dict[str, Any] = {}
    problems: list[str] = []
    values = [*zip(POSITIONAL, call.args, strict=False), *((each.arg, each.value) for each in call.keywords)]
    for key, node in values:
        value = reader.value(node)
        if key is None and not isinstance(value, dict):
            raise NotData(node, "** of something else than a mapping")
        for name, each in value.items() if key is None else [(key, value)]:
            if name not in FIELDS:
                problems.append(unknown(name, FIELDS))
            elif name in fields:
                problems.append(f"{name}: expected it once, found it twice")
            fields[name] = each
    return fields, problems


def _stated(key: str, labels: list[str], names: list[str], given: str) -> str:
    """The source or kind that labels state, else the list's name, else the module's, else the option."""
    for place in (labels, *([name] for name in names)):
        words = {word for name in place for word in re.findall(r"[a-z]+", name.lower())}
        found = {value for word in words for field, value in [STATED.get(word, ("", ""))] if field == key}
        if len(found) > 1:
            raise ValueError(f"expected one, found {' and '.join(sorted(found))} in {place}")
        if found:
            return found.pop()
    if not given:
        raise ValueError(f"neither labels {labels} nor names {names} state it: expected the option --{key}")
    return given
