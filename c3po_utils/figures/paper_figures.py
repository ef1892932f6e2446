"""The paper's figures from stored scores: each function takes a tidy table and returns its Axes.

Tables come from scores.py. Where a table has rows for `base_resampled`, a second sample of the untouched
model, its scores are drawn as the noise floor: what sampling alone gives. Every figure says what its
intervals are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from c3po_utils.evaluation import interval_note
from c3po_utils.feedback import SPLITS
from c3po_utils.figures.elements import LABELS, NOISE_FLOOR_LINE, add_line, dot, errors, noise_floor, points
from c3po_utils.figures.style import COLUMN, TEXT, bar, dash, legend_below, look, ordered, style
from c3po_utils.training import BASE_RESAMPLED, registered

SETTINGS = {
    "single": "One feedback at a time", "added": "Two feedbacks, adapters added", "joint": "Two feedbacks, one adapter"
}  # fmt: skip
FIGURE_2 = ("c3po", "in_context", "scd", "dpo")  # the paper's choice of methods
FIGURE_8 = ("c3po", "c3po_kl")


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


@style()
def fig2(feedback_scores: pd.DataFrame, methods: Sequence[str] | None = None) -> NDArray:
    """Two panels, out of scope and near scope: a dot per feedback and method, x = S_in, y = leak.

    Shows the paper's four methods where the table has them (else all). Lines are orthogonal regressions,
    drawn over the dots' extent for methods with at least three feedbacks. Up to 12 dots carry their 95%
    intervals.
    """
    shown = ordered(methods or figure_2_methods(feedback_scores["method"]))
    rows = feedback_scores[feedback_scores["method"].isin(shown)]
    whiskers, fitted = len(rows) <= 12, rows["method"].value_counts().max() >= 3
    handles = [dot(method, dash(method) if fitted else "none") for method in shown]
    left = min(0, rows["S_in_lo" if whiskers else "S_in"].min())
    figure, axes = plt.subplots(1, 2, figsize=(TEXT, 3.6), sharex=True, sharey=True)
    for ax, score, title in zip(axes, ("S_general", "S_near"), ("Out of scope", "Near scope"), strict=True):
        for method in shown:
            own = rows[rows["method"] == method].dropna(subset=["S_in", score])
            points(ax, own, "S_in", score, method, whiskers=whiskers, alpha=0.75)
            _fitted_line(ax, own["S_in"], own[score], method)
        noise_floor(ax.axhline, feedback_scores, score, handles)
        ax.set(title=title, xlabel=f"adherence where it applies, {LABELS['S_in']}")
        ax.set(xlim=(left - 0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("adherence where it does not ↓")
    lines = "; lines: orthogonal regression" if fitted else ""
    intervals = f"; whiskers: {interval_note(rows[['method']])}" if whiskers else ""
    legend_below(figure, handles, f"a dot per feedback{lines}{intervals}")
    return axes


def figure_2_methods(methods: Iterable[str]) -> list[str]:
    """Those among the methods, or variants of those, that the paper's figure 2 shows; all when there is none."""
    present = [method for method in ordered(methods) if method not in ("base", BASE_RESAMPLED)]
    return [method for method in present if registered(method) in FIGURE_2] or present


def _fitted_line(ax: Axes, x: pd.Series, y: pd.Series, method: str) -> None:
    """The orthogonal regression of at least three dots, as far as the box around them goes."""
    center, direction = orthogonal_line(x, y)
    if len(x) < 3 or np.isnan(direction).any():
        return
    box = np.array([[x.min(), y.min()], [x.max(), y.max()]]) + np.array([[-1e-9], [1e-9]])
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.sort((box - center) / direction, axis=0)  # where the line meets the box's sides
    ends = center + np.outer([np.nanmax(along[0]), np.nanmin(along[1])], direction)
    name, color, *_ = look(method)
    ax.plot(*ends.T, color=color, ls=dash(method), lw=1.5, zorder=4, label=f"{name}, fit")


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
    """Panels of grouped bars from a table with a column `setting`: `single` feedbacks, two `added` or `joint`."""
    shown = _bar_methods(shares, methods)
    settings = list(dict.fromkeys(shares["setting"]))
    figure, axes = plt.subplots(1, len(settings), figsize=(TEXT, 2.2), sharey=True, squeeze=False)
    for ax, setting in zip(axes[0], settings, strict=True):
        handles = _bars(ax, shares[shares["setting"] == setting], shown)
        ax.set_title(SETTINGS.get(setting, setting))
        if len(settings) > 2:  # labels on two lines, for want of room
            ax.set_xticks(range(3), [LABELS[split].replace(" scope", "\nscope") for split in SPLITS])
    axes[0, 0].set_ylabel("share of prompts where\nthe feedback is applied")
    legend_below(figure, handles, f"whiskers: {interval_note(shares)}")
    return axes[0]


def fig8(shares: pd.DataFrame, methods: Sequence[str] | None = None) -> Axes:
    """C3PO against C3PO with its SFT terms replaced by a KL divergence (variants of both): bars as in figure 6.

    Raises:
        ValueError: the table lacks one of the two.
    """
    if lacking := lacking_for_fig8(shares):
        raise ValueError(f"figure 8 compares {' with '.join(FIGURE_8)}: the table has no {' and no '.join(lacking)}")
    return fig6(shares, methods or [name for name in ordered(shares["method"]) if registered(name) in FIGURE_8])


def lacking_for_fig8(table: pd.DataFrame) -> list[str]:
    """The methods that figure 8 compares and the table has no rows of; none when it can be drawn."""
    found = set(table["method"].map(registered))
    return [method for method in FIGURE_8 if method not in found]


def _bar_methods(shares: pd.DataFrame, methods: Sequence[str] | None) -> list[str]:
    """The methods to draw as bars; ValueError names one that the table lacks."""
    known = ordered(shares["method"])
    absent = [method for method in methods or () if method not in known]
    if absent:
        raise ValueError(f"method {absent[0]!r} is not in the table; found {', '.join(known)}")
    return [method for method in ordered(methods or known) if method != BASE_RESAMPLED]


def _bars(ax: Axes, shares: pd.DataFrame, methods: list[str]) -> list:
    """Bars with intervals by split and method, the noise floor as a dash per split; legend handles."""
    width, handles = 0.84 / len(methods), []
    for m, method in enumerate(methods):
        rows = shares[shares["method"] == method].set_index("split").reindex(SPLITS)
        place = np.arange(3) + (m - (len(methods) - 1) / 2) * width
        ax.bar(place, rows["share"], width, **bar(method))
        handles.append(Patch(**bar(method)))
        for ink, thick in (("white", 1.5), ("#111111", 0.7)):  # a rim keeps whiskers visible on dark bars
            line = {"fmt": "none", "ecolor": ink, "elinewidth": thick, "capthick": thick, "capsize": 1.5}
            ax.errorbar(place, rows["share"], errors(rows, "share"), zorder=2.5, **line)
    floor = shares[shares["method"] == BASE_RESAMPLED].set_index("split")["share"].reindex(SPLITS)
    if floor.notna().any():
        ax.hlines(floor, np.arange(3) - 0.46, np.arange(3) + 0.46, zorder=3, **NOISE_FLOOR_LINE)
        add_line(handles, NOISE_FLOOR_LINE)
    ax.set_xticks(range(3), [LABELS[split] for split in SPLITS])
    ax.set(xlim=(-0.55, 2.55), ylim=(0, 1.02))
    ax.grid(visible=False, axis="x")
    return handles
