"""The paper's figures: each function takes a tidy table of evaluation.scores and returns its Axes.

Where a table has rows for `base_resampled`, a second sample of the untouched model, its scores are drawn as the noise
floor: what sampling alone gives. Every figure says what its intervals are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from c3po_utils.evaluation import interval_note, scores
from c3po_utils.feedback import SPLITS
from c3po_utils.figures import plain_text
from c3po_utils.figures.elements import HALO, LABELS, NOISE_FLOOR_LINE, add_line, all_points, dot, errors, noise_floor
from c3po_utils.figures.style import COLUMN, TEXT, bar, dash, legend_below, look, ordered, style
from c3po_utils.training import BASE_RESAMPLED, registered

SETTINGS = {
    "single": "One feedback at a time", "added": "Two feedbacks, adapters added", "joint": "Two feedbacks, one adapter"
}  # fmt: skip
GATES = {"own": "#2B8CBE", "both": "#7B3294", "other": "#D7301F", "neither": "#DDDDDD"}  # that are open
FIGURE_2 = ("c3po", "in_context", "scd", "dpo")  # the paper's choice of methods
FIGURE_8 = ("c3po", "c3po_kl")
STEEPEST = 4.0  # slope of a regression line that still says how leaks grow with adherence
FOOT = 0.025  # height of what every bar has below zero, so that one of height zero is seen


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

    Shows the paper's four methods where the table has them (else all). Lines are orthogonal regressions over the dots'
    extent, where their slope says something. Up to 12 dots carry their 95% intervals.

    Raises:
        ValueError: the table lacks one of the methods.
    """
    shown = _present(feedback_scores, methods) if methods else figure_2_methods(feedback_scores["method"])
    rows = feedback_scores[feedback_scores["method"].isin(shown)]
    whiskers, fitted, floor = len(rows) <= 12, set(), []
    left = min(0, rows["S_in_lo" if whiskers else "S_in"].min())
    figure, axes = plt.subplots(1, 2, figsize=(TEXT, 3.6), sharex=True, sharey=True)
    for ax, score, title in zip(axes, ("S_general", "S_near"), ("Out of scope", "Near scope"), strict=True):
        present = rows.dropna(subset=["S_in", score])
        all_points(ax, present, "S_in", score, whiskers, alpha=0.75)
        fitted |= {m for m, own in present.groupby("method") if _fitted_line(ax, own["S_in"], own[score], m)}
        noise_floor(ax.axhline, feedback_scores, score, floor)
        ax.set(title=title, xlabel=f"adherence where it applies, {LABELS['S_in']}")
        ax.set(xlim=(left - 0.06, 1.06), ylim=(-0.04, 1.06))
    axes[0].set_ylabel("adherence where it does not ↓")
    handles = [dot(method, dash(method) if method in fitted else "none") for method in shown]
    notes = ["a dot per feedback, a number where several share a place"]
    notes += ["lines: orthogonal regression"] if fitted else []
    notes += [f"whiskers: {interval_note(rows[['method']])}"] if whiskers else []
    legend_below(figure, [*handles, *floor], "; ".join(notes))
    return axes


def figure_2_methods(methods: Iterable[str]) -> list[str]:
    """Those among the methods, or variants of those, that the paper's figure 2 shows; all when there is none."""
    present = [method for method in ordered(methods) if method not in ("base", BASE_RESAMPLED)]
    return [method for method in present if registered(method) in FIGURE_2] or present


def _fitted_line(ax: Axes, x: pd.Series, y: pd.Series, method: str) -> bool:
    """The orthogonal regression as far as the box around the dots goes; whether it was drawn.

    Not with fewer than three values of x, nor where it is nearly vertical: then its slope says nothing.
    """
    center, direction = orthogonal_line(x, y)
    if x.round(6).nunique() < 3 or not abs(direction[1]) <= STEEPEST * abs(direction[0]):
        return False
    box = np.array([[x.min(), y.min()], [x.max(), y.max()]]) + np.array([[-1e-9], [1e-9]])
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.sort((box - center) / direction, axis=0)  # where the line meets the box's sides
    ends = center + np.outer([np.nanmax(along[0]), np.nanmin(along[1])], direction)
    shown = look(method)
    ax.plot(*ends.T, color=shown.color, ls=dash(method), lw=1.5, zorder=4, label=f"{shown.label}, fit")
    return True


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
def fig7(shares: pd.DataFrame, answers: pd.DataFrame | None = None, gates: pd.DataFrame | None = None) -> NDArray:
    """Panels of grouped bars by the column `setting`: `single` feedbacks, two `added` or `joint`.

    A panel of fewer pairs of feedbacks than there are says so. A last panel shows, of two feedbacks behind gates, which
    gates are open at which prompts.

    Args:
        shares: from `two_feedbacks.setting_shares`.
        answers: from `two_feedbacks.side_by_side`; a feedback's own share with each other one is a dot on the bar.
        gates: from `two_feedbacks.open_gates`; the first method's are drawn.
    """
    shown = _bar_methods(shares, None)
    settings = list(dict.fromkeys(shares["setting"]))
    gated = gates is not None and not gates.empty
    panels = len(settings) + gated
    figure, axes = plt.subplots(1, panels, figsize=(TEXT, 2.2), sharey=True, squeeze=False)
    for ax, setting in zip(axes[0], settings, strict=False):
        handles = _bars(ax, shares[shares["setting"] == setting], shown)
        if answers is not None:
            _own_shares(ax, answers[answers["setting"] == setting], shown)
        pairs = set(shares.loc[shares["setting"] == setting].get("pairs", [])) - {""}
        of = "".join(f"\n({some} pairs)" for some in pairs)
        ax.set_title(SETTINGS.get(setting, plain_text.label(setting)) + of)
    if gated:
        handles = [*handles, *_open_gates(axes[0, -1], gates)]
    for ax in axes[0] if panels > 3 else ():
        ax.set_title(textwrap.fill(ax.get_title(), 18))
    for ax in axes[0] if panels > 2 else ():  # labels on two lines, for want of room
        ax.set_xticks(range(3), [LABELS[split].replace(" scope", "\nscope") for split in SPLITS])
    axes[0, 0].set_ylabel("share of prompts where\nthe feedback is applied")
    dots = "" if answers is None else "dots: each feedback with each other one; "
    legend_below(figure, handles, f"{dots}whiskers: {interval_note(shares)}")
    return axes[0]


