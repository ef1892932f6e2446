"""A judge's scores without its taste for long, or short, answers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from c3po_utils.calibration import asked

CELL = ["feedback", "method", "split"]


def equal_lengths(judged: pd.DataFrame) -> pd.DataFrame:
    """The answers with the score that the judge would have given at equal lengths.

    With r = log(len(answer) / len(baseline)) in characters and s its standard deviation, the regression

        score_i = a_c + b_1 sign(r_i) + b_2 tanh(r_i / s) + b_3 h_i + e_i

    has an intercept a_c for each feedback, method and split c, so that only answers of one method in one place are
    compared with each other; h is the metric's score, where there is one, so that an effect that makes answers
    longer is not taken for a taste for length. The score at equal lengths is

        score_i - b_1 sign(r_i) - b_2 tanh(r_i / s),    cut to [-1, 1].

    sign() is there for judges who look at which answer is longer, tanh() for those who look at how much; a straight
    line in the difference leaves 0.08 of such a judge's taste in the score where two thirds of the answers are
    longer. Where the feedback is about length and has no metric, its effect goes with the taste; where every answer
    is longer than its baseline, taste and effect cannot be told apart, and the score keeps both.
    """
    judged = judged.reset_index(drop=True)
    rows = asked(judged).dropna(subset="score")
    spread = rows["longer"].std(ddof=0)
    taste = pd.DataFrame({"sign": np.sign(rows["longer"]), "tanh": np.tanh(rows["longer"] / (spread or 1))})
    within = taste.assign(heuristic=rows["heuristic"].fillna(0), score=rows["score"])
    within -= within.groupby([rows[key] for key in CELL]).transform("mean")  # as dummies for the cells would
    slopes = np.linalg.lstsq(within[["sign", "tanh", "heuristic"]], within["score"])[0]
    score = judged["score"].astype(float)
    return judged.assign(score=score.sub(taste @ slopes[:2], fill_value=0).where(score.notna()).clip(-1, 1))
