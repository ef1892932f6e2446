"""Variants of methods, `method@label`: scores against a setting that they differ in, and the trade-off of all."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from c3po_utils.evaluation import interval_note
from c3po_utils.figures import plain_text
from c3po_utils.figures.elements import LABELS, add_line, dot, noise_floor, points
from c3po_utils.figures.style import COLUMN, dash, legend_below, look, ordered, style
from c3po_utils.figures.tables import cell
from c3po_utils.runs import BUNDLED, documents, done_stages
from c3po_utils.training import BASE_RESAMPLED, TrainSettings, adapters, methods, registered

PAPER_YAML = BUNDLED / "notebooks" / "params" / "runs" / "paper.yaml"


def paper_settings(path: Path | str = PAPER_YAML) -> dict[str, Any]:
    """What the paper trained C3PO with: the kit's defaults, and the run's settings in paper.yaml."""
    return {**_defaults(), **_scalars(documents.read(Path(path))["train"])}


def _defaults() -> dict[str, Any]:
    """Settings that manifests leave out, because they name only what differs."""
    lora = inspect.signature(adapters.lora_config).parameters.values()
    given = {entry.name: entry.default for entry in fields(TrainSettings) if entry.default is not MISSING}
    return (
        asdict(methods.Method())
        | {entry.name: entry.default for entry in lora if entry.default is not entry.empty}
        | given
    )


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Settings on one level; switches and lists become names, so that they are drawn, and told apart, as such."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        named = str(value) if isinstance(value, bool | list) else value
        flat |= _scalars(value) if isinstance(value, dict) else {key: named}
    return flat


def training_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Every setting that one training manifest's adapter depends on, by name: {"learning_rate": 0.0001, ...}.

    The other method that it starts from, gates or distils is named without what both are labelled with: in a sweep it
    is the variant with the same values, which differ already.
    """
    identity = manifest["identity"]
    settings = {**identity["settings"], "method_settings": {}}
    own = settings.pop("method")
    others = {key: _unlabelled(identity["objective"].get(key, ""), own) for key in methods.OTHERS}
    objective = identity["objective"] | {key: other for key, other in others.items() if other}
    parts = identity["sampled_with"], _defaults(), settings, objective
    return {key: value for part in parts for key, value in _scalars(part).items()}


def _unlabelled(other: str, method: str) -> str:
    """`scd@all` of `scd@all,lr=1e-4` beside the method `scd_gated@lr=1e-4`."""
    swept = [part for part in method.partition("@")[2].split(",") if "=" in part]
    name, _, label = other.partition("@")
    label = ",".join(part for part in label.split(",") if part not in swept)
    return f"{name}@{label}" if label else name


def trained_settings(*runs: Path | str) -> pd.DataFrame:
    """A row per trained method of the runs, with a column for every setting.

    Where a method's adapters differ in a setting, as those of two runs may, it is left empty.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder, manifest in (stage for run in runs for stage in done_stages(run, "train")):
        if "+" in folder.parent.name:  # two feedbacks in one adapter: see evaluation.two_feedbacks
            continue
        settings = training_settings(manifest)
        known = found.setdefault(folder.name, settings)
        found[folder.name] = {key: settings.get(key) if settings.get(key) == known[key] else None for key in known}
    return pd.DataFrame([{"method": method, **settings} for method, settings in found.items()])


def hyperparameters(settings: pd.DataFrame) -> list[str]:
    """The settings in which some variants of one method differ, and in nothing else."""
    return [name for name in settings.columns.drop("method", errors="ignore") if len(series(settings, name))]


def series(settings: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """The variants that differ in one setting alone: `method`, its value, and the `series` that it belongs to.

    A series is named after its method, and after what tells it from the method's other series.
    """
    others = settings.columns.drop(["method", parameter])
    rows = settings.assign(family=settings["method"].map(registered))
    groups = rows.groupby(["family", *others], dropna=False, sort=False)
    rows = rows[groups[parameter].transform("nunique") > 1]
    names = [_series_name(row, rows[rows["family"] == row["family"]], others) for _, row in rows.iterrows()]
    return rows.assign(series=names)[["method", "series", parameter]].reset_index(drop=True)


def _series_name(row: pd.Series, family: pd.DataFrame, others: Sequence[str]) -> str:
    label = ",".join(f"{name}={row[name]}" for name in others if family[name].nunique(dropna=False) > 1)
    return f"{row['family']}@{label}" if label else row["family"]


def swept(by_method: pd.DataFrame, settings: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """Scores of the variants that differ in one setting alone, for `figures.sweep`: `method` names the series.

    Raises:
        KeyError: no variants differ in this setting alone.
    """
    known = hyperparameters(settings)
    if parameter not in known:
        near = get_close_matches(parameter, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no variants of a method differ in {parameter!r} alone; in these they do: {known}{hint}")
    table = by_method.merge(series(settings, parameter), on="method")
    noise = by_method[by_method["method"] == BASE_RESAMPLED]
    return pd.concat([table.assign(method=table["series"]), noise]).drop(columns="series")


def by_family(by_method: pd.DataFrame) -> pd.DataFrame:
    """Scores with each variant under its method's name, and its label in a column `variant`, for `figures.tradeoff`."""
    variant = by_method["method"].str.partition("@")[2]
    return by_method.assign(method=by_method["method"].map(registered), variant=variant)


