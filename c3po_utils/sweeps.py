"""Hyperparameters: scores against one of them, and the trade-off between adherence and leaks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from c3po_utils.figure_style import COLUMN, FLOOR, REFERENCES, TEXT, dash, legend_below, look, ordered, style
from c3po_utils.marks import LABELS, add_line, dot, floor, label_dots, points
from c3po_utils.scores import interval_note

LEAKS = ("S_near", "S_general", "S_out")  # scores that noise alone makes positive
FRONT_LINE = {"color": "#777777", "lw": 0.9, "label": "Pareto front"}
PAPER_LINE = {"color": "#777777", "ls": ":", "lw": 1.1, "label": "C3PO in the paper"}
PAPER_DOT = {"ls": "", "mfc": "none", "ms": 6, "mew": 1.0}


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other beats: another with S_in as high and S_out as low is better in neither."""
    best = table.sort_values(["S_out", "S_in"], ascending=[True, False])
    highest = best["S_in"].cummax().shift(fill_value=-np.inf)
    return best[best["S_in"] > highest]


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
    rows = table[table["method"] != FLOOR].dropna(subset=parameter).sort_values(parameter)
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
            floor(ax.axhline, table, score, handles)
        if paper is not None:
            ax.axvline(paper, zorder=1, **PAPER_LINE)
            add_line(handles, PAPER_LINE)
        _parameter_axis(ax, tried)
        ax.set(xlabel=parameter.replace("_", " "), title=LABELS[score])
    legend_below(figure, handles, f"whiskers: {interval_note(rows)}")
    return axes[0]


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


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """0.0005 as 5e-4, and what is neither tiny nor huge as it is."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:g}" if plain else np.format_float_scientific(value, trim="-", exp_digits=1)


@style()
def tradeoff(table: pd.DataFrame, label: str | None = None, paper: pd.DataFrame | None = None) -> Axes:
    """S_in against S_out with intervals and the Pareto front of the contestants (not base nor revised).

    `label` names a column whose values are written beside the dots, in a picture as wide as the text. `paper`
    (from `paper_table2`) adds the published scores as hollow markers.
    """
    figure, ax = plt.subplots(figsize=(TEXT, 3.6) if label else (COLUMN, 2.6))
    shown = [method for method in ordered(table["method"]) if method != FLOOR]
    handles = [dot(method) for method in shown]
    for method in shown:
        points(ax, table[table["method"] == method], "S_out", "S_in", method, alpha=0.7 if label else 1.0)
    if paper is not None:
        for row in paper[paper["method"].isin(shown)].itertuples():
            ax.plot(row.S_out, row.S_in, marker=look(row.method).marker, mec=look(row.method).color, **PAPER_DOT)
        handles.append(Line2D([], [], marker="o", mec="#333333", label="hollow: paper (Mistral-7B)", **PAPER_DOT))
    floor(ax.axvline, table, "S_out", handles)
    _front(ax, table[~table["method"].isin(REFERENCES)], handles)
    ax.set(xlabel=f"leak, {LABELS['S_out']}", ylabel=f"adherence, {LABELS['S_in']}")
    ax.locator_params(nbins=6)
    legend_below(figure, handles, f"whiskers: {interval_note(table)}")
    if label:
        named = table[table["method"].isin(shown) & (table[label] != "")].dropna(subset=label)
        label_dots(ax, named[["S_out", "S_in"]].to_numpy(), [_text(value) for value in named[label]])
    return ax


def _front(ax: Axes, contestants: pd.DataFrame, handles: list) -> None:
    """The Pareto front as steps, the most adherence attained at each leak, on to the right edge."""
    front = pareto_front(contestants.dropna(subset=["S_in", "S_out"]))
    if len(front):
        (bottom, _), (_, right) = ax.get_ylim(), ax.get_xlim()
        x, y = (
            [front["S_out"].iloc[0], *front["S_out"], right],
            [bottom, *front["S_in"], front["S_in"].iloc[-1]],
        )
        ax.set(ylim=ax.get_ylim(), xlim=ax.get_xlim())
        ax.step(x, y, where="post", zorder=2, **FRONT_LINE)
        add_line(handles, FRONT_LINE)
