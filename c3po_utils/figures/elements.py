"""The marks that figures share: a method's dots with their intervals, reference lines, labels, legend handles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from c3po_utils.figures import plain_text
from c3po_utils.figures.style import look, mark, ordered
from c3po_utils.training import BASE_RESAMPLED

LABELS = {
    "in_scope": "in scope ↑", "near_scope": "near scope ↓", "out_of_scope": "out of scope ↓",
    "S_in": "$S_{in}$ ↑", "S_near": "$S_{near}$ ↓", "S_general": "$S_{general}$ ↓",
    "S_out": "$S_{out}$ ↓", "S_overall": "$S_{overall}$ ↑",
}  # fmt: skip
NOISE_FLOOR_LINE = {"color": look(BASE_RESAMPLED).color, "ls": (0, (4, 2)), "lw": 0.9, "label": "noise floor (base)"}
HALO = [withStroke(linewidth=1.5, foreground="white")]  # keeps a text readable on lines
ERROR = {"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7}
LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "#333333", "shrinkB": 2.5, "zorder": 4}  # from a text to its dot
FORCES = (0.3, 0.5), (0.5, 0.9), (0.8, 1.4)  # with which texts push each other apart, x and y: more where it takes more
STEP = 5.0  # points from dot to dot where methods share a place


def dot(method: str, ls: str | tuple = "none") -> Line2D:
    """A method's legend handle: its dot, on its line if it has one."""
    return Line2D([], [], ls=ls, ms=5, label=look(method).label, **mark(method))


def points(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, method: str, whiskers: bool = True, alpha: float = 1.0,
    ls: str | tuple = "none", size: float = 4.5, aside: float = 0.0,
) -> None:  # fmt: skip
    """A method's dots, with the intervals of those of the columns `x` and `y` that have some.

    Args:
        aside: points by which all of it is moved to the right of its place.
    """
    shown = look(method)
    drawn = ax.plot(rows[x], rows[y], ls=ls, alpha=alpha, label=shown.label, zorder=3, ms=size, **mark(method))
    if whiskers:
        both = errors(rows, y), errors(rows, x) if f"{x}_lo" in rows else None
        bars = ax.errorbar(rows[x], rows[y], *both, fmt="none", ecolor=shown.color, alpha=0.6 * alpha, **ERROR)
        drawn += bars.get_children()
    for artist in drawn if aside else ():
        artist.set_transform(offset_copy(ax.transData, ax.figure, aside, 0, "points"))


def all_points(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, whiskers: bool = True, alpha: float = 1.0, counted: bool = True
) -> None:
    """The dots of all methods: side by side where several share a place, a method's own with their number."""
    if rows.empty:
        return
    rows = pd.concat([rows[rows["method"] == method] for method in ordered(rows["method"])])
    size = 4.5 if rows["method"].value_counts().max() <= 30 else 3.2
    shared = rows.groupby([rows[x].round(3), rows[y].round(3)])["method"]
    rows["aside"] = STEP * shared.transform(lambda own: pd.factorize(own)[0] - (own.nunique() - 1) / 2)
    for (method, aside), own in rows.groupby(["method", "aside"], sort=False):
        points(ax, own, x, y, method, whiskers, alpha, size=size, aside=aside)
        numbers = own.groupby([own[x].round(3), own[y].round(3)]).size()
        for place, number in numbers[numbers > 1].items() if counted else ():
            shift = {"xytext": (aside, 4), "textcoords": "offset points", "ha": "center"}
            ax.annotate(str(number), place, **shift, fontsize=5.5, zorder=5, path_effects=HALO)


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


def label_dots(ax: Axes, places_N2: NDArray, texts: Sequence[str], methods: Sequence[str]) -> None:
    """A text near each dot, moved off all dots, steps and the other texts, in a dark shade of its method's colour.

    Call it last: it needs the axes' final place and limits. A limit in steps, not in seconds, keeps it reproducible.
    """
    ax.figure.draw_without_rendering()
    dots = np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() != "None"] + [places_N2])
    right = np.ptp(ax.get_xlim()) * np.linspace(0.01, 0.06, 6)  # where steps go on from a dot
    stepped = [line.get_xydata()[1:-1] for line in ax.lines if line.get_drawstyle() == "steps-post"]
    dots = np.concatenate([dots, *([x, y] + right[:, None] * [1, 0] for steps in stepped for x, y in steps)])
    for force in FORCES:
        drawn = [
            ax.text(*place, plain_text.label(text), color=_dark(method), fontsize=6, zorder=5, path_effects=HALO)
            for place, text, method in zip(places_N2, texts, methods, strict=True)
        ]
        # Without its own prevent_crossings, which swaps boxes of different widths.
        moving = {"force_text": force, "force_pull": (0.05, 0.05), "expand": (1.3, 2.0), "prevent_crossings": False}
        _, arrows = adjust_text(drawn, *dots.T, ax=ax, iter_lim=500, arrowprops=LEADER, **moving)
        if force == FORCES[-1] or not _overlap(drawn):
            return
        for artist in (*drawn, *arrows):
            artist.remove()


def _dark(method: str) -> NDArray:
    return 0.6 * np.array(to_rgb(look(method).color))


def _overlap(texts: Sequence[Text]) -> bool:
    boxes = [text.get_window_extent() for text in texts]
    return any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
