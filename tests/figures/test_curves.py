"""Training curves: a panel for what a method's log has, and none for what it lacks."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from c3po_utils.figures.curves import training_curves
from c3po_utils.figures.style import look
from c3po_utils.training.methods import get_method

SFT = ["sft/chosen", "sft/near_scope", "sft/out_of_scope"]
REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOSS, KL, REWARD, ACCURACY, RATE = (
    "loss term (nats)", r"KL($\pi_0\,\|\,\pi$) (nats)", "implicit reward", "share of pairs", "learning rate",
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


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("dpo", {"DPO", "ln 2"}),  # y+ is logged, too
        ("c3po", {"DPO", "SFT, near scope", "SFT, out of scope", "ln 2"}),
        ("c3po_nll", {"DPO", "SFT, chosen $y^+$", "SFT, near scope", "SFT, out of scope", "ln 2"}),
        ("c3po_kl", {"DPO", "ln 2"}),
        ("scd", {"SFT, chosen $y^+$"}),
    ],
)
def test_only_terms_of_the_loss_are_drawn_and_in_the_methods_colour(method, terms):
    columns = ["dpo", *SFT, "kl/near_scope", "kl/out_of_scope", *REWARDS, "learning_rate"]
    log = pd.DataFrame(np.random.default_rng(0).random((5, len(columns))), columns=columns)
    axes = training_curves(log, method, get_method(method))
    assert {line.get_label() for line in axes[0].lines} == terms
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        line.get_label() for line in axes[0].lines
    ]
    assert (KL in [ax.get_ylabel() for ax in axes]) == (method == "c3po_kl")
    assert (REWARD in [ax.get_ylabel() for ax in axes]) == (method != "scd")
    drawn = [line for ax in axes for line in ax.lines if line.get_label() != "ln 2"]
    assert {line.get_color() for line in drawn} == {look(method).color}
    assert axes[0].figure.get_suptitle() == f"Training {look(method).name}"
    plt.close("all")
