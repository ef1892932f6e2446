"""The trade-off: adherence against leaks, a dot per method or variant, and the Pareto front."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from c3po_utils.evaluation import interval_note
from c3po_utils.figures import sweeps
from c3po_utils.figures.elements import LABELS, add_line, all_points, dot, label_dots, noise_floor
from c3po_utils.figures.style import REFERENCES, TEXT, legend_below, look, ordered, style
from c3po_utils.figures.tables import fewer, paper_table2
from c3po_utils.training import BASE_RESAMPLED, methods, registered

FRONT_LINE = {"color": "#777777", "lw": 0.9, "label": "Pareto front"}
PAPER_DOT = {"ls": "", "mfc": "none", "ms": 6, "mew": 1.0}
RING = {"ls": "", "marker": "o", "ms": 9.5, "mfc": "none", "mec": "#111111", "label": "gated", "zorder": 3.5}
BELOW = 0.4  # of S_in, the most that is shown below the lowest dot: three categories can leave an interval of -0.8 to 1
BETTER = {"arrowstyle": "->", "color": "#444444", "lw": 0.9}


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other beats: another with S_in as high and S_out as low is better in neither."""
    best = table.sort_values(["S_out", "S_in"], ascending=[True, False])
    highest = best["S_in"].cummax().shift(fill_value=-np.inf)
    return best[best["S_in"] > highest]


def paper_and_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the paper's methods, of base and revised, and of the front: few enough for a picture of many runs."""
    told = {*REFERENCES, *paper_table2()["method"], *pareto_front(_contestants(table))["method"]}
    return table[table["method"].isin(told)]


@style()
def tradeoff(table: pd.DataFrame, label: str | None = None, paper: pd.DataFrame | None = None) -> Axes:
    """S_in against S_out with intervals and the Pareto front of the contestants (not base nor revised).

    Each dot has its method's name beside it, or, where `label` names a column, that column's value, and the methods a
    legend; a ring marks gated methods. `paper` (from `paper_table2`) adds the published scores as hollow markers. Means
    over fewer feedbacks than others say so, and the front is made without them.
    """
    table = table.assign(fewer=fewer(table))
    figure, ax = plt.subplots(figsize=(TEXT, 4.0))
    shown = [method for method in ordered(table["method"]) if method != BASE_RESAMPLED]
    handles = [dot(method) for method in shown] if label else []
    rows = table[table["method"].isin(shown)].dropna(subset=["S_in", "S_out"])
    all_points(ax, rows, "S_out", "S_in", alpha=0.7, counted=False)
    lowest = rows["S_in"].min()
    if paper is not None:
        paper = paper[paper["method"].isin(shown)]
        lowest = min(lowest, paper["S_in"].min())
        for row in paper.itertuples():
            ax.plot(row.S_out, row.S_in, marker=look(row.method).marker, mec=look(row.method).color, **PAPER_DOT)
        handles.append(Line2D([], [], marker="o", mec="#333333", label="hollow: paper (Mistral-7B)", **PAPER_DOT))
    gated = rows[rows["method"].map(_is_gated)]
    if len(gated):
        ax.plot(gated["S_out"], gated["S_in"], **RING)
        handles.append(Line2D([], [], **RING))
    cut = ""
    if (rows["S_in_lo"] < lowest - BELOW).any():
        cut = "; some go on below"
        ax.set_ylim(bottom=lowest - BELOW)
    noise_floor(ax.axvline, table, "S_out", handles)
    _front(ax, _contestants(table), handles)
    ax.set(xlabel=f"leak, {LABELS['S_out']}", ylabel=f"adherence, {LABELS['S_in']}")
    ax.locator_params(nbins=6)
    ax.annotate("better", (0.88, 0.14), (0.965, 0.04), xycoords="axes fraction", ha="right", arrowprops=BETTER)
    legend_below(figure, handles, f"whiskers: {interval_note(table)}{cut}")
    _name_dots(ax, rows, label)
    return ax


def _contestants(table: pd.DataFrame) -> pd.DataFrame:
    """What can be on the front: neither base nor revised, nor a mean over fewer feedbacks than others."""
    found = table[~table["method"].isin(REFERENCES) & (fewer(table) == "")]
    return found.dropna(subset=["S_in", "S_out"])


def _is_gated(method: str) -> bool:
    return bool(getattr(methods.METHODS.get(registered(method)), "gated", ""))


def _name_dots(ax: Axes, rows: pd.DataFrame, label: str | None) -> None:
    """Labels at the dots: the column's values, several where several share a dot, or the methods' names."""
    if rows.empty:
        return
    named = rows.assign(name=[look(method).name for method in rows["method"]] + rows["fewer"])
    if label:
        named = rows.dropna(subset=label)
        named = named.assign(name=(named[label].map(sweeps.setting_text) + named["fewer"]).str.strip())
        named = named[named["name"] != ""].groupby(["method", "S_out", "S_in"], as_index=False, sort=False)["name"]
        named = named.agg(" / ".join)
    label_dots(ax, named[["S_out", "S_in"]].to_numpy(), named["name"], named["method"])


def _front(ax: Axes, contestants: pd.DataFrame, handles: list) -> None:
    """The Pareto front as steps, the most adherence attained at each leak, on to the right edge, below the names."""
    front = pareto_front(contestants)
    if len(front):
        (bottom, _), (_, right) = ax.get_ylim(), ax.get_xlim()
        x, y = (
            [front["S_out"].iloc[0], *front["S_out"], right],
            [bottom, *front["S_in"], front["S_in"].iloc[-1]],
        )
        ax.set(ylim=ax.get_ylim(), xlim=ax.get_xlim())
        ax.step(x, y, where="post", zorder=2, **FRONT_LINE)
        add_line(handles, FRONT_LINE)
