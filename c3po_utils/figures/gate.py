"""The scope gate on one screen: its score of every prompt, and the threshold above which it opens."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.pyplot import subplots

from c3po_utils.feedback import SPLITS
from c3po_utils.figures.style import TEXT, legend_below, look, style

COLORS = {"in_scope": "#009E73", "near_scope": "#D55E00", "out_of_scope": "#5A5A5A"}
NAMES = {"in_scope": "in scope", "near_scope": "near scope", "out_of_scope": "general"}
MARKS = {"train": {"marker": "o", "fillstyle": "none"}, "test": {"marker": "o", "fillstyle": "full"}}
MEANT = {"train": "training prompt, by cross-validation", "test": "test prompt, by the gate"}


@style()
def gate_scores(scores: pd.DataFrame, method: str) -> Axes:
    """A row per kind of prompts and fold, a dot per prompt; to the right of the line the adapter answers.

    A threshold beyond all scores, as of a gate that cannot tell prompts apart, is drawn at the edge.

    Args:
        scores: the table that `training.gate.GateTraining.fit` returns.
        method: named in the title.
    """
    rows = [(split, fold) for split in SPLITS for fold in MARKS if len(_part(scores, split, fold))]
    figure, ax = subplots(figsize=(TEXT, 0.75 + 0.34 * len(rows)))
    threshold = scores["threshold"].iloc[0]
    lowest, highest = scores["score"].min(), scores["score"].max()
    margin = 0.04 * (highest - lowest)
    low, high = lowest - margin, highest + margin
    line = np.clip(threshold, low, high)
    ax.axvspan(line, high, color=COLORS["in_scope"], alpha=0.08, lw=0)
    ax.axvline(line, color="#333333", lw=0.9)
    for place, (split, fold) in enumerate(rows):
        found = _part(scores, split, fold)["score"].to_numpy()
        ax.plot(found, place + _spread(len(found)), ls="none", ms=3.6, mew=0.7, color=COLORS[split], **MARKS[fold])
        share = f"{(found > threshold).mean():.0%} of {len(found)}"
        ax.annotate(share, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.8)
    ax.set(xlabel="score g(x): log-odds of being in scope", xlim=(low, high), ylim=(len(rows) - 0.45, -0.55))
    ax.set_yticks(range(len(rows)), [f"{NAMES[split]}, {fold}" for split, fold in rows])
    ax.grid(axis="y", visible=False)
    ax.annotate("opens at", (1.01, 1.0), xycoords="axes fraction", va="bottom", fontsize=6.8)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "bottom", "fontsize": 6.8}
    if threshold > low:
        ax.annotate(r"$\pi_0$ answers", (line, 1.0), xytext=(-5, 1), ha="right", **where)
    if threshold < high:
        ax.annotate(f"{look(method).name}: adapter added", (line, 1.0), xytext=(5, 1), ha="left", **where)
    handles = [
        Line2D([], [], ls="none", ms=4, color="#333333", label=MEANT[fold], **MARKS[fold])
        for fold in dict.fromkeys(fold for _, fold in rows)
    ]
    number = f"{threshold:.2f}" if abs(threshold) < 1e4 else f"{threshold:.1e}"
    legend_below(figure, handles, f"line: the threshold, {number}".replace("-", "−"))
    return ax


def _part(scores: pd.DataFrame, split: str, fold: str) -> pd.DataFrame:
    return scores[(scores["split"] == split) & (scores["fold"] == fold)].sort_values("id")


def _spread(count: int) -> np.ndarray:
    """Heights about 0 that set neighbours apart, the same for the same number."""
    return 0.56 * ((np.arange(count) * 0.618) % 1 - 0.5)
