"""The paper's figures from stored scores: each function takes a tidy table and returns its Axes.

Tables come from scores.py. Where a table has rows for `base_resampled`, a second sample of the untouched
model, its scores are drawn as the noise floor: what sampling alone gives. Every figure says what its
intervals are.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from c3po_utils.answer_card import fig5, fig5_html, representative
from c3po_utils.figure_style import (
    COLUMN,
    FLOOR,
    REFERENCES,
    TEXT,
    dash,
    legend_below,
    look,
    ordered,
    save,
    style,
)  # fmt: skip
from c3po_utils.intervals import SPLITS
from c3po_utils.score_table import paper_table2, table2, table2_markdown
from c3po_utils.scores import interval_note

__all__ = [
    "fig2", "fig5", "fig5_html", "fig6", "fig7", "fig8", "orthogonal_line", "paper_table2", "pareto_front",
    "representative", "save", "style", "sweep", "table2", "table2_markdown", "tradeoff",
]  # fmt: skip

LABELS = {
    "in_scope": "in scope ↑", "near_scope": "near scope ↓", "out_of_scope": "out of scope ↓",
    "S_in": "$S_{in}$ ↑", "S_near": "$S_{near}$ ↓", "S_general": "$S_{general}$ ↓",
    "S_out": "$S_{out}$ ↓", "S_overall": "$S_{overall}$ ↑",
}  # fmt: skip
SETTINGS = {"single": "One feedback at a time", "mixed": "Two feedbacks together"}
FIGURE_2 = ("c3po", "in_context", "scd", "dpo")  # the paper's choice of methods
LEAKS = ("S_near", "S_general", "S_out")  # scores that noise alone makes positive
FLOOR_LINE = {"color": look(FLOOR).color, "ls": (0, (4, 2)), "lw": 0.9, "label": "noise floor (base)"}
FRONT_LINE = {"color": "#777777", "lw": 0.9, "label": "Pareto front"}
PAPER_LINE = {"color": "#777777", "ls": ":", "lw": 1.1, "label": "the paper's value"}
PAPER_DOT = {"ls": "", "mfc": "none", "ms": 6, "mew": 1.0}
ERROR = {"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7}


def orthogonal_line(x: Sequence[float], y: Sequence[float]) -> tuple[NDArray, NDArray]:
    """Linear orthogonal regression: a point of the line and its unit direction (NaN when it has none).

    The line through the means that minimizes the sum of squared perpendicular distances; its angle is
    atan2(2 s_xy, s_xx - s_yy) / 2.
    """
    points = np.column_stack([x, y]).astype(float)
    center = points.mean(0)
    (s_xx, s_xy), (_, s_yy) = (points - center).T @ (points - center)
    if np.hypot(2 * s_xy, s_xx - s_yy) < 1e-12:
        return center, np.full(2, np.nan)
    angle = np.arctan2(2 * s_xy, s_xx - s_yy) / 2
    return center, np.array([np.cos(angle), np.sin(angle)])


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other beats: another with S_in as high and S_out as low is better in neither."""
    best = table.sort_values(["S_out", "S_in"], ascending=[True, False])
    highest = best["S_in"].cummax().shift(fill_value=-np.inf)
    return best[best["S_in"] > highest]


