"""A sweep as variants of a run's methods, `method@label`, or of the whole run, `run@label`, where it is of sampling.

Variants are trained on the same rows and have a folder each; a setting of sampling changes the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from c3po_utils.runs import parameters, sweeps
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import GROUPS, NOTEBOOKS
from c3po_utils.runs.sweeps import Combination
from c3po_utils.training import methods as known_methods
from c3po_utils.training import registered, trained_methods


def given(train: Mapping[str, Any], train_methods: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, Any]:
    """What a run's `train` and `train_methods` give to the training of one method."""
    return {
        "method_settings": {},
        **train,
        **train_methods.get(registered(method), {}),
        **train_methods.get(method, {}),
    }


def by_method(sweep: Any, methods: Iterable[str]) -> dict[str, list[Combination]]:
    """The combinations that each of these methods is to be trained with; one empty one where it is not swept."""
    if isinstance(sweep, Mapping) and any(registered(name) in known_methods.METHODS for name in sweep):
        for name in sweep:
            if name not in (known := {*methods, *map(registered, methods)}):
                raise ParameterError(f"sweep: no method {name!r} in this run ({nearest(name, known)})")
        own = {name: sweeps.combinations(part) for name, part in sweep.items()}
        return {name: own.get(name) or own.get(registered(name)) or [{}] for name in methods}
    made = sweeps.combinations(sweep)
    return dict.fromkeys(methods, made)


def expand(values: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's settings with its `sweep`: one or several runs without, whose methods are the variants.

    Raises:
        ParameterError: as `combinations`; a setting of sampling for one method only; a setting of training where no
            method is trained; a name that comes twice.
    """
    values = dict(values)
    if not (sweep := values.pop("sweep", None)):
        return [values]
    with sweeps.at("methods", KeyError), sweeps.at("methods", ValueError):
        trained = trained_methods(values["methods"])
    of_method = by_method(sweep, trained) if trained else {"": _of_sampling(sweep)}
    _refuse_same_names(of_method.values())
    runs = list(dict.fromkeys(sweeps.label(_part(one, "sample")) for every in of_method.values() for one in every))
    if any({sweeps.label(_part(one, "sample")) for one in every} != set(runs) for every in of_method.values()):
        raise ParameterError("sweep: a setting of sampling is one of the whole run: expected it for every method")
    return [_one_run(values, of_method, name) for name in runs]


def _of_sampling(sweep: Any) -> list[Combination]:
    """The combinations of a sweep in a run that trains nothing."""
    made = sweeps.combinations(sweep)
    for full in (full for one in made for full in one if not full.startswith("sample.")):
        raise ParameterError(f"sweep: {full}: this run trains no method: expected settings of sampling")
    return made


def _refuse_same_names(of_methods: Iterable[list[Combination]]) -> None:
    """Raise ParameterError where two combinations of a method, or any two parts of sampling, are called the same."""
    sampled: dict[str, Combination] = {}
    for every in of_methods:
        whole: set[str] = set()
        for one in every:
            name, part = sweeps.label(one), _part(one, "sample")
            if name in whole or sampled.setdefault(sweeps.label(part), part) != part:
                raise ParameterError(
                    f"sweep: the name {name!r} comes twice: expected values that are called differently"
                )
            whole.add(name)


def _part(combination: Combination, group: str) -> Combination:
    return {full: value for full, value in combination.items() if full.startswith(f"{group}.")}


def _one_run(values: dict[str, Any], of_method: dict[str, list[Combination]], name: str) -> dict[str, Any]:
    """One of the runs, whose sampling has this label ("": the run itself)."""
    own = {
        method: [one for one in every if sweeps.label(_part(one, "sample")) == name]
        for method, every in of_method.items()
    }
    sampled = next((_part(one, "sample") for every in own.values() for one in every), {})
    made = _trained_with(values, {method: [_part(one, "train") for one in every] for method, every in own.items()})
    return _sampled_with(made, sampled, name) if name else made


def _sampled_with(values: dict[str, Any], sampled: Combination, name: str) -> dict[str, Any]:
    """The run in a folder and a store of its own; its figures go there, too."""
    run, figures, sample = values["run"], values.get("figures", {}), dict(values.get("sample", {}))
    if store := values.get("store", ""):
        store = f"{store.rstrip('/')}@{name}"
    for full, value in sampled.items():
        *groups, leaf = full.split(".")[1:]
        sample |= {groups[0]: {**sample.get(groups[0], {}), leaf: value}} if groups else {leaf: value}
    if output := figures.get("output"):
        inside = output.startswith(f"{run}/")
        figures = {**figures, "output": f"{run}@{name}{output.removeprefix(run)}" if inside else f"{output}@{name}"}
    return {**values, "run": f"{run}@{name}", "store": store, "sample": sample, "figures": figures}


def _trained_with(values: dict[str, Any], of_method: dict[str, list[Combination]]) -> dict[str, Any]:
    """The run with each method's variants in its place, in `two_feedbacks_methods`, too."""
    names = {method: [_variant(method, one) for one in every] for method, every in of_method.items()}
    changed = dict(values.get("train_methods", {}))
    for method, every in of_method.items():
        for one in filter(None, every):
            changed[_variant(method, one)] = _own(values, method, one, names)
    lists = {
        key: [name for method in values[key] for name in names.get(method, [method])]
        for key in ("methods", "two_feedbacks_methods")
        if values.get(key)
    }
    return {**values, **lists, "train_methods": changed}


def _variant(method: str, combination: Combination) -> str:
    return method + ("," if "@" in method else "@") + sweeps.label(combination) if combination else method


def _own(values: dict[str, Any], method: str, combination: Combination, names: dict[str, list[str]]) -> dict[str, Any]:
    """What `train_methods` says of a variant: what it said of the method, and the values that are tried."""
    train_methods = values.get("train_methods", {})
    own, inside = dict(train_methods.get(method, {})), groups(values.get("train", {}), train_methods, method)
    for full, value in combination.items():
        *group, leaf = full.split(".")[1:]
        if group:
            own[group[0]] = inside[group[0]] = {**inside[group[0]], leaf: value}
        else:
            own[leaf] = value
    for key in known_methods.OTHERS:  # the variant of that method that was trained with the same values
        other = inside["method_settings"].get(key) or getattr(known_methods.METHODS[registered(method)], key)
        if other and (same := _variant(other, combination)) in names.get(other, ()):
            own["method_settings"] = inside["method_settings"] = {**inside["method_settings"], key: same}
    return own


def groups(train: Mapping[str, Any], train_methods: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, Any]:
    """What one more setting is put beside, by parameter of 02_train: what the run gives, or the notebook's own."""
    made = {**parameters.resolve(NOTEBOOKS / GROUPS["train"], {}), **given(train, train_methods, method)}
    return {**made, "method_settings": of_method(made["method_settings"], method)}


def of_method(settings: Any, method: str) -> Any:
    """`method_settings` may be given by method."""
    by_method = settings and isinstance(settings, dict) and all(isinstance(own, dict) for own in settings.values())
    return settings.get(registered(method), {}) if by_method else settings
