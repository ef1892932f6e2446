"""What happened on each prompt of one feedback: scores with their intervals, and a grid of hits and leaks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray

from c3po_utils.feedback import SPLITS
from c3po_utils.figures.elements import LABELS, errors
from c3po_utils.figures.style import TEXT, legend_below, look, ordered, style

PANELS = ("S_in", "S_near", "S_general")
OUTCOMES = {"no change": "#F0F0F0", "hit": "#009E73", "leak": "#D55E00", "lost": "#7A3E83", "no score": "#FFFFFF"}


@style()
def score_intervals(table: pd.DataFrame) -> NDArray:
    """S_in, S_near and S_general of each method with 95% intervals, a panel each: rows of `scores.feedback_scores`."""
    shown = ordered(table["method"])[::-1]
    rows = table.set_index("method").loc[shown]
    _, axes = plt.subplots(1, len(PANELS), figsize=(TEXT, 0.6 + 0.22 * len(shown)), sharey=True)
    for ax, score in zip(axes, PANELS, strict=True):
        for place, method in enumerate(shown):
            _, color, marker, _ = look(method)
            error = errors(rows.loc[[method]], score)
            ax.errorbar(rows.loc[method, score], place, xerr=error, color=color, marker=marker, mec="#333333", mew=0.3)
        ax.set(title=LABELS[score], xlim=(-1.05 if (rows[f"{score}_lo"] < 0).any() else -0.05, 1.05))
        ax.set_yticks(range(len(shown)), [look(method).name for method in shown])
    return axes


@style()
def hit_grid(answers: pd.DataFrame) -> NDArray:
    """A column per test prompt, by split, and a row per method: hits in scope, leaks elsewhere."""
    shown = ordered(answers["method"])
    figure, axes = plt.subplots(1, 3, figsize=(TEXT, 0.5 + 0.2 * len(shown)), sharey=True)
    for ax, split in zip(axes, SPLITS, strict=True):
        own = answers[answers["split"] == split]
        grid = own.pivot(index="method", columns="prompt_id", values="score").astype(float).loc[shown]
        ax.imshow(
            _codes(grid, split == "in_scope"),
            ListedColormap(list(OUTCOMES.values())),
            vmin=-0.5,
            vmax=4.5,
            aspect="auto",
        )
        ax.set(title=LABELS[split], xlabel="test prompts", xticks=[])
        ax.set_yticks(range(len(shown)), [look(method).name for method in shown])
        ax.grid(visible=False)
    handles = [Patch(facecolor=color, edgecolor="#999999", lw=0.4, label=name) for name, color in OUTCOMES.items()]
    legend_below(figure, handles, "of each method's answer, beside the base model's")
    return axes


def _codes(grid: pd.DataFrame, inside: bool) -> NDArray[np.int64]:
    """Places in OUTCOMES: 0 no change, 1 hit, 2 leak, 3 the effect was there and is lost, 4 no score."""
    codes = np.where(grid > 0, 1 if inside else 2, np.where(grid < 0, 3, 0))
    return np.where(grid.isna(), 4, codes)
