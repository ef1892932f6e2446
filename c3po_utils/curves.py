"""Training curves: the objective's terms, and what DPO does to the rewards."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from c3po_utils.figure_style import look, style

TERMS = {
    "dpo": "DPO",
    "sft/chosen": "SFT, chosen $y^+$",
    "sft/near": "SFT, near scope",
    "sft/out": "SFT, out of scope",
}
DIVERGENCES = {"kl/near": "near scope", "kl/out": "out of scope"}
REWARDS = {
    "rewards/chosen": "chosen $y^+$",
    "rewards/rejected": "rejected $y^-$",
    "rewards/margins": "margin",
}
ACCURACY = {"rewards/accuracies": "chosen above rejected"}
LINES = ("-", "--", "-.", ":")


@style()
def training_curves(log: pd.DataFrame, method: str) -> NDArray:
    """Panels of one training run: loss terms per step, divergences from pi_0 (KL methods only), implicit rewards
    and their accuracy (DPO methods only), learning rate.

    Args:
        log: one row per step with the columns that the trainer logs (`dpo`, `sft/...`, `kl/...`, `rewards/...`).
        method: named in the title.
    """
    panels = [
        ("loss term (nats)", TERMS),
        (r"KL($\pi_0\,\|\,\pi$) (nats)", DIVERGENCES),
        ("implicit reward", REWARDS),
        ("accuracy", ACCURACY),
        ("learning rate", {"learning_rate": "peak, then cosine"}),
    ]
    panels = [(label, names) for label, names in panels if any(name in log for name in names)]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.4 * len(panels), 2.3), squeeze=False)
    steps = np.arange(1, len(log) + 1)
    for ax, (label, names) in zip(axes[0], panels, strict=True):
        for line, (name, text) in zip(LINES, ((n, t) for n, t in names.items() if n in log), strict=False):
            ax.plot(steps, log[name], line, label=text)
        ax.set(xlabel="step", ylabel=label)
        if "dpo" in names and "dpo" in log:
            ax.axhline(math.log(2), color="grey", lw=0.7, ls=(0, (2, 2)), label="ln 2")
        if len(ax.lines) > 1:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2)  # below: curves cross everywhere
    figure.suptitle(f"Training {look(method).name}", fontsize=8)
    return axes[0]
