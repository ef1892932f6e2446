"""Notebook parameters: read from the tagged cell and checked (papermill_engine.py does so for every execution)."""

from __future__ import annotations

import ast
import difflib
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from c3po_utils.runs import documents


def nearest(found: object, valid: Iterable[str]) -> str:
    """`did you mean 'x'?`, or all valid names when none is near."""
    names = {name.casefold(): name for name in sorted(valid)}
    close = difflib.get_close_matches(str(found).casefold(), names, n=1)
    return f"did you mean {names[close[0]]!r}?" if close else "valid: " + ", ".join(names.values())


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or a value of another type."""


def declared(notebook: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of the cell tagged `parameters`: lines `name: type = literal  # help`."""
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"expected one cell tagged 'parameters', found {len(cells)}")
    found = {}
    for statement in ast.parse("".join(cells[0]["source"])).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind = eval(ast.unparse(statement.annotation), {"__builtins__": {}}, _TYPES)
            found[statement.target.id] = (kind, ast.literal_eval(statement.value))
    return found


@cache
def _declared_in(notebook: Path) -> dict[str, tuple[Any, Any]]:
    return declared(json.loads(notebook.read_text(encoding="utf-8")))  # nbformat takes a second to import


def kinds(notebook: Path) -> dict[str, Any]:
    """The notebook's parameters by name, each with its type."""
    return {name: kind for name, (kind, _) in _declared_in(notebook).items()}


_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


def resolve(notebook: dict[str, Any] | Path, given: dict[str, Any]) -> dict[str, Any]:
    """The notebook's parameters with the given values in place of defaults.

    Raises:
        ParameterError: unknown name (with the nearest valid one) or a value of the wrong type.
    """
    parameters = _declared_in(notebook) if isinstance(notebook, Path) else declared(notebook)
    defaults = {name: default for name, (_, default) in parameters.items()}
    return {**deepcopy(defaults), **checked(given, {name: kind for name, (kind, _) in parameters.items()})}


def checked(given: dict[str, Any], kinds: dict[str, Any], what: str = "parameter") -> dict[str, Any]:
    """The values given, by name, if `kinds` has each name and each value is of its type, as JSON has types.

    Raises:
        ParameterError: unknown name (with the nearest valid one) or a value of the wrong type.
    """
    values = {}
    for name, value in given.items():
        if name not in kinds:
            raise ParameterError(f"unknown {what} {name!r} ({nearest(name, kinds)})")
        try:
            if kinds[name] is float and isinstance(value, bool):  # YAML's `on` and `yes`, which pydantic takes for 1.0
                raise TypeError
            values[name] = _reader(kinds[name]).validate_json(json.dumps(value), strict=kinds[name] is not float)
        except (ValidationError, TypeError):
            kind = getattr(kinds[name], "__name__", kinds[name])
            raise ParameterError(f"{what} {name!r}: expected {kind}, found {value!r}") from None
    return values


@cache
def _reader(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def at_least(values: Mapping[str, Any], least: Mapping[str, float], what: str = "parameter") -> None:
    """Raise ParameterError for the first value below its least; NaN is below everything."""
    for name, low in least.items():
        if not values[name] >= low:
            raise ParameterError(f"{what} {name!r}: expected {low} or more, found {values[name]}")


def later(default: Any) -> Any:
    """The field of a setting that was added after runs were stored: at its default, `recorded` does not name it."""
    return field(default=default, metadata={"later": True})


def passing(default: Any) -> Any:
    """The field of a setting that does not change what comes out: `recorded` never names it."""
    return field(default=default, metadata={"passing": True})


def recorded(settings: Any) -> dict[str, Any]:
    """What a manifest says of a dataclass of settings, so that a `later` one leaves finished stages as they are."""
    unsaid = {
        f.name
        for f in fields(settings)
        if "passing" in f.metadata or ("later" in f.metadata and getattr(settings, f.name) == f.default)
    }
    return {name: value for name, value in asdict(settings).items() if name not in unsaid}


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` of a command line, the values in YAML. Raises SystemExit for anything else."""
    values = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise SystemExit(f"override {override!r}: expected key=value")
        try:
            document = documents.load(value)
        except documents.DocumentError as error:
            raise SystemExit(f"override {override!r}: {error}") from error
        for _, problem in document.problems:
            raise SystemExit(f"override {override!r}: {problem}")
        values[key] = document.value
    return values


def written_overrides(values: Mapping[str, Any]) -> str:
    """What `read_overrides` reads, as it is typed in a shell."""
    return " ".join(f"{key}={shlex.quote(_in_yaml(value))}" for key, value in values.items())


def _in_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()
