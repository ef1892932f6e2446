"""A run's settings: from its YAML, over the file that it is based on, with a command line's overrides on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, PrivateAttr, ValidationError

from c3po_utils.feedback import files
from c3po_utils.feedback.selection import Selection
from c3po_utils.runs import documents, parameters, sweeps, variants
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import BUNDLED, GROUPS, NOTEBOOKS, shown

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
    select: Selection = Selection()  # conditions that the run's feedbacks must meet, such as {category: travel}
    second_feedback: str = ""  # an id: every other feedback is put into one model with it
    methods: list[str]
    sweep: dict[str, Any] | list[dict[str, Any]] = {}  # settings to try, see runs/sweeps.py; becomes methods and runs
    sample: dict[str, Any] = {}
    train: dict[str, Any] = {}  # for every trained method
    train_methods: dict[str, dict[str, Any]] = {}  # for one method, or one variant `method@label`, over `train`
    evaluate: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    two_feedbacks: list[tuple[str, str]] = []  # ids of two feedbacks each, to be put into one model
    two_feedbacks_methods: list[str] | None = None  # all that are trained when left out
    two_feedbacks_how: list[Literal["add", "joint"]] = ["add"]  # `add` their adapters, train one adapter `joint`ly
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)  # by key, the file and line, or override, it is from

    def place(self, what: str) -> str:
        """What a settings error is about (`train, method dpo`), after the file and line of its key where known."""
        origin = self._origins.get(what.partition(",")[0], self._origins.get("", ""))
        return f"{origin}: {what}" if origin else what


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


@dataclass(frozen=True)
class _Layer:
    """One file of settings."""

    path: Path
    document: documents.Document
    values: dict[str, Any]

    def place(self, *loc: int | str) -> str:
        return f"{shown(self.path)}, line {self.document.line(loc)}"


def _merged(layers: Iterable[_Layer]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in layers:
        values = {**_moved(values, layer.values), **layer.values}
    return values


def _moved(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, where another `run` is given, without the folder of figures that was said for the one before."""
    figures = values.get("figures")
    if "run" not in given or given["run"] == values.get("run") or not isinstance(figures, dict):
        return values
    return {**values, "figures": {key: value for key, value in figures.items() if key != "output"}}


def _layers(name: Path | str, above: tuple[Path, ...] = ()) -> list[_Layer]:
    """A run's file after those that it stands on (`base`, beside it); `above` are those that stand on it.

    Raises:
        ParameterError: no such file, no settings of a run in it, or a base that stands on itself.
    """
    path = run_file(name)
    if path.resolve() in above:
        raise ParameterError(f"{above[-1]}, base: expected another file, found {path.name!r}, which stands on it")
    layer = _layer(path)
    if "method" in layer.values:
        raise ParameterError(
            f"{path} changes the method {layer.values['method']!r}, and says nothing of a run: name the method in the"
            f" `methods` of a run's YAML and the rest of this file below its `train_methods`, or train it alone with"
            f" `papermill 02_train.ipynb OUT.ipynb -f {path}`"
        )
    base = layer.values.pop("base", None)
    for key in layer.values:
        _refuse_unknown(key, f"{layer.place(key)}: ")
    if base is not None and not isinstance(base, str):
        raise ParameterError(f"{path}, base: expected the name of a YAML file, found {base!r}")
    return [*(_layers(path.parent / base, (*above, path.resolve())) if base else ()), layer]


def _layer(path: Path) -> _Layer:
    try:
        document = documents.read_document(path)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if not isinstance(document.value, dict):
        raise ParameterError(f"{path}: expected a mapping of settings, found {str(document.value)[:80]!r}")
    return _Layer(path, document, document.value)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings from YAML, with `key=value` or `group.key.key=value` overrides (value in YAML) on top.

    What an override says of `train` holds for every method, also where the file says otherwise for one.

    Raises:
        ParameterError: no such file, an unknown key (with the nearest that there is), or a value of another kind; or a
            sweep that makes several runs.
    """
    first, *others = load_runs(path, overrides)
    if others:
        raise ParameterError(f"{path}: its sweep makes {1 + len(others)} runs, expected one")
    return first


def load_runs(path: Path | str, overrides: Sequence[str] = (), sweep: Any = None) -> list[RunConfig]:
    """As `load_config`; a sweep, this one or the file's, becomes variants of methods, and runs (`variants.expand`)."""
    layers = _layers(path)
    given = parameters.read_overrides(overrides)
    values = _moved(_merged(layers), given)
    origins = {key: layer.place(key) for layer in layers for key in layer.values}
    for key, value in sorted(given.items()):  # `train` before `train_methods`
        _override(values, key, value)
        group, _, name = key.partition(".")
        origins[group] = f"{origins[group]}, with override {key}" if name and group in origins else f"override {key}"
    if sweep:
        values["sweep"], origins["sweep"] = sweep, "--sweep"
    whole = _validated(values, origins, layers)
    _check_groups(whole)
    _refuse_unlisted(whole, layers, given)
    with sweeps.at(origins.get("sweep", "")):
        expanded = variants.expand(values)
    origins = {
        "": shown(layers[-1].path),
        **({"train_methods": origins["sweep"]} if "sweep" in origins else {}),
        **origins,
    }
    return [_validated(values, origins) for values in expanded]


