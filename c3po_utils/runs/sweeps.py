"""Sweeps: what can be swept, which values are tried together, and how people would call them.

A sweep is a grid, `{setting: [values]}`, or a list of settings that go together, `[{setting: value}]`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from c3po_utils.runs import documents, parameters
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import GROUPS, NOTEBOOKS
from c3po_utils.sampling import SampleSettings
from c3po_utils.training import limits, methods

SHORT = {"learning_rate": "lr", "near_weight": "near", "out_weight": "out"}  # in labels
LONG = {short: name for name, short in SHORT.items()}
ANY = "train.training_arguments."  # any field of trl's DPOConfig
# Parameters that name a job, which a run says for all of its jobs: by parameter, the run's key.
OF_JOB = {"run": "run", "feedback": "feedbacks", "method": "methods", "methods": "methods"}
Combination = dict[str, Any]  # values by setting: {"train.lora.r": 16}


@cache
def settings() -> dict[str, Any]:
    """What can be swept, by its place in a run's YAML, with its type."""
    kinds = {}
    for group in ("train", "sample"):
        declared = parameters.kinds(NOTEBOOKS / GROUPS[group])
        own = {name: kind for name, kind in declared.items() if name not in OF_JOB}
        kinds |= {f"{group}.{name}": kind for name, kind in own.items() if kind is not dict}
    kinds |= {f"train.lora.{name}": kind for name, kind in limits.LORA.items()}
    kinds |= {f"train.method_settings.{name}": kind for name, kind in get_type_hints(methods.Method).items()}
    options = get_type_hints(SampleSettings)
    kinds |= {f"sample.options.{name}": kind for name, kind in options.items() if f"sample.{name}" not in kinds}
    return kinds


def setting(name: str) -> str:
    """The place of a setting, which may be named by its last parts, or its first and last: `lora.r`, `train.beta`.

    Raises:
        ParameterError: none has this name (with the nearest that has), or several have.
    """
    if name.startswith((ANY, ANY.removeprefix("train."))):
        return ANY + name.rpartition("arguments.")[2]
    known = settings()
    name = LONG.get(name, name)
    found = [full for full in known if name in (full, _ends(full)) or full.endswith(f".{name}")]
    if name in known or len(found) == 1:
        return name if name in known else found[0]
    if found:
        raise ParameterError(f"sweep: {name!r} may be {' or '.join(found)}")
    names = known if "." in name else {full.rpartition(".")[2] for full in known}
    close = nearest(name, [*names, *(full.partition(".")[2] for full in known if "." in name)])
    close = close if close.startswith("did") else f"expected a setting of training or sampling, {close}"
    raise ParameterError(f"sweep: unknown setting {name!r} ({close})")


def _ends(full: str) -> str:
    """The group and the name, without what lies between."""
    parts = full.split(".")
    return f"{parts[0]}.{parts[-1]}"


def _typed(full: str, value: Any) -> Any:
    if full.startswith(ANY):
        return _number(value)
    kind = settings()[full]
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    value = _number(value) if kind is not str else value
    return parameters.checked({full: value}, {full: kind}, "sweep, setting")[full]


def _number(value: Any) -> Any:
    """YAML takes 1e-5 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def combinations(sweep: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[Combination]:
    """Those of a grid, the last setting changing fastest; or those of a list, as they are.

    Raises:
        ParameterError: a setting that there is not, or a value of another type.
    """
    if not isinstance(sweep, Mapping):
        return [{setting(name): _typed(setting(name), value) for name, value in row.items()} for row in sweep]
    columns: dict[str, list[Any]] = {}
    for name, values in sweep.items():
        full, values = setting(name), values if isinstance(values, list) else [values]
        if full in columns or not values:
            raise ParameterError(f"sweep: {name}: expected values, once; found {values if values else 'none'}")
        columns[full] = [_typed(full, value) for value in values]
    return [dict(zip(columns, row, strict=True)) for row in product(*columns.values())]


def label(combination: Combination) -> str:
    """Settings and values, readable and fit for a folder's name: `lr=1e-4,near=1`."""
    parts = ((full.rpartition(".")[2], value) for full, value in combination.items())
    return ",".join(f"{SHORT.get(name, name)}={_shown(value)}" for name, value in parts)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:e}".partition("e")
        scientific = f"{float(mantissa):g}e{int(exponent)}"
        return min(f"{value:.12g}", scientific, key=len)
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(one if one.isalnum() or one in "._-+" else "-" for one in text)


def read_options(grids: Iterable[str], file: Path | None) -> Any:
    """The sweep of a command line: `setting=value,value`, each an axis of one grid, or a file of tuples.

    Raises:
        ParameterError: neither form, or both.
    """
    if grids and file:
        raise ParameterError("sweep: expected a grid or a file, found both")
    grid = {}
    for given in grids:
        name, separator, values = given.partition("=")
        if not separator or name in grid:
            raise ParameterError(f"sweep {given!r}: expected setting=value,value, each setting once")
        grid[name] = _yaml(f"[{values}]", f"sweep {given!r}")
    return read_tuples(file) if file else grid


def _yaml(text: str, place: str) -> Any:
    try:
        return documents.load(text).value
    except documents.DocumentError as error:
        raise ParameterError(f"{place}: {error}") from error


def read_tuples(path: Path) -> list[dict[str, Any]]:
    """Settings that go together: a YAML list of mappings, or a CSV whose columns are settings (empty: not this one).

    Raises:
        ParameterError: file and line of what is wrong.
    """
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _yaml_rows(path))
    for line, row in rows:
        with at(f"{path}, line {line}"):
            combinations([row])
    return [row for _, row in rows]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if "" in row or None in row.values():
                raise ParameterError(f"{place}: expected {len(reader.fieldnames or ())} values, as the first line has")
            yield reader.line_num, {name.strip(): _yaml(text, place) for name, text in row.items() if text.strip()}


def _yaml_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    document = documents.read_document(path)
    if not isinstance(document.value, list) or not all(isinstance(row, dict) for row in document.value):
        raise ParameterError(f"{path}: expected a list of mappings, such as `- {{learning_rate: 1.0e-4, lora.r: 16}}`")
    yield from ((document.line((number,)), row) for number, row in enumerate(document.value))


@contextmanager
def at(place: str, kind: type[Exception] = ParameterError) -> Iterator[None]:
    """Errors of this kind as ParameterError that begins with the place."""
    try:
        yield
    except kind as error:
        raise ParameterError(f"{place}: {error}") from error