def best(by_method: pd.DataFrame, score: str = "S_overall") -> list[str]:
    """Of each method's variants the one with the highest score, or the first where none has one: what figures show."""
    known = by_method.assign(score=by_method[score].fillna(-np.inf))
    highest = known.groupby(known["method"].map(registered), sort=False)["score"].idxmax()
    return by_method.loc[highest, "method"].tolist()


LEAKS = ("S_near", "S_general", "S_out")  # scores that noise alone makes positive
PAPER_LINE = {"color": "#777777", "ls": ":", "lw": 1.1, "label": "C3PO in the paper"}


@style()
def sweep(
    table: pd.DataFrame,
    parameter: str,
    scores: Sequence[str] = ("S_in", "S_out", "S_overall"),
    paper: float | None = None,
) -> NDArray:
    """Scores against a hyperparameter, a panel each: rows of `method_scores` with a column `parameter`.

    The axis is logarithmic when positive values span a factor of 4 or more; methods are set a little apart
    so that intervals do not hide each other. `paper` marks the value that the paper trained C3PO with.
    """
    rows = table[table["method"] != BASE_RESAMPLED].dropna(subset=parameter).sort_values(parameter)
    if not pd.api.types.is_numeric_dtype(rows[parameter]):
        rows[parameter] = rows[parameter].map(_label)
        paper = None if paper is None else _label(paper)
    shown = ordered(rows["method"])
    handles = [dot(method, dash(method)) for method in shown]
    tried = pd.Series([*rows[parameter], *([] if paper is None else [paper])])
    figure, axes = plt.subplots(1, len(scores), figsize=(max(COLUMN, 2.27 * len(scores)), 2.1), squeeze=False)
    for ax, score in zip(axes[0], scores, strict=True):
        for m, method in enumerate(shown):
            own = rows[rows["method"] == method]
            own = own.assign(**{parameter: _apart(own[parameter], tried, m - (len(shown) - 1) / 2)})
            points(ax, own, parameter, score, method, ls=dash(method))
        if score in LEAKS:
            noise_floor(ax.axhline, table, score, handles)
        if paper is not None:
            ax.axvline(paper, zorder=1, **PAPER_LINE)
            add_line(handles, PAPER_LINE)
        _parameter_axis(ax, tried)
        ax.set(xlabel=plain_text.label(parameter.replace("_", " ")), title=LABELS[score])
    legend_below(figure, handles, f"whiskers: {interval_note(rows)}")
    return axes[0]


def few_values(table: pd.DataFrame, parameter: str) -> bool:
    """Whether a setting has fewer than three values, which say more in a table than as a line."""
    return table[parameter].nunique() < 3


def sweep_table(table: pd.DataFrame, parameter: str, scores: Sequence[str] = ("S_in", "S_out", "S_overall")) -> Styler:
    """A sweep's scores by method and value, for a notebook."""
    rows = table.dropna(subset=parameter).sort_values(["method", parameter])
    shown = pd.DataFrame({"method": [look(method).name for method in rows["method"]], parameter: rows[parameter]})
    for score in scores:
        shown[score] = [cell(row, score, "interval") for _, row in rows.iterrows()]
    return (
        plain_text.styled(shown).hide(axis="index").set_caption(f"{parameter.replace('_', ' ')}: {interval_note(rows)}")
    )


def _label(value: object) -> str:
    return plain_text.label(str(value))


def _logarithmic(values: pd.Series) -> bool:
    return values.min() > 0 and values.max() / values.min() >= 4


def _apart(values: pd.Series, tried: pd.Series, steps: float) -> pd.Series:
    """Numeric values moved by so many steps of 1% of the axis."""
    if not pd.api.types.is_numeric_dtype(tried):
        return values
    if _logarithmic(tried):
        return values * (tried.max() / tried.min()) ** (0.01 * steps)
    return values + np.ptp(tried) * 0.01 * steps


def _parameter_axis(ax: Axes, values: pd.Series) -> None:
    """Ticks at the values, on a logarithmic scale when they are positive and far apart; first come, first labelled."""
    ax.margins(x=0.08)
    if not pd.api.types.is_numeric_dtype(values):
        return
    places = values.drop_duplicates()
    labels = dict.fromkeys(places, "")
    if _logarithmic(values):
        ax.set_xscale("log")
        ax.minorticks_off()
        places = np.log(places)
    needed = np.ptp(places) * (0.02 + 0.035 * max(len(_number(value)) for value in labels))
    labelled: list[float] = []
    for value, place in zip(labels, places, strict=True):  # a label only where it has room
        if all(abs(place - other) >= needed for other in labelled):
            labels[value] = _number(value)
            labelled.append(place)
    ax.set_xticks(list(labels), list(labels.values()))


def setting_text(value: float | str) -> str:
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """0.0005 as 5e-4, and what is neither tiny nor huge as it is."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:g}" if plain else np.format_float_scientific(value, trim="-", exp_digits=1)