@style()
def fig2(feedback_scores: pd.DataFrame, methods: Sequence[str] | None = None) -> NDArray:
    """Two panels, out of scope and near scope: a dot per feedback and method, x = S_in, y = leak.

    Shows the paper's four methods where the table has them (else all). Lines are orthogonal regressions,
    drawn over the dots' extent for methods with at least three feedbacks. Up to 12 dots carry their 95%
    intervals.
    """
    present = [method for method in ordered(feedback_scores["method"]) if method not in ("base", FLOOR)]
    shown = ordered(methods or [method for method in FIGURE_2 if method in present] or present)
    rows = feedback_scores[feedback_scores["method"].isin(shown)]
    whiskers, fitted = len(rows) <= 12, rows["method"].value_counts().max() >= 3
    handles = [_dot(method, dash(method) if fitted else "none") for method in shown]
    left = min(0, rows["S_in_lo" if whiskers else "S_in"].min())
    figure, axes = plt.subplots(1, 2, figsize=(TEXT, 3.6), sharex=True, sharey=True)
    for ax, score, title in zip(axes, ("S_general", "S_near"), ("Out of scope", "Near scope"), strict=True):
        for method in shown:
            own = rows[rows["method"] == method].dropna(subset=["S_in", score])
            _points(ax, own, "S_in", score, method, whiskers=whiskers, alpha=0.75)
            _fitted_line(ax, own["S_in"], own[score], method)
        _floor(ax.axhline, feedback_scores, score, handles)
        ax.set(title=title, xlabel=f"adherence where it applies, {LABELS['S_in']}")
        ax.set(xlim=(left - 0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("adherence where it does not ↓")
    lines = "; lines: orthogonal regression" if fitted else ""
    intervals = f"; whiskers: {interval_note(rows[['method']])}" if whiskers else ""
    legend_below(figure, handles, f"a dot per feedback{lines}{intervals}")
    return axes


def _dot(method: str, ls: str | tuple = "none") -> Line2D:
    """A method's legend handle: its dot, on its line if it has one."""
    name, color, marker, _ = look(method)
    return Line2D([], [], ls=ls, marker=marker, ms=5, color=color, mec="#333333", mew=0.3, label=name)


def _points(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, method: str, whiskers: bool = True, alpha: float = 1.0,
    ls: str | tuple = "none",
) -> None:  # fmt: skip
    """A method's dots, with the intervals of those of x and y that have some."""
    name, color, marker, _ = look(method)
    if whiskers:
        errors = _errors(rows, y), _errors(rows, x) if f"{x}_lo" in rows else None
        ax.errorbar(rows[x], rows[y], *errors, fmt="none", ecolor=color, alpha=0.6 * alpha, **ERROR)
    edge = {"mec": "#333333", "mew": 0.3, "ms": 4.5 if len(rows) <= 30 else 3.2}
    ax.plot(rows[x], rows[y], ls=ls, marker=marker, color=color, alpha=alpha, label=name, zorder=3, **edge)


def _errors(rows: pd.DataFrame, score: str) -> NDArray:
    """Distances from a score down to its lower and up to its upper bound, as errorbar takes them."""
    low, high = rows[score] - rows[f"{score}_lo"], rows[f"{score}_hi"] - rows[score]
    return np.maximum([low, high], 0)


def _fitted_line(ax: Axes, x: pd.Series, y: pd.Series, method: str) -> None:
    """The orthogonal regression over the extent of at least three dots."""
    if len(x) < 3:
        return
    center, direction = orthogonal_line(x, y)
    along = (np.column_stack([x, y]) - center) @ direction
    ends = center + np.outer([along.min(), along.max()], direction)
    name, color, *_ = look(method)
    ax.plot(*ends.T, color=color, ls=dash(method), lw=1.5, zorder=4, label=f"{name}, fit")


def _floor(draw_line, table: pd.DataFrame, score: str, handles: list) -> None:
    """The resampled base model's mean score as a dashed line (`ax.axhline` or `ax.axvline`), once in the
    legend."""
    value = table.loc[table["method"] == FLOOR, score].mean()
    if np.isfinite(value):
        draw_line(value, zorder=1, **FLOOR_LINE)
        _add_line(handles, FLOOR_LINE)


def _add_line(handles: list, line: dict) -> None:
    if line["label"] not in [handle.get_label() for handle in handles]:
        handles.append(Line2D([], [], **line))


@style()
def fig6(shares: pd.DataFrame, methods: Sequence[str] | None = None) -> Axes:
    """Grouped bars: the share of prompts whose answer applies the feedback, by split and method."""
    shown = _bar_methods(shares, methods)
    figure, ax = plt.subplots(figsize=(COLUMN if len(shown) <= 6 else TEXT, 2.1))
    handles = _bars(ax, shares, shown)
    ax.set_ylabel("share of prompts where\nthe feedback is applied")
    legend_below(figure, handles, f"whiskers: {interval_note(shares)}")
    return ax


@style()
def fig7(shares: pd.DataFrame, methods: Sequence[str] | None = None) -> NDArray:
    """Two panels of grouped bars from a table with a column `setting`: `single` feedbacks, two `mixed`."""
    shown = _bar_methods(shares, methods)
    settings = list(dict.fromkeys(shares["setting"]))
    figure, axes = plt.subplots(1, len(settings), figsize=(TEXT, 2.2), sharey=True, squeeze=False)
    for ax, setting in zip(axes[0], settings, strict=True):
        handles = _bars(ax, shares[shares["setting"] == setting], shown)
        ax.set_title(SETTINGS.get(setting, setting))
    axes[0, 0].set_ylabel("share of prompts where\nthe feedback is applied")
    legend_below(figure, handles, f"whiskers: {interval_note(shares)}")
    return axes[0]


def fig8(shares: pd.DataFrame, methods: Sequence[str] = ("c3po", "c3po_kl")) -> Axes:
    """C3PO against C3PO with its SFT terms replaced by a KL divergence: bars as in figure 6."""
    return fig6(shares, methods)


def _bar_methods(shares: pd.DataFrame, methods: Sequence[str] | None) -> list[str]:
    """The methods to draw as bars; ValueError names one that the table lacks."""
    known = ordered(shares["method"])
    absent = [method for method in methods or () if method not in known]
    if absent:
        raise ValueError(f"method {absent[0]!r} is not in the table; found {', '.join(known)}")
    return [method for method in methods or known if method != FLOOR]


def _bars(ax: Axes, shares: pd.DataFrame, methods: list[str]) -> list:
    """Bars with intervals by split and method, the noise floor as a dash per split; legend handles."""
    width, edge, handles = 0.84 / len(methods), {"edgecolor": "#333333", "linewidth": 0.4}, []
    for m, method in enumerate(methods):
        rows = shares[shares["method"] == method].set_index("split").reindex(SPLITS)
        place = np.arange(3) + (m - (len(methods) - 1) / 2) * width
        name, color, _, hatch = look(method)
        ax.bar(place, rows["share"], width, color=color, hatch=hatch, label=name, **edge)
        handles.append(Patch(facecolor=color, hatch=hatch, label=name, **edge))
        for ink, thick in (("white", 1.5), ("#111111", 0.7)):  # a rim keeps whiskers visible on dark bars
            line = {"fmt": "none", "ecolor": ink, "elinewidth": thick, "capthick": thick, "capsize": 1.5}
            ax.errorbar(place, rows["share"], _errors(rows, "share"), zorder=2.5, **line)
    floor = shares[shares["method"] == FLOOR].set_index("split")["share"].reindex(SPLITS)
    if floor.notna().any():
        ax.hlines(floor, np.arange(3) - 0.46, np.arange(3) + 0.46, zorder=3, **FLOOR_LINE)
        _add_line(handles, FLOOR_LINE)
    ax.set_xticks(range(3), [LABELS[split] for split in SPLITS])
    ax.set(xlim=(-0.55, 2.55), ylim=(0, 1.02))
    ax.grid(visible=False, axis="x")
    return handles


@style()
def sweep(
    table: pd.DataFrame,
    parameter: str,
    scores: Sequence[str] = ("S_in", "S_out", "S_overall"),
    paper: float | None = None,
) -> NDArray:
    """Scores against a hyperparameter, a panel each: rows of `method_scores` with a column `parameter`.

    The axis is logarithmic when positive values span a factor of 10 or more; methods are set a little apart
    so that intervals do not hide each other. `paper` marks the paper's value.
    """
    rows = table[table["method"] != FLOOR].dropna(subset=parameter).sort_values(parameter)
    shown = ordered(rows["method"])
    handles = [_dot(method, dash(method)) for method in shown]
    figure, axes = plt.subplots(1, len(scores), figsize=(max(COLUMN, 2.27 * len(scores)), 2.1), squeeze=False)
    for ax, score in zip(axes[0], scores, strict=True):
        for m, method in enumerate(shown):
            own = rows[rows["method"] == method]
            own = own.assign(**{parameter: _apart(own[parameter], rows[parameter], m - (len(shown) - 1) / 2)})
            _points(ax, own, parameter, score, method, ls=dash(method))
        if score in LEAKS:
            _floor(ax.axhline, table, score, handles)
        if paper is not None:
            ax.axvline(paper, zorder=1, **PAPER_LINE)
            _add_line(handles, PAPER_LINE)
        _parameter_axis(ax, rows[parameter])
        ax.set(xlabel=parameter.replace("_", " "), title=LABELS[score])
    legend_below(figure, handles, f"whiskers: {interval_note(rows)}")
    return axes[0]


def _logarithmic(values: pd.Series) -> bool:
    return values.min() > 0 and values.max() / values.min() >= 10


def _apart(values: pd.Series, tried: pd.Series, steps: float) -> pd.Series:
    """Numeric values moved by so many steps of 1% of the axis."""
    if not pd.api.types.is_numeric_dtype(tried):
        return values
    if _logarithmic(tried):
        return values * (tried.max() / tried.min()) ** (0.01 * steps)
    return values + np.ptp(tried) * 0.01 * steps


def _parameter_axis(ax: Axes, values: pd.Series) -> None:
    """Ticks at the values tried, on a logarithmic scale when they are positive and far apart."""
    ax.margins(x=0.08)
    if not pd.api.types.is_numeric_dtype(values):
        return
    tried = place = np.unique(values)
    if _logarithmic(values):
        ax.set_xscale("log")
        ax.minorticks_off()
        place = np.log(tried)
    labels, last = [_number(value) for value in tried], -np.inf
    needed = np.ptp(place) * (0.02 + 0.035 * max(map(len, labels)))
    for i, at in enumerate(place):  # a label only where it has room
        if at - last >= needed:
            last = at
        else:
            labels[i] = ""
    ax.set_xticks(tried, labels)


def _number(value: float) -> str:
    """0.0005 as 5e-4, and what is neither tiny nor huge as it is."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:g}" if plain else np.format_float_scientific(value, trim="-", exp_digits=1)


@style()
def tradeoff(table: pd.DataFrame, label: str | None = None, paper: pd.DataFrame | None = None) -> Axes:
    """S_in against S_out with intervals and the Pareto front of the contestants (not base nor revised).

    `label` names a column whose values are written beside the dots. `paper` (from `paper_table2`) adds the
    published scores as hollow markers.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 2.6))
    shown = [method for method in ordered(table["method"]) if method != FLOOR]
    handles = [_dot(method) for method in shown]
    for method in shown:
        _points(ax, table[table["method"] == method], "S_out", "S_in", method)
    if paper is not None:
        for row in paper[paper["method"].isin(shown)].itertuples():
            ax.plot(row.S_out, row.S_in, marker=look(row.method).marker, mec=look(row.method).color, **PAPER_DOT)
        handles.append(Line2D([], [], marker="o", mec="#333333", label="hollow: paper (Mistral-7B)", **PAPER_DOT))
    for _, row in table.iterrows() if label else ():
        place = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 6}
        ax.annotate(_number(row[label]) if np.isreal(row[label]) else row[label], (row.S_out, row.S_in), **place)
    _floor(ax.axvline, table, "S_out", handles)
    _front(ax, table[~table["method"].isin(REFERENCES)], handles)
    ax.set(xlabel=f"leak, {LABELS['S_out']}", ylabel=f"adherence, {LABELS['S_in']}")
    ax.locator_params(nbins=6)
    legend_below(figure, handles, f"whiskers: {interval_note(table)}")
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
        _add_line(handles, FRONT_LINE)
