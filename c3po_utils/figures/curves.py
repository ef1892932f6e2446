"""Training curves, and figure 9: what preference optimization learns from two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from c3po_utils.figures.style import TEXT, look, style
from c3po_utils.training import bandit, methods

PANELS = {  # by axis label: the log's columns with their names in the legend
    "loss term (nats)": {
        "dpo": "DPO",
        "preference": "preference",
        "sft/chosen": "SFT, chosen $y^+$",
        "sft/near_scope": "SFT, near scope",
        "sft/out_of_scope": "SFT, out of scope",
    },
    r"KL($\pi_0\,\|\,\pi$) (nats)": {"kl/near_scope": "near scope", "kl/out_of_scope": "out of scope"},
    "implicit reward": {
        "rewards/chosen": "chosen $y^+$",
        "rewards/rejected": "rejected $y^-$",
        "rewards/margins": "margin",
    },
    "share of pairs": {"rewards/accuracies": "chosen above rejected"},
    "learning rate": {"learning_rate": "learning rate"},
}
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))


@style()
def training_curves(log: pd.DataFrame, method: str, objective: methods.Method | None = None) -> NDArray:
    """Panels of one training run, in its method's colour: loss terms, divergences from pi_0, rewards, learning rate.

    Args:
        log: one row per step with the columns that the trainer logs (`dpo`, `sft/...`, `kl/...`, `rewards/...`).
        method: named in the title.
        objective: whose terms of weight 0 are left out, though they are logged; None: all are drawn.
    """
    logged = set(log) - _unused(objective)
    panels = {label: [name for name in names if name in logged] for label, names in PANELS.items()}
    panels = {label: names for label, names in panels.items() if names}
    figure, axes = plt.subplots(1, len(panels), figsize=(2.4 * len(panels), 2.3), squeeze=False)
    steps, color = np.arange(1, len(log) + 1), look(method).color
    for ax, (label, names) in zip(axes[0], panels.items(), strict=True):
        for dashes, name in zip(LINES, names, strict=False):
            ax.plot(steps, log[name], color=color, ls=dashes, label=PANELS[label][name])
        ax.set(xlabel="step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if "dpo" in names:
            ax.axhline(math.log(2), color="grey", lw=0.7, ls=(0, (2, 2)), label="ln 2")
        if label != "learning rate":
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2)  # below: curves cross everywhere
    figure.suptitle(f"Training {look(method).label}", fontsize=8)
    return axes[0]


def _unused(objective: methods.Method | None) -> set[str]:
    """The log's columns that are no part of the objective's loss."""
    if objective is None:
        return set()
    weights = {
        "sft/chosen": objective.chosen_sft_weight,
        "sft/near_scope": objective.near_weight * (1 - objective.kl),
        "sft/out_of_scope": objective.out_weight * (1 - objective.kl),
        "kl/near_scope": objective.near_weight * objective.kl,
        "kl/out_of_scope": objective.out_weight * objective.kl,
    }
    of_pairs = {"dpo", "preference", *PANELS["implicit reward"], *PANELS["share of pairs"]}
    return {name for name, weight in weights.items() if not weight} | (set() if objective.preference else of_pairs)


OPTIMA = [
    ("#D55E00", (0, (5, 1.5)), "s"),
    ("#000000", (0, (1, 1.2)), "o"),
    ("#009E73", (0, (5, 1.5, 1, 1.5)), "^"),
]


@style()
def figure_bandit(
    pos_A: bandit.Array, neg_A: bandit.Array, learned_A: bandit.Array, betas: Sequence[float], pairs: int
) -> dict[str, Axes]:
    """Figure 9 at page width: `policies`, `reward`, and (ours) `error`, the learned reward less the true one.

    Lines in `policies` are eq. 7, markers the optimum of the reward learned from `pairs` pairs; the band in
    `error` is two standard errors each side. Colours are Okabe and Ito's; line styles carry them in grey.
    """
    figure, axes = plt.subplot_mosaic(
        [["policies", "reward"], ["policies", "error"]],
        figsize=(TEXT, 2.9), width_ratios=[1.35, 1], height_ratios=[1.8, 1],
    )  # fmt: skip
    figure.get_layout_engine().set(wspace=0.04)
    _draw_policies(axes["policies"], pos_A, neg_A, learned_A, betas)
    _draw_rewards(axes["reward"], axes["error"], pos_A, neg_A, learned_A, pairs)
    plt.close(figure)
    return axes


def _draw_policies(
    ax: Axes, pos_A: bandit.Array, neg_A: bandit.Array, learned_A: bandit.Array, betas: Sequence[float]
) -> None:
    actions = np.arange(len(pos_A))
    for policy_A, colour, name, at in ((neg_A, "#E69F00", "-", 0.17), (pos_A, "#56B4E9", "+", 0.83)):
        ax.fill_between(actions, policy_A, color=colour, alpha=0.3, linewidth=0)
        ax.plot(actions, policy_A, color=colour, linewidth=2.5)
        quantile = np.searchsorted(policy_A.cumsum(), at)
        ax.text(quantile, 0.72 * policy_A[quantile], rf"$\pi^{name}$", ha="center", va="center", fontsize=11)
    for beta, (colour, dashes, marker) in zip(betas, cycle(OPTIMA), strict=False):
        line, dots = {"ls": dashes, "lw": 1.2, "color": colour}, {"marker": marker, "ms": 3, "color": colour}
        ax.plot(actions, bandit.contrast_policy(pos_A, neg_A, beta), **line)
        ax.plot(actions[::6], bandit.optimal_policy(neg_A, learned_A, beta)[::6], ls="none", **dots)
        ax.plot([], [], **line | dots, label=rf"$\pi^*$, $\beta$ = {beta:g}")
    ax.set(xlabel="action i", ylabel="probability", xlim=(0, len(pos_A) - 1), ylim=(0, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=3)


def _draw_rewards(
    ax: Axes, below: Axes, pos_A: bandit.Array, neg_A: bandit.Array, learned_A: bandit.Array, pairs: int
) -> None:
    actions, mass_A = np.arange(len(pos_A)), pos_A + neg_A
    true_A, learned_A = bandit.centred(bandit.log_ratio(pos_A, neg_A), mass_A), bandit.centred(learned_A, mass_A)
    band_A = 2 * bandit.reward_standard_error(pos_A, neg_A, pairs)
    ax.plot(actions, true_A, color="#56B4E9", linewidth=3, label=r"true: log $\pi^+/\pi^-$")
    ax.plot(actions, learned_A, "k", linestyle=(0, (1, 1.5)), linewidth=1.5, label="learned")
    ax.set(ylabel="reward", xlim=(0, len(pos_A) - 1))
    ax.tick_params(labelbottom=False)
    ax.legend(loc="upper left")
    below.fill_between(actions, -band_A, band_A, color="0.85", linewidth=0)
    below.plot(actions, learned_A - true_A, "k.", markersize=2.5)
    below.set_title("band: ± 2 standard errors", y=0.78, fontsize=7)
    below.set(xlabel="action i", ylabel="learned − true", xlim=(0, len(pos_A) - 1))
    below.set_ylim(-1.3 * band_A.max(), 1.3 * band_A.max())
