"""Notebook parameters: read from the tagged cell and checked (papermill_engine.py does so for every execution)."""

from __future__ import annotations

import ast
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import nbformat
from pydantic import TypeAdapter, ValidationError


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or a value of another type."""


def declared(notebook: nbformat.NotebookNode) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of the cell tagged `parameters`: lines `name: type = literal  # help`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"expected one cell tagged 'parameters', found {len(cells)}")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind = eval(ast.unparse(statement.annotation), {"__builtins__": {}}, _TYPES)
            found[statement.target.id] = (kind, ast.literal_eval(statement.value))
    return found


_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


def resolve(notebook: nbformat.NotebookNode | Path | str, given: dict[str, Any]) -> dict[str, Any]:
    """The notebook's parameters with the given values in place of defaults.

    Raises:
        ParameterError: unknown name (with the nearest valid one) or a value of the wrong type.
    """
    if not isinstance(notebook, nbformat.NotebookNode):
        notebook = nbformat.read(notebook, as_version=4)
    parameters = declared(notebook)
    values = {name: default for name, (_, default) in parameters.items()}
    for name, value in given.items():
        if name not in parameters:
            near = get_close_matches(name, parameters, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"unknown parameter {name!r}; expected one of {sorted(parameters)}{hint}")
        kind = parameters[name][0]
        try:
            values[name] = TypeAdapter(kind).validate_python(value, strict=kind is not float)
        except ValidationError:
            raise ParameterError(f"parameter {name!r}: expected {kind.__name__}, found {value!r}") from None
    return values
