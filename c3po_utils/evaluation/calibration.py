"""How far a judge can be trusted: agreement with the metric, and its taste for places and for length.

Everything starts from judged answers (judge.judge_rows): `score` is the judge's, in [-1, 1] (NaN: no verdict),
`metric_score` the metric's h in {-1, 0, 1}, taken as gold (NaN: no metric). A judge that was not asked in both orders
has no `score_answer_first` and `score_answer_second`. Equal texts tell nothing about a judge and are left out.

The same prompt comes once per method, so rows are not independent: shares have Wilson intervals with the number of
prompts as sample size, agreement has percentile intervals of a bootstrap over prompts. `equal_lengths` takes the taste
for long, or short, answers out of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from c3po_utils.evaluation.judge import ORDERS

Array = NDArray[np.float64]
Finding = tuple[float, float, float, int]  # value, bounds, rows behind it

CLASSES = (-1, 0, 1)
SEES = 0.5  # from here on a score counts as a difference: "somewhat more" in both orders
PROMPT = ["feedback", "prompt_id"]
CELL = ["feedback", "method", "split"]


@dataclass(frozen=True)
class Check:
    """A number about a judge, the range in which it is fine, and what to say, and do, where it is not.

    A bias is only told of when its whole interval is outside, so that chance in a few prompts raises no alarm;
    agreement has to show itself, so there the value decides (`by_value`).
    """

    what: str
    least: float
    most: float
    warning: str
    by_value: bool = False

    def flags(self, value: float, low: float, high: float) -> bool:
        low, high = (value, value) if self.by_value else (low, high)
        return high < self.least or low > self.most


CHECKS = {
    "missing": Check(
        "pairs without a score", 0, 0.05,
        "Many pairs have no verdict. Read every score with its worst and best case.", by_value=True,
    ),
    "flips": Check(
        "the winner changes with the order", 0, 0.2,
        "The judge often contradicts itself when the two answers change places. Its scores are noisy.",
    ),
    "first": Check(
        "the answer shown first wins, of decided verdicts", 0.4, 0.6,
        "The judge goes by the place. The mean of both orders cancels that, and what is left of the scores is weak.",
    ),
    "longer": Check(
        "the longer answer wins, of the metric's ties that it decides", 0.4, 0.6,
        "The judge goes by length. Read the scores at equal lengths.",
    ),
    "kappa": Check(
        "Cohen's kappa with the metric", 0.4, 1,
        "The judge hardly sees what the metric sees. Do not trust its scores.", by_value=True,
    ),
    "auc": Check(
        "AUC: an answer that gained the effect is scored above one that did not", 0.7, 1,
        "The judge's scores hardly tell answers that gained the effect from others.", by_value=True,
    ),
}  # fmt: skip


def calibration(judged: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per check (index: `CHECKS`) with `value`, 95% bounds `low` and `high`, `n` rows and the `warning`.

    Without a metric there is no gold: then agreement and ties are not known, and their `n` is 0.
    """
    found = dict(_findings(asked(judged), draws, seed))
    rows = []
    for name, (value, low, high, n) in found.items():
        check = CHECKS[name]
        warning = check.warning if check.flags(value, low, high) else ""
        rows.append({"check": check.what, "value": value, "low": low, "high": high, "n": n, "warning": warning})
    return pd.DataFrame(rows, index=list(found))


def asked(judged: pd.DataFrame) -> pd.DataFrame:
    """The pairs that had to be judged: two texts, and not the same. Numbers are floats; a column `longer` is added,
    log(len(answer) / len(baseline)) in characters."""
    rows = judged[judged["answer"].astype(bool) & judged["baseline"].astype(bool)]
    rows = rows[rows["answer"] != rows["baseline"]]
    lengths = [np.log(rows[column].str.len().astype(float)) for column in ("answer", "baseline")]
    numbers = rows.columns.intersection(["score", "metric_score", *(f"score_{order}" for order in ORDERS)])
    return rows.astype(dict.fromkeys(numbers, float)).assign(longer=lengths[0] - lengths[1])


def _findings(rows: pd.DataFrame, draws: int, seed: int) -> Iterator[tuple[str, Finding]]:
    yield "missing", _share(rows["score"].isna(), rows)
    columns = [f"score_{order}" for order in ORDERS]
    if set(columns) <= set(rows):
        both = rows.dropna(subset=columns)
        first, second = (both[column] for column in columns)
        yield "flips", _share(first * second < 0, both)
        shown = pd.concat([both.assign(leans=first), both.assign(leans=-second)])
        shown = shown[shown["leans"] != 0]
        yield "first", _share(shown["leans"] > 0, shown)
    gold = rows.dropna(subset=["score", "metric_score"])
    ties = gold[(gold["metric_score"] == 0) & (gold["score"] * gold["longer"] != 0)]
    yield "longer", _share(ties["score"] * ties["longer"] > 0, ties)
    yield "kappa", _bootstrapped(gold, kappa, draws, seed)
    yield "auc", _bootstrapped(gold, auc, draws, seed)


