"""A run's settings: from its YAML, over the file that it is based on, with a command line's overrides on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from c3po_utils.feedback import files
from c3po_utils.runs import documents, parameters
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import BUNDLED
from c3po_utils.training import registered

RUNS = BUNDLED / "notebooks" / "params" / "runs"


class RunConfig(BaseModel):
    """A run's YAML: what differs from the notebooks' own defaults."""

    model_config = ConfigDict(extra="forbid")

    run: str
    workers: PositiveInt | None = None  # jobs at one time, each on its GPU or share of the cores; else what suits
    executor: Literal["local", "ray", "slurm", "modal"] = "local"  # where jobs run
    executor_settings: dict[str, Any] = {}  # arguments of the executor's class, such as the address of a cluster
    store: str = ""  # URL of the run's folder for machines that share no disk: s3://bucket/run, gs://..., a path
    feedback_set: str | list[str] = "embedded"  # a set in feedback/, or the path of a YAML file; or several
    feedbacks: list[str] | None = None  # ids; all of the set when left out
    methods: list[str]
    sample: dict[str, Any] = {}
    train: dict[str, Any] = {}  # for every trained method
    train_methods: dict[str, dict[str, Any]] = {}  # for one method, or one variant `method@label`, over `train`
    evaluate: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    two_feedbacks: list[tuple[str, str]] = []  # ids of two feedbacks each, to be put into one model
    two_feedbacks_methods: list[str] | None = None  # all that are trained when left out
    two_feedbacks_how: list[Literal["add", "joint"]] = ["add"]  # `add` their adapters, train one adapter `joint`ly


def run_file(name: Path | str) -> Path:
    """The YAML of a run: a path, or the name of one in notebooks/params/runs.

    Raises:
        ParameterError: there is none, with the nearest name.
    """
    for path in (Path(name), RUNS / f"{name}.yaml", BUNDLED / name):
        if path.is_file():
            return path
    known = [path.stem for path in RUNS.glob("*.yaml")]
    raise ParameterError(f"no run {str(name)!r}: expected a YAML file, or a name ({nearest(Path(name).stem, known)})")


def read_config(name: Path | str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A run's YAML over the file that its `base` names, beside it, if it has one; `above` are those that stand on it.

    Raises:
        ParameterError: no such file, no settings of a run in it, or a base that stands on itself.
    """
    path = run_file(name)
    if path.resolve() in above:
        raise ParameterError(f"{above[-1]}, base: expected another file, found {path.name!r}, which stands on it")
    values = _settings(path)
    if "method" in values:
        raise ParameterError(
            f"{path} changes the method {values['method']!r}, and says nothing of a run: name the method in the"
            f" `methods` of a run's YAML and the rest of this file below its `train_methods`, or train it alone with"
            f" `papermill 02_train.ipynb OUT.ipynb -f {path}`"
        )
    base = values.pop("base", None)
    _refuse_unknown(values, f"{path}, ")
    if base is not None and not isinstance(base, str):
        raise ParameterError(f"{path}, base: expected the name of a YAML file, found {base!r}")
    return {**read_config(path.parent / base, (*above, path.resolve())), **values} if base else values


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = documents.read(path)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: expected a mapping of settings, found {str(values)[:80]!r}")
    return values


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings from YAML, with `key=value` or `group.key=value` overrides (value in YAML) on top.

    What an override says of `train` holds for every method, also where the file says otherwise for one.

    Raises:
        ParameterError: an unknown key (with the nearest that there is), or a value of another kind.
    """
    values = read_config(path)
    for key, value in sorted(parameters.read_overrides(overrides).items()):  # `train` before `train_methods`
        _override(values, key, value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = (f"{files.dotted(place)}: {problem}" for place, problem in files.problems_of(error, RunConfig))
        raise ParameterError("; ".join(problems)) from None


def _refuse_unknown(values: dict[str, Any], place: str = "") -> None:
    for key in values.keys() - RunConfig.model_fields.keys():
        raise ParameterError(f"{place}{key}: expected a known key ({nearest(key, RunConfig.model_fields)})")


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    group, _, name = key.partition(".")
    _refuse_unknown({group: value}, "override ")
    if name and RunConfig.model_fields[group].default != {}:
        raise ParameterError(f"override {key}: {group} has no keys of its own")
    changed = {name: value} if name else value
    values[group] = {**values.get(group, {}), **changed} if name else value
    if group == "train" and isinstance(changed, dict):
        methods = values.get("train_methods", {})
        values["train_methods"] = {method: _without(own, changed, method) for method, own in methods.items()}


def _without(own: dict[str, Any], changed: dict[str, Any], method: str) -> dict[str, Any]:
    """A method's own training parameters but for those that an override of `train` changes."""
    kept = {key: value for key, value in own.items() if key not in changed or key == "method_settings"}
    if "method_settings" in own.keys() & changed.keys():
        given = changed["method_settings"]
        given = given.get(registered(method), {}) if all(isinstance(each, dict) for each in given.values()) else given
        kept["method_settings"] = {**own["method_settings"], **given}
    return kept