def _open_gates(ax: Axes, gates: pd.DataFrame) -> list[Patch]:
    """Stacked bars, by kind of prompt: the shares of prompts at which one, both or none of two gates are open."""
    method = gates["method"].iloc[0]
    shares, below = gates[gates["method"] == method].set_index("split").reindex(SPLITS), np.zeros(3)
    for which, color in GATES.items():
        heights = shares[which].to_numpy()
        ax.bar(range(3), heights, 0.6, bottom=below, color=color, edgecolor="white", lw=0.5)
        below += heights
    ax.set_title(f"Open gates, {look(method).label}")
    return [Patch(facecolor=color, label=f"gate: {which}") for which, color in GATES.items()]


def _own_shares(ax: Axes, answers: pd.DataFrame, methods: list[str]) -> None:
    """A dot per feedback on each bar, side by side, in the order of the feedbacks."""
    shares = answers.assign(share=scores.applied(answers)).groupby(["method", "split", "feedback"])["share"].mean()
    for method, middle, width in _places(methods):
        if method not in shares:
            continue  # it has another setting
        own = shares[method].unstack("feedback").reindex(SPLITS)
        aside = width * ((np.arange(own.shape[1]) + 0.5) / own.shape[1] - 0.5)
        places = (middle[:, None] + aside).ravel()
        ax.plot(places, own.to_numpy().ravel(), "o", ms=2.8, mfc="white", mec="#111111", mew=0.6, zorder=2.8)


def fig8(shares: pd.DataFrame) -> Axes:
    """C3PO against C3PO with its SFT terms replaced by a KL divergence (variants of both): bars as in figure 6.

    Raises:
        ValueError: the table lacks one of the two.
    """
    if lacking := lacking_for_fig8(shares):
        raise ValueError(f"figure 8 compares {' with '.join(FIGURE_8)}: the table has no {' and no '.join(lacking)}")
    return fig6(shares, [name for name in ordered(shares["method"]) if registered(name) in FIGURE_8])


def lacking_for_fig8(table: pd.DataFrame) -> list[str]:
    """The methods that figure 8 compares and the table has no rows of; none when it can be drawn."""
    found = set(table["method"].map(registered))
    return [method for method in FIGURE_8 if method not in found]


def _present(table: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """The methods in their order; ValueError names one that the table lacks."""
    known = ordered(table["method"])
    absent = [method for method in methods if method not in known]
    if absent:
        raise ValueError(f"method {absent[0]!r} is not in the table; found {', '.join(known)}")
    return ordered(methods)


def _bar_methods(shares: pd.DataFrame, methods: Sequence[str] | None) -> list[str]:
    """The methods to draw as bars; ValueError names one that the table lacks."""
    return [method for method in _present(shares, methods or list(shares["method"])) if method != BASE_RESAMPLED]


def _places(methods: list[str]) -> Iterator[tuple[str, NDArray, float]]:
    """Each method with the middles of its three bars, and their width."""
    width = 0.84 / len(methods)
    for m, method in enumerate(methods):
        yield method, np.arange(3) + (m - (len(methods) - 1) / 2) * width, width


def _bars(ax: Axes, shares: pd.DataFrame, methods: list[str]) -> list:
    """Bars with intervals by split and method, the noise floor as a dash per split; legend handles.

    Every bar has a foot below zero, and one of height zero its method's name above. Where a method has no answers there
    is neither.
    """
    handles = []
    for method, place, width in _places(methods):
        rows = shares[shares["method"] == method].set_index("split").reindex(SPLITS)
        ax.bar(place, rows["share"], width, **bar(method))
        feet = place[rows["share"].notna()]
        ax.broken_barh([(x - width / 2, width) for x in feet], (-FOOT, FOOT), **bar(method))
        handles.append(Patch(**bar(method)))
        for ink, thick in (("white", 1.5), ("#111111", 0.7)):  # a rim keeps whiskers visible on dark bars
            line = {"fmt": "none", "ecolor": ink, "elinewidth": thick, "capthick": thick, "capsize": 1.5}
            ax.errorbar(place, rows["share"], errors(rows, "share"), zorder=2.5, **line)
        for x, share, top in zip(place, rows["share"], rows["share_hi"].fillna(0), strict=True):
            if share == 0:
                above = {"xytext": (0, 4), "textcoords": "offset points", "path_effects": HALO, "zorder": 4}
                ax.annotate(look(method).label, (x, top), rotation=90, ha="center", fontsize=5.5, **above)
    floor = shares[shares["method"] == BASE_RESAMPLED].set_index("split")["share"].reindex(SPLITS)
    if floor.notna().any():
        ax.hlines(floor, np.arange(3) - 0.46, np.arange(3) + 0.46, zorder=3, **NOISE_FLOOR_LINE)
        add_line(handles, NOISE_FLOOR_LINE)
    ax.axhline(0, color="#444444", lw=0.6, zorder=2)
    ax.set_xticks(range(3), [LABELS[split] for split in SPLITS])
    ax.set(xlim=(-0.55, 2.55), ylim=(-FOOT, 1.02))
    ax.grid(visible=False, axis="x")
    return handles
