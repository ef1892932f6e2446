"""Training curves: a panel for what a method's log has, and none for what it lacks."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from c3po_utils.figures.curves import training_curves

SFT = ["sft/chosen", "sft/near_scope", "sft/out_of_scope"]
REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOSS, KL, REWARD, ACCURACY, RATE = (
    "loss term (nats)", r"KL($\pi_0\,\|\,\pi$) (nats)", "implicit reward", "accuracy", "learning rate",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "columns", "panels"),
    [
        ("scd", SFT[:1], [LOSS, RATE]),
        ("dpo", ["dpo", *SFT[:1], *REWARDS], [LOSS, REWARD, ACCURACY, RATE]),
        ("c3po_kl", ["dpo", *SFT, "kl/near_scope", "kl/out_of_scope", *REWARDS], [LOSS, KL, REWARD, ACCURACY, RATE]),
    ],
)
def test_every_logged_term_is_drawn_in_its_panel(method, columns, panels):
    values = np.random.default_rng(0).random((5, len(columns) + 1))
    log = pd.DataFrame(values, columns=[*columns, "learning_rate"])
    axes = training_curves(log, method)
    assert [ax.get_ylabel() for ax in axes] == panels
    drawn = [line.get_ydata() for ax in axes for line in ax.lines]
    assert all(any(np.array_equal(log[name], line) for line in drawn) for name in log)
    starts = [line for line in axes[0].lines if line.get_label() == "ln 2"]
    assert [line.get_ydata()[0] for line in starts] == [math.log(2)] * ("dpo" in columns)
    plt.close("all")