def _validated(values: dict[str, Any], origins: dict[str, str], layers: Sequence[_Layer] = ()) -> RunConfig:
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        told = [
            f"{_place(loc, origins, layers)}: {files.dotted(loc)}: {problem}"
            for loc, problem in files.problems_of(error, RunConfig)
        ]
        raise ParameterError("; ".join(told)) from None
    config._origins = origins
    return config


def _check_groups(config: RunConfig) -> None:
    """Raise ParameterError for what a notebook does not have or takes in another kind, before anything looks inside."""
    parts = [(group, getattr(config, group), notebook) for group, notebook in GROUPS.items()]
    parts += [(f"train_methods, method {name}", own, GROUPS["train"]) for name, own in config.train_methods.items()]
    for what, given, notebook in parts:
        with sweeps.at(config.place(what)):
            if what != "figures":  # whose `methods` are those in figure 2
                _refuse_of_job(given)
            parameters.checked(given, parameters.kinds(NOTEBOOKS / notebook))


def _refuse_of_job(given: Mapping[str, Any]) -> None:
    for name in sorted(given.keys() & sweeps.OF_JOB.keys()):
        raise ParameterError(
            f"{name!r} is told to every job by the run: expected the run's own key {sweeps.OF_JOB[name]!r}"
        )


def _refuse_unlisted(config: RunConfig, layers: Sequence[_Layer], given: Mapping[str, Any]) -> None:
    """Raise ParameterError for the settings of a variant that the run does not have: one of the two is mistyped.

    A run that stands on another may leave out some of its methods, and so may a command line; so what counts is said
    in the file that says `methods`, or on the command line.
    """
    listed = {*config.methods, *(config.two_feedbacks_methods or ())}
    said = [key.split(".")[1] for key in given if key.startswith("train_methods.")] + [
        *(given.get("train_methods") or ())
    ]
    if "methods" not in given:
        own = next(layer for layer in reversed(layers) if "methods" in layer.values)
        said += own.values.get("train_methods") or ()
    for name in said:
        if "@" in name and name not in listed:
            raise ParameterError(
                f"{config.place('train_methods')}: {name!r} is no method of this run ({nearest(name, listed)})"
            )


def _place(loc: documents.Loc, origins: dict[str, str], layers: Sequence[_Layer]) -> str:
    """The line of the very value where a file has it; else where its key is from."""
    origin = origins.get(loc[0], shown(layers[-1].path))
    own = next((layer for layer in reversed(layers) if origin == layer.place(loc[0])), None)
    return own.place(*loc) if own else origin


def _refuse_unknown(key: str, place: str) -> None:
    if key not in RunConfig.model_fields:
        raise ParameterError(f"{place}{key}: expected a known key ({nearest(key, RunConfig.model_fields)})")


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    group, *names = key.split(".")
    _refuse_unknown(group, "override ")
    if names and RunConfig.model_fields[group].default not in ({}, Selection()):
        raise ParameterError(f"override {key}: {group} has no keys of its own")
    changed = value
    for name in reversed(names):
        changed = {name: changed}
    values[group] = _within(_begun(values, group, names), changed, len(names))
    methods = values.get("train_methods", {})
    if group == "train" and isinstance(changed, dict) and isinstance(methods, dict):
        values["train_methods"] = {
            name: _without(own, changed, name, len(names) > 1) if isinstance(own, dict) else own
            for name, own in methods.items()
        }


def _begun(values: dict[str, Any], group: str, names: Sequence[str]) -> Any:
    """The group that an override changes; of settings of training that are left out there, what holds instead."""
    known, train, methods = (values.get(key, {}) for key in (group, "train", "train_methods"))
    depth = {"train": 1, "train_methods": 2}.get(group, len(names))  # names that lead to a parameter of 02_train
    readable = isinstance(methods, dict) and all(isinstance(part, dict) for part in (train, *methods.values()))
    if len(names) <= depth or not readable:
        return known
    *method, parameter = names[:depth]
    start = variants.groups(train, methods, "".join(method)).get(parameter, {})
    own = {parameter: start, **(methods.get(method[0], {}) if method else train)}
    return {**methods, method[0]: own} if method else own


def _within(known: Any, changed: Any, depth: int) -> Any:
    """What is known with what is changed on so many levels of keys."""
    if not depth or not isinstance(known, dict):
        return changed
    return {**known, **{key: _within(known.get(key, {}), value, depth - 1) for key, value in changed.items()}}


def _without(own: dict[str, Any], changed: dict[str, Any], method: str, inside: bool) -> dict[str, Any]:
    """A method's own training parameters but for those that an override of `train`, or `inside` a group, changes."""
    if inside and (key := next(iter(changed))) != "method_settings":
        return _within(own, changed, 2) if key in own else own
    kept = {key: value for key, value in own.items() if key not in changed or key == "method_settings"}
    if "method_settings" in own.keys() & changed.keys():
        given = changed["method_settings"]
        if not all(isinstance(each, dict) for each in (given, own["method_settings"])):
            return own
        kept["method_settings"] = {**own["method_settings"], **variants.of_method(given, method)}
    return kept
