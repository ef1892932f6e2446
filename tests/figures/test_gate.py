"""The gate's picture: every prompt is a dot, the shares beside them are those right of the line."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from c3po_utils.figures.gate import NAMES, gate_scores
from c3po_utils.figures.style import save


@pytest.fixture
def scores() -> pd.DataFrame:
    draw, rows = np.random.default_rng(0), []
    for split, mean in (("in_scope", 4.0), ("near_scope", -3.0), ("out_of_scope", -8.0)):
        for fold, count in (("train", 42), ("test", 18)):
            found = draw.normal(mean, 2.0, count)
            rows += [
                {"id": f"{split}/{n}", "split": split, "fold": fold, "score": x, "threshold": -0.5}
                for n, x in enumerate(found)
            ]
    return pd.DataFrame(rows)


def dots(ax) -> list:
    return [line for line in ax.lines if line.get_linestyle() == "None"]


def test_every_prompt_is_a_dot_and_shares_are_those_that_open(scores):
    ax = gate_scores(scores, "scd_gated")
    assert [len(line.get_xdata()) for line in dots(ax)] == [42, 18] * 3
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["in scope, train", "in scope, test"]
    shown = [text.get_text() for text in ax.texts if " of " in text.get_text()]
    opened = (scores["score"] > -0.5).groupby([scores["split"], scores["fold"]], sort=False).mean()
    assert shown == [f"{value:.0%} of {42 if fold == 'train' else 18}" for (_, fold), value in opened.items()]
    left, right = ax.get_xlim()
    assert left < scores["score"].min() < scores["score"].max() < right
    for place, line in enumerate(dots(ax)):
        assert np.abs(line.get_ydata() - place).max() < 0.5  # rows do not mix
    plt.close()


@pytest.mark.parametrize(
    ("threshold", "side", "said", "told"),
    [(150_000.0, 1, r"$\pi_0$ answers", "1.5e+05"), (-1000.0, 0, "gate + SCD: adapter added", "−1000.00")],
)
def test_a_threshold_beyond_all_scores_is_at_the_edge(scores, threshold, side, said, told, tmp_path):
    ax = gate_scores(scores.assign(threshold=threshold), "scd_gated")
    line = next(line for line in ax.lines if len(line.get_xdata()) == 2)
    assert line.get_xdata()[0] == ax.get_xlim()[side]
    assert [text.get_text() for text in ax.texts[-2:]] == ["opens at", said]
    assert ax.figure.legends[0].get_title().get_text() == f"line: the threshold, {told}"
    inside, beyond = (plt.imread(save(drawn, tmp_path, "gate")[0]) for drawn in (gate_scores(scores, "scd_gated"), ax))
    assert abs(beyond.shape[1] - inside.shape[1]) < 100
    plt.close("all")


def test_folds_and_kinds_that_are_not_there_have_no_row(scores):
    ax = gate_scores(scores[(scores["fold"] == "train") & (scores["split"] != "out_of_scope")], "scd_gated")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["in scope, train", "near scope, train"]
    assert set(NAMES) == {"in_scope", "near_scope", "out_of_scope"}
    plt.close()