def _share(hits: pd.Series, rows: pd.DataFrame) -> Finding:
    """A share of rows with Wilson bounds, as if every prompt were one observation."""
    if rows.empty:
        return np.nan, np.nan, np.nan, 0
    prompts = rows.groupby(PROMPT).ngroups
    return hits.mean(), *proportion_confint(hits.mean() * prompts, prompts, method="wilson"), len(rows)


def _bootstrapped(rows: pd.DataFrame, statistic: Callable[[Array, Array], float], draws: int, seed: int) -> Finding:
    """statistic(gold, score) with percentile bounds over resampled prompts; NaN where it is not defined."""
    if rows.empty:
        return np.nan, np.nan, np.nan, 0
    gold, score = rows["metric_score"].to_numpy(), rows["score"].to_numpy()
    prompt, count = rows.groupby(PROMPT).ngroup().to_numpy(), rows.groupby(PROMPT).ngroups
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    picks = (np.repeat(np.arange(len(rows)), drawn[prompt]) for drawn in times)
    values = np.array([statistic(gold[pick], score[pick]) for pick in picks])
    values = values[~np.isnan(values)]
    bounds = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return statistic(gold, score), *bounds, len(rows)


def seen(score: Array) -> Array:
    """What a judge's score amounts to beside the metric's h: -1, 0 or 1."""
    return np.sign(score) * (np.abs(score) >= SEES)


def kappa(gold: Array, score: Array) -> float:
    """Cohen's kappa of the metric's and the judge's -1, 0 or 1; NaN where both only ever say one and the same."""
    with np.errstate(invalid="ignore"):
        return cohens_kappa(confusion(gold, score), return_results=False)


def auc(gold: Array, score: Array) -> float:
    """The chance that an answer with h = 1 has a higher score than one with h < 1 (ties count half)."""
    gained, others = score[gold == 1], score[gold < 1]
    if not (len(gained) and len(others)):
        return np.nan
    return mannwhitneyu(gained, others, method="asymptotic").statistic / (len(gained) * len(others))


def confusion(gold: Array, score: Array) -> NDArray[np.int64]:
    """Counts [3, 3]: a row per h of the metric, a column per -1, 0, 1 of the judge."""
    cell = 3 * (gold + 1) + seen(score) + 1
    return np.bincount(cell.astype(int), minlength=9).reshape(3, 3)


def confusion_table(judged: pd.DataFrame) -> pd.DataFrame:
    """The confusion of a judge with the metric, over the pairs that both have a score for."""
    rows = asked(judged).dropna(subset=["score", "metric_score"])
    names = [pd.Index(CLASSES, name=name) for name in ("metric", "judge")]
    return pd.DataFrame(confusion(rows["metric_score"].to_numpy(), rows["score"].to_numpy()), *names)


def disagreements(judged: pd.DataFrame) -> pd.DataFrame:
    """The pairs that metric and judge see differently, the widest apart first."""
    rows = asked(judged).dropna(subset=["score", "metric_score"])
    rows = rows[seen(rows["score"]) != rows["metric_score"]]
    return rows.loc[(rows["score"] - rows["metric_score"]).abs().sort_values(ascending=False, kind="stable").index]


def flips(judged: pd.DataFrame) -> pd.DataFrame:
    """The pairs in which each order has another winner, the most decided first."""
    rows = asked(judged)
    product = rows[f"score_{ORDERS[0]}"] * rows[f"score_{ORDERS[1]}"]
    return rows.loc[product[product < 0].sort_values(kind="stable").index]


def equal_lengths(judged: pd.DataFrame) -> pd.DataFrame:
    """The answers with the score that the judge would have given at equal lengths.

    With r = log(len(answer) / len(baseline)) in characters and s its standard deviation, the regression

        score_i = a_c + b_1 sign(r_i) + b_2 tanh(r_i / s) + b_3 h_i + e_i

    has an intercept a_c for each feedback, method and split c, so that only answers of one method in one place are
    compared with each other; h is the metric's score, where there is one, so that an effect that makes answers longer
    is not taken for a taste for length. The score at equal lengths is

        score_i - b_1 sign(r_i) - b_2 tanh(r_i / s),    cut to [-1, 1].

    sign() is there for judges who look at which answer is longer, tanh() for those who look at how much. Where the
    feedback is about length and has no metric, its effect goes with the taste; where every answer is longer than its
    baseline, taste and effect cannot be told apart, and the score keeps both.
    """
    judged = judged.reset_index(drop=True)
    rows = asked(judged).dropna(subset="score")
    spread = rows["longer"].std(ddof=0)
    taste = pd.DataFrame({"sign": np.sign(rows["longer"]), "tanh": np.tanh(rows["longer"] / (spread or 1))})
    within = taste.assign(metric_score=rows["metric_score"].fillna(0), score=rows["score"])
    within -= within.groupby([rows[key] for key in CELL]).transform("mean")  # as dummies for the cells would
    slopes = np.linalg.lstsq(within[["sign", "tanh", "metric_score"]], within["score"])[0]
    score = judged["score"].astype(float)
    return judged.assign(score=score.sub(taste @ slopes[:2], fill_value=0).where(score.notna()).clip(-1, 1))
