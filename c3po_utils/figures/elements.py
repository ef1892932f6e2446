"""The marks that figures share: a method's dots with their intervals, reference lines, and their legend handles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from c3po_utils.figures.style import look
from c3po_utils.figures.text_layout import width
from c3po_utils.training import BASE_RESAMPLED

LABELS = {
    "in_scope": "in scope ↑", "near_scope": "near scope ↓", "out_of_scope": "out of scope ↓",
    "S_in": "$S_{in}$ ↑", "S_near": "$S_{near}$ ↓", "S_general": "$S_{general}$ ↓",
    "S_out": "$S_{out}$ ↓", "S_overall": "$S_{overall}$ ↑",
}  # fmt: skip
NOISE_FLOOR_LINE = {"color": look(BASE_RESAMPLED).color, "ls": (0, (4, 2)), "lw": 0.9, "label": "noise floor (base)"}
HALO = [withStroke(linewidth=1.5, foreground="white")]  # keeps a text readable on lines
LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "#333333", "shrinkA": 0, "shrinkB": 2.5}  # from text to dot
SIDES = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)])  # of a dot
ERROR = {"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7}


def dot(method: str, ls: str | tuple = "none") -> Line2D:
    """A method's legend handle: its dot, on its line if it has one."""
    name, color, marker, _ = look(method)
    return Line2D([], [], ls=ls, marker=marker, ms=5, color=color, mec="#333333", mew=0.3, label=name)


def points(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, method: str, whiskers: bool = True, alpha: float = 1.0,
    ls: str | tuple = "none",
) -> None:  # fmt: skip
    """A method's dots, with the intervals of those of the columns `x` and `y` that have some."""
    name, color, marker, _ = look(method)
    if whiskers:
        both = errors(rows, y), errors(rows, x) if f"{x}_lo" in rows else None
        ax.errorbar(rows[x], rows[y], *both, fmt="none", ecolor=color, alpha=0.6 * alpha, **ERROR)
    edge = {"mec": "#333333", "mew": 0.3, "ms": 4.5 if len(rows) <= 30 else 3.2}
    ax.plot(rows[x], rows[y], ls=ls, marker=marker, color=color, alpha=alpha, label=name, zorder=3, **edge)


def errors(rows: pd.DataFrame, score: str) -> NDArray:
    """Distances from a score down to its lower and up to its upper bound, as errorbar takes them."""
    low, high = rows[score] - rows[f"{score}_lo"], rows[f"{score}_hi"] - rows[score]
    return np.maximum([low, high], 0)


def noise_floor(draw_line: Callable[..., object], table: pd.DataFrame, score: str, handles: list) -> None:
    """The resampled base model's mean score as a dashed line (`ax.axhline` or `ax.axvline`)."""
    value = table.loc[table["method"] == BASE_RESAMPLED, score].mean()
    if np.isfinite(value):
        draw_line(value, zorder=1, **NOISE_FLOOR_LINE)
        add_line(handles, NOISE_FLOOR_LINE)


def add_line(handles: list, line: dict) -> None:
    """A line's legend handle, once."""
    if line["label"] not in [handle.get_label() for handle in handles]:
        handles.append(Line2D([], [], **line))


def label_dots(ax: Axes, places_N2: NDArray, texts: Sequence[str]) -> None:
    """A text beside each dot, one after the other where it covers least of the dots, and of the texts before it.

    Call it last: it needs the axes' final place and limits.
    """
    ax.figure.draw_without_rendering()
    dots_N2 = ax.transData.transform(places_N2) / ax.figure.dpi  # inches
    (left, bottom), (right, top) = ax.get_window_extent().get_points() / ax.figure.dpi
    taken = [_box(dot, (0.07, 0.07)) for dot in dots_N2]
    for place, dot_2, text in zip(places_N2, dots_N2, texts, strict=True):
        size = np.array([width(text), 0.09])
        free = [_box(dot_2 + side * (size / 2 + reach), size) for reach in (0.05, 0.13) for side in SIDES]
        outside = [max(left - x0, x1 - right, bottom - y0, y1 - top, 0.0) for x0, y0, x1, y1 in free]
        best = free[int(np.argmin(_covered(free, taken) + np.array(outside)))]
        taken.append(best)
        shift = {"xytext": 72 * (best[:2] - dot_2), "textcoords": "offset points", "va": "bottom"}
        line = {**LEADER, "relpos": np.clip((dot_2 - best[:2]) / size, 0, 1)}
        ax.annotate(text, place, **shift, fontsize=6, zorder=5, path_effects=HALO, arrowprops=line)


def _box(center_2: NDArray, size_2: NDArray | tuple[float, float]) -> NDArray:
    """Left, bottom, right, top."""
    return np.concatenate([center_2 - np.divide(size_2, 2), center_2 + np.divide(size_2, 2)])


def _covered(boxes: Sequence[NDArray], taken: Sequence[NDArray]) -> NDArray:
    """How much area of `taken` each box covers."""
    boxes_B14, taken_T4 = np.array(boxes)[:, None], np.array(taken)
    overlap = np.minimum(boxes_B14[..., 2:], taken_T4[:, 2:]) - np.maximum(boxes_B14[..., :2], taken_T4[:, :2])
    return overlap.clip(0).prod(-1).sum(1)
