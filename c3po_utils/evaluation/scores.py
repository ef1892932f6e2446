"""From answers to scores: the paper's S_in, S_out and S_overall, with intervals and paired differences.

Everything starts from the tidy answers table of evaluate.score_rows, one row per feedback, method and prompt: `score`
in [-1, 1] compares the answer with the baseline (NaN: no verdict), `passes` says whether it passes the metric (NaN: no
metric). Per feedback and method (section 5 of the paper):

    S_in      = mean score over in-scope prompts           in [-1, 1], higher is better
    S_near    = mean |score| over near-scope prompts       in [0, 1], lower is better
    S_general = mean |score| over out-of-scope prompts     in [0, 1], lower is better
    S_out     = (S_near + S_general) / 2
    S_overall = (S_in + 1 - S_out) / 2                     in [-0.5, 1]

Answers without a verdict are left out of the means and counted in `n_missing`; `missing_bounds` shows what they could
change. A score whose split is absent is NaN. How intervals are made, and how well they cover, is in intervals.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy  # its parts, which take half a second, are imported when they are used

from c3po_utils.evaluation import intervals
from c3po_utils.evaluation.intervals import FEW, Array, Linear, Spread
from c3po_utils.feedback import SPLITS

Uncertainty = Literal["interval", "se"]  # shown beside a score: 95% interval, or standard error as in the paper
SCORES = ("S_in", "S_near", "S_general", "S_out", "S_overall")
COLUMNS = ("feedback", "method", "split", "category", "prompt_id", "score")
ENDS = ("share", "share_se", "share_lo", "share_hi")
KEY = ["feedback", "split", "prompt_id"]
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1 / 2, 1 / 2], [1 / 2, -1 / 4, -1 / 4]])
RANGES = np.array([[-1, 1], [0, 1], [0, 1], [0, 1], [-0.5, 1]])
PAPER = Linear(SCORES, WEIGHTS, np.array([0, 0, 0, 0, 0.5]), RANGES)
DIFFERENCE = Linear(SCORES, WEIGHTS, np.zeros(5), np.diff(RANGES) * [-1, 1], scale="linear")
SHARE = Linear(SPLITS, np.eye(3), np.zeros(3), np.array([[0, 1]] * 3))
SIGNED = Linear(SPLITS, np.eye(3), np.zeros(3), np.array([[-1, 1]] * 3))


def check(answers: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The table itself; ValueError when columns, splits or scores are not what the scores are defined on."""
    absent = [column for column in columns if column not in answers]
    if absent:
        raise ValueError(f"answers: columns {absent} are missing; found {list(answers.columns)}")
    unknown = sorted(set(answers["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"answers: unknown split {unknown[0]!r}; expected one of {', '.join(SPLITS)}")
    outside = answers["score"].abs() > 1
    if outside.any():
        raise ValueError(f"answers: {outside.sum()} scores outside [-1, 1], first in row {outside.idxmax()}")
    twice = answers.duplicated(["method", *KEY])
    if twice.any():
        row = answers.loc[twice.to_numpy(), ["method", *KEY]].iloc[0].tolist()
        raise ValueError(f"answers: {twice.sum()} rows repeat method, feedback, split and prompt, first {row}")
    return answers


def _values(answers: pd.DataFrame) -> pd.Series:
    """What a prompt adds to its split's mean: the score in scope, its size elsewhere."""
    score = answers["score"].astype(float)
    return score.where(answers["split"] == "in_scope", score.abs())


def _wide(index: pd.DataFrame, linear: Linear, columns: dict[str, Array]) -> pd.DataFrame:
    """`index` with a column per score and suffix, e.g. S_in and S_in_lo, from arrays [..., K] by suffix."""
    parts = {
        name + suffix: values[..., k].ravel()
        for k, name in enumerate(linear.names)
        for suffix, values in columns.items()
    }
    return pd.concat([index, pd.DataFrame(parts, index=index.index)], axis=1)


def _counts(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Prompts asked, and those among them without a verdict."""
    missing = rows["value"].isna().groupby([rows[key] for key in by])
    return pd.DataFrame({"n_prompts": missing.size(), "n_missing": missing.sum()}).reset_index()


def feedback_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per feedback and method: each score with 95% bounds, `n_prompts` (asked) and `n_missing`.

    Bounds (`S_in_lo`, `S_in_hi`, ...) are clustered by prompt category within the feedback and say what other
    prompts for the same feedback would give.
    """
    rows = check(answers).assign(value=_values(answers))
    data = intervals.cells(rows)
    scores = PAPER.of(intervals.means(data))
    lo, hi = intervals.t_interval(scores, intervals.within(data, PAPER), PAPER)
    index = pd.MultiIndex.from_product([data.feedbacks, data.methods], names=["feedback", "method"])
    table = _wide(index.to_frame(index=False), PAPER, {"": scores, "_lo": lo, "_hi": hi})
    return table.merge(_counts(rows, ["feedback", "method"]), on=["feedback", "method"])


def method_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per method: means over feedbacks with standard errors (`S_in_se`) and 95% bounds.

    `_se` is the paper's, the spread of the feedbacks' scores over sqrt(n_feedbacks); NaN for a single feedback. The
    bounds speak about feedbacks like these when there are at least four, else about these feedbacks with other prompts;
    `interval_note` says which.
    """
    return _means(check(answers).assign(value=_values(answers)), PAPER)


def _means(rows: pd.DataFrame, linear: Linear, paired: bool = False) -> pd.DataFrame:
    data = intervals.cells(rows)
    scores = linear.of(intervals.means(data))
    mean, spread = intervals.across(scores, intervals.within(data, linear), paired)
    lo, hi = intervals.t_interval(mean, spread, linear)
    columns = {"": mean, "_se": intervals.standard_error(scores), "_lo": lo, "_hi": hi}
    if paired:
        columns["_p"] = _p_values(mean, spread, (~np.isnan(scores)).sum(0))
    table = _wide(pd.DataFrame({"method": data.methods}), linear, columns)
    table["n_feedbacks"] = (data.n_FMSC.sum((2, 3)) > 0).sum(0)
    return table.merge(_counts(rows, ["method"]), on="method")


def _p_values(mean: Array, spread: Spread, feedbacks: Array) -> Array:
    """Two-sided p of mean 0; where all n differ alike, the sign test's 2^(1-n) (1 if by nothing).

    n are the feedbacks, with fewer than `FEW` of them their prompts.
    """
    agree = spread.variance < intervals.AGREE
    statistic = np.abs(mean) / np.sqrt(np.where(agree, 1, spread.variance))
    alike = np.where(
        np.abs(mean) > 1e-12, 2.0 ** (1 - np.maximum(np.where(feedbacks >= FEW, feedbacks, spread.n), 1)), 1.0
    )
    return np.where(np.isnan(mean), np.nan, np.where(agree, alike, 2 * scipy.stats.t.sf(statistic, spread.df)))


def paired_differences(
    answers: pd.DataFrame, method: str, reference_methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per reference: `method` minus reference on the prompts that both have a verdict for.

    Each score's difference comes with bounds, the two-sided `_p` of the paired t test over feedbacks (below four of
    them over categories within them), and `_p_holm`, adjusted over the references within that score.
    """
    rows = check(answers).assign(value=_values(answers)).dropna(subset="value")
    known = list(pd.unique(rows["method"]))
    if reference_methods is None:
        reference_methods = [other for other in known if other != method]
    for name in (method, *reference_methods):
        if name not in known:
            raise ValueError(f"method {name!r} has no scored answers; found {', '.join(known)}")
    left = rows.loc[rows["method"] == method, [*KEY, "category", "value"]]
    right = rows.loc[rows["method"].isin(reference_methods), [*KEY, "method", "value"]]
    pairs = left.merge(right, on=KEY, suffixes=("", "_reference"))
    pairs["value"] -= pairs["value_reference"]
    table = _means(pairs, DIFFERENCE, paired=True).rename(columns={"method": "reference"})
    for name in SCORES:
        table[f"{name}_p_holm"] = _holm(table[f"{name}_p"])
    table = table.set_index("reference").reindex(reference_methods).reset_index().drop(columns="n_missing")
    return table.assign(method=method)[["method", *table.columns]]


def _holm(p_values: pd.Series) -> pd.Series:
    """Holm's adjustment of the p-values that are there."""
    from statsmodels.stats.multitest import multipletests  # takes half a second, which a check need not wait

    there = p_values.dropna()
    adjusted = multipletests(there, method="holm")[1] if len(there) else []
    return pd.Series(adjusted, index=there.index).reindex(p_values.index)


def missing_bounds(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per method: each score had every missing verdict been the worst, or the best, it could be.

    In scope that is -1 or 1; elsewhere a full change, |score| = 1, or none.
    """
    rows = check(answers).assign(value=_values(answers))
    inside = rows["split"] == "in_scope"
    table = {}
    for suffix, fill in {"worst": np.where(inside, -1.0, 1.0), "best": np.where(inside, 1.0, 0.0)}.items():
        data = intervals.cells(rows.assign(value=rows["value"].where(rows["value"].notna(), fill)))
        scores = intervals.across(PAPER.of(intervals.means(data)), intervals.within(data, PAPER))[0]
        table |= {f"{name}_{suffix}": scores[:, k] for k, name in enumerate(SCORES)}
    ordered = [f"{name}_{suffix}" for name in SCORES for suffix in ("worst", "best")]
    bounds = pd.DataFrame({"method": data.methods, **table})[["method", *ordered]]
    return bounds.merge(_counts(rows, ["method"]), on="method")


def application_share(answers: pd.DataFrame) -> pd.DataFrame:
    """Figure 6: the share of prompts whose answer applies the feedback, one row per method and split.

    An answer applies it when it passes the metric (`passes`), or without one when its score is above 0. Shares are
    means over feedbacks; bounds are made as the scores' are, clustered by feedback and category.
    """
    rows = check(answers, (*COLUMNS, "passes")).assign(value=applied(answers))
    wide = _means(rows, SHARE)
    shares = [
        wide[["method", "n_feedbacks"]].assign(split=split, **{end: wide[end.replace("share", split)] for end in ENDS})
        for split in SPLITS
    ]
    table = pd.concat(shares).merge(_counts(rows, ["method", "split"]), on=["method", "split"])
    return table[["method", "split", *ENDS, "n_feedbacks", "n_prompts", "n_missing"]]


def applied(answers: pd.DataFrame) -> pd.Series:
    """1 where an answer applies the feedback, 0 where it does not, NaN where neither metric nor judge says."""
    passes = answers["passes"].astype("boolean").astype(float)
    score = answers["score"].astype(float)
    return passes.fillna((score > 0).astype(float).where(score.notna()))


def split_means(answers: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per method: the mean over feedbacks of a column in [-1, 1] in each split, with t bounds."""
    return _means(check(answers).assign(value=answers[column].astype(float)), SIGNED)


def interval_note(table: pd.DataFrame) -> str:
    """What the intervals of a table are, for captions."""
    if "n_feedbacks" not in table:
        return "95% intervals, clustered by prompt category within the feedback"
    counts = sorted(set(table["n_feedbacks"]))
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    if counts[0] >= FEW:
        return f"95% intervals over {number} feedbacks"
    if counts[-1] >= FEW:
        return f"95% intervals over {number} feedbacks, or with fewer than {FEW} over their prompt categories"
    return f"95% intervals over prompt categories, {number} feedback{'s' * (counts[-1] > 1)} held fixed"
