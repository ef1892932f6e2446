"""What happened on one feedback's test prompts: scores with their intervals, and a grid of hits and leaks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray

from c3po_utils.evaluation import interval_note
from c3po_utils.feedback import SPLITS
from c3po_utils.figures.elements import ERROR, LABELS, errors, noise_floor
from c3po_utils.figures.style import TEXT, legend_below, look, mark, ordered, style

PANELS = ("S_in", "S_near", "S_general")
OUTCOMES = {"hit": "#333333", "leak": "#D7301F", "effect lost": "#7FB2D6", "no change": "#E9E9E9", "no score": "white"}


@style()
def score_intervals(table: pd.DataFrame) -> NDArray:
    """S_in, S_near and S_general with 95% intervals, a panel each; `table`: a feedback of `scores.feedback_scores`."""
    shown = ordered(table["method"])
    rows = table.set_index("method").loc[shown]
    figure, axes = plt.subplots(1, 3, figsize=(TEXT, 0.6 + 0.2 * len(shown)), sharey=True)
    handles: list = []
    for ax, score in zip(axes, PANELS, strict=True):
        noise_floor(ax.axvline, table, score, handles)
        for place, method in enumerate(shown):
            whisker = errors(rows.loc[[method]], score)
            ax.errorbar(rows.loc[method, score], place, xerr=whisker, ms=5, **ERROR, **mark(method))
        lowest = rows[[score, f"{score}_lo"]].min(axis=None)
        ax.set(title=LABELS[score], xlim=(min(-0.05, lowest - 0.05), 1.05))
        ax.locator_params(axis="x", nbins=5)
    _method_rows(axes[0], shown)
    legend_below(figure, handles, f"whiskers: {interval_note(table[['method']])}")
    return axes


@style()
def hit_grid(answers: pd.DataFrame) -> NDArray:
    """A row per method and a column per test prompt, by split that there is: hits in scope, leaks elsewhere.

    A judge's scores between -1 and 1 are as much paler as they are nearer to 0; dark lines part categories.
    """
    shown, found = ordered(answers["method"]), set()
    splits = [split for split in SPLITS if (answers["split"] == split).any()]
    parts = [answers[answers["split"] == split].sort_values(["category", "prompt_id"]) for split in splits]
    widths = [part["prompt_id"].nunique() for part in parts]
    size = (TEXT, 0.6 + 0.2 * len(shown))
    figure, (axes,) = plt.subplots(1, len(splits), figsize=size, sharey=True, width_ratios=widths, squeeze=False)
    for ax, split, part in zip(axes, splits, parts, strict=True):
        grid = part.pivot(index="method", columns=["category", "prompt_id"], values="score").astype(float)
        grid = grid.reindex(shown)
        outcomes = _outcomes(grid.to_numpy(), split == "in_scope")
        found |= set(outcomes.flat)
        ax.pcolormesh(_colors(outcomes, grid.to_numpy()), edgecolors="white", linewidth=0.6)
        sizes = grid.columns.get_level_values("category").value_counts(sort=False).cumsum()
        ax.vlines(sizes.iloc[:-1], 0, len(shown), color="#333333", lw=0.7)
        ax.set(title=LABELS[split], xlabel=f"{grid.shape[1]} prompts, {len(sizes)} categories", xticks=[])
        ax.grid(visible=False)
    _method_rows(axes[0], shown, 0.5)
    edge = {"edgecolor": "#999999", "linewidth": 0.4}
    handles = [Patch(facecolor=color, label=name, **edge) for name, color in OUTCOMES.items() if name in found]
    legend_below(figure, handles, "a method's answer to a prompt, beside the base model's")
    return axes


def _method_rows(ax: Axes, shown: list[str], middle: float = 0.0) -> None:
    """The methods' names at the left, the first on top."""
    ax.set_yticks(np.arange(len(shown)) + middle, [look(method).label for method in shown])
    ax.set_ylim(len(shown) - 0.5 + middle, middle - 0.5)


def _outcomes(scores_MP: NDArray, inside: bool) -> NDArray[np.str_]:
    """The name of what happened, by method and prompt."""
    names = "hit" if inside else "leak", "effect lost", "no score"
    return np.select([scores_MP > 0, scores_MP < 0, np.isnan(scores_MP)], names, "no change")


def _colors(outcomes_MP: NDArray, scores_MP: NDArray) -> NDArray:
    """RGB [M, P, 3]: the outcomes' colours, on the way from no change to them as far as the score goes."""
    full, none = (np.array([to_rgb(OUTCOMES[name]) for name in names]) for names in (outcomes_MP.flat, ["no change"]))
    strength = np.nan_to_num(np.abs(scores_MP), nan=1.0).reshape(-1, 1)
    return (none + strength * (full - none)).reshape(*scores_MP.shape, 3)
