"""Means over feedbacks with 95% intervals that respect how prompts come: in categories, within feedbacks.

Every score is linear in the means of the three splits, so the work is done on sums per category (`Cells`), and the
same few functions serve scores, shares and paired differences.

With `FEW` or more feedbacks an interval is about feedbacks like these: the standard error is the paper's, the spread of
the feedbacks' scores over sqrt(F), with F - 1 degrees of freedom. With fewer the feedbacks are held fixed, categories
within them are the units, and degrees of freedom follow Satterthwaite. Where categories vary no more than prompts alone
would, prompts are the units. It is a t interval on the logit scale of the score's range; where all prompts agree, the
rule of three.

Coverage in percent, nominal 95, of 2,000 simulated data sets with 24 prompts a split in 6 categories (feedback means
Beta-distributed and skewed: in 0.67, near 0.20, general 0.03; category correlation 0.1; measured by
tests/evaluation/test_intervals.py):

    feedbacks    S_in    near general     out overall
      2          96.4    97.6    96.2    97.2    96.0
      3          96.3    96.8    97.4    96.4    96.5
      5          95.0    95.0    80.9    95.0    94.8
     10          95.6    94.9    94.4    95.5    95.4
     30          95.6    95.3    93.8    94.9    95.6
    100          94.5    95.1    95.3    94.6    95.1

S_general is the hard one: a leak as rare as 3% that sits in a few feedbacks is often not in a sample of five, and with
ten feedbacks of 56 to 70 prompts a split its coverage is 89-90.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy  # its parts, which take half a second, are imported when they are used
from numpy.typing import NDArray

from c3po_utils.feedback import SPLITS

Array = NDArray[np.float64]

STRATA = (slice(0, 2), slice(2, 3))  # in and near scope share categories; general prompts have their own
FEW = 4  # feedbacks needed before they are treated as a sample of feedbacks
AGREE = 1e-18  # a variance below is that of equal values
CLUSTERED = 1.25  # how much more than prompts' variance counts as clustering (a single leak always gives 1)


@dataclass(frozen=True)
class Cells:
    """Counts, sums, sums of squares of a value by feedback F, method M, split S, category C (zero-padded)."""

    feedbacks: pd.Index
    methods: pd.Index
    n_FMSC: Array
    sum_FMSC: Array
    sumsq_FMS: Array


@dataclass(frozen=True)
class Linear:
    """Scores as linear functions of the splits' means: `weights_KS @ means_S + offset_K`, each within `range_K2`.

    `scale` is where their t intervals are symmetric.
    """

    names: tuple[str, ...]
    weights_KS: Array
    offset_K: Array
    range_K2: Array
    scale: Literal["logit", "linear"] = "logit"

    def of(self, means: Array) -> Array:
        """Scores [..., K] from means [..., S]; NaN where a split that the score needs is NaN."""
        lacking = np.isnan(means) @ (self.weights_KS != 0).T
        return np.where(lacking, np.nan, np.nan_to_num(means) @ self.weights_KS.T + self.offset_K)


@dataclass(frozen=True)
class Spread:
    """An estimate's variance, its degrees of freedom, and the prompts behind it."""

    variance: Array
    df: Array
    n: Array


def cells(rows: pd.DataFrame) -> Cells:
    """Sums of column `value` (NaN skipped); a row without a category is a category of its own."""
    feedback, feedbacks = pd.factorize(rows["feedback"])
    method, methods = pd.factorize(rows["method"])
    split = pd.Categorical(rows["split"], categories=SPLITS).codes.astype(np.int64)
    category, names = pd.factorize(rows["category"].fillna(rows["prompt_id"]))
    group = feedback * 2 + (split == 2)  # categories are numbered within feedback and stratum
    keys, place = np.unique(group * (len(names) + 1) + category, return_inverse=True)
    place = place - np.searchsorted(keys, group * (len(names) + 1))
    shape = (len(feedbacks), len(methods), len(SPLITS), int(place.max(initial=0)) + 1)
    value = rows["value"].to_numpy(float)
    seen = ~np.isnan(value)
    at = np.ravel_multi_index((feedback, method, split, place), shape)[seen]

    def total(weights: Array | None) -> Array:
        return np.bincount(at, weights, minlength=int(np.prod(shape))).reshape(shape).astype(float)

    value = value[seen]
    return Cells(feedbacks, methods, total(None), total(value), total(value**2).sum(-1))


def means(data: Cells) -> Array:
    """Mean by feedback, method and split, [F, M, S]; NaN where there is no prompt."""
    with np.errstate(invalid="ignore"):
        return data.sum_FMSC.sum(-1) / data.n_FMSC.sum(-1)


def category_variance(data: Cells, weights_KS: Array, stratum: slice) -> tuple[Array, Array]:
    """Cluster-robust variance [F, M, K] of weighted means, and the number of categories behind it.

    v = C / (C - 1) * sum_c e_c^2 with e_c = sum_s w_s (sum_sc - mean_s n_sc) / n_s: statsmodels'
    `cov_type="cluster"` for a mean. 0 with a single category, which has no spread to show.
    """
    n_FMSC = data.n_FMSC[:, :, stratum]
    n_FMS1 = np.maximum(n_FMSC.sum(-1, keepdims=True), 1)
    sum_FMSC = data.sum_FMSC[:, :, stratum]
    influence = (sum_FMSC - sum_FMSC.sum(-1, keepdims=True) / n_FMS1 * n_FMSC) / n_FMS1
    squares = (np.einsum("ks,fmsc->fmkc", weights_KS[:, stratum], influence, optimize=True) ** 2).sum(-1)
    used = np.einsum("ks,fmsc->fmkc", (weights_KS[:, stratum] != 0) * 1.0, (n_FMSC > 0) * 1.0, optimize=True)
    count = (used > 0).sum(-1)
    return np.where(count > 1, count / np.maximum(count - 1, 1) * squares, 0.0), count


def prompt_variance(data: Cells, weights_KS: Array, stratum: slice) -> tuple[Array, Array]:
    """Variance [F, M, K] of weighted means were prompts independent, s^2 / n, and the number of prompts."""
    n_FMS = data.n_FMSC[:, :, stratum].sum(-1)
    mean = data.sum_FMSC[:, :, stratum].sum(-1) / np.maximum(n_FMS, 1)
    deviations = np.maximum(data.sumsq_FMS[:, :, stratum] - n_FMS * mean**2, 0)
    variance = deviations / np.maximum(n_FMS - 1, 1) / np.maximum(n_FMS, 1)
    return variance @ (weights_KS[:, stratum] ** 2).T, n_FMS @ (weights_KS[:, stratum] != 0).T


def within(data: Cells, linear: Linear) -> Spread:
    """Each feedback's own spread, [F, M, K]: the larger of the categories' and the prompts' variance.

    Degrees of freedom are the categories' where they vary clearly more than prompts alone would.
    """
    variance, weighted, n = 0.0, 0.0, np.inf
    for stratum in STRATA:
        by_category, categories = category_variance(data, linear.weights_KS, stratum)
        by_prompt, prompts = prompt_variance(data, linear.weights_KS, stratum)
        part = np.maximum(by_category, by_prompt)
        df = np.maximum(np.where(by_category > CLUSTERED * by_prompt, categories, prompts) - 1, 1)
        variance, weighted = variance + part, weighted + part**2 / df
        n = np.minimum(n, np.where(prompts > 0, prompts, np.inf))
    return Spread(variance, satterthwaite(variance, weighted), n)


def satterthwaite(variance: Array, weighted: Array) -> Array:
    """Degrees of freedom of a sum of variances v_i: (sum v_i)^2 / sum(v_i^2 / df_i)."""
    return np.where(weighted > 0, variance**2 / np.where(weighted > 0, weighted, 1), 1.0)


def standard_error(scores_FMK: Array) -> Array:
    """The paper's standard error of a mean over feedbacks, [M, K]: sd / sqrt(F); NaN below two feedbacks."""
    count = (~np.isnan(scores_FMK)).sum(0)
    center = np.nansum(scores_FMK, 0) / np.maximum(count, 1)
    squares = np.nansum((scores_FMK - center) ** 2, 0)
    return np.sqrt(np.where(count > 1, squares / np.maximum(count - 1, 1) / np.maximum(count, 1), np.nan))


def across(scores_FMK: Array, own: Spread, paired: bool = False) -> tuple[Array, Spread]:
    """Mean over feedbacks [M, K] and its spread: between feedbacks, or with fewer than `FEW` within them.

    With `FEW` or more the larger of the two counts; of `paired` differences that between feedbacks, as in a paired t
    test, unless they are all equal.
    """
    present = ~np.isnan(scores_FMK)
    count = present.sum(0)
    mean = np.where(count > 0, np.nansum(scores_FMK, 0) / np.maximum(count, 1), np.nan)
    variance = np.where(present, own.variance, 0)
    inner = variance.sum(0) / np.maximum(count, 1) ** 2
    inner_df = satterthwaite(variance.sum(0), (variance**2 / own.df).sum(0))
    outer = np.nan_to_num(standard_error(scores_FMK) ** 2)
    top = (count >= FEW) & (outer > AGREE if paired else outer >= inner)
    # Many feedbacks never leave fewer than F - 1, not even where all spread sits in one category of one of them.
    df = np.maximum(np.where(top, 0, inner_df), np.where(count >= FEW, count - 1, 0))
    n = np.where(present & np.isfinite(own.n), own.n, 0).sum(0)
    return mean, Spread(np.where(top, outer, inner), df, n)


def t_interval(estimate: Array, spread: Spread, linear: Linear) -> tuple[Array, Array]:
    """95% t interval; on the logit scale its bounds stay inside the score's range and lean the way skew does.

    Where all n prompts agree (variance 0) the bounds leave room for the share 1 - 0.05^(1/n) of prompts that
    n equal ones cannot rule out (the rule of three).
    """
    low, high = linear.range_K2.T
    agree = spread.variance < AGREE
    half = scipy.stats.t.ppf(0.975, spread.df) * np.sqrt(spread.variance)
    if linear.scale == "logit":
        place = np.where(agree, 0.5, (estimate - low) / (high - low))
        half = half / ((high - low) * place * (1 - place))
        lower, upper = (
            low + (high - low) * scipy.special.expit(scipy.special.logit(place) + step) for step in (-half, half)
        )
    else:
        lower, upper = np.maximum(estimate - half, low), np.minimum(estimate + half, high)
    unseen = 1 - 0.05 ** (1 / np.maximum(spread.n, 1))
    lower = np.where(agree, estimate - unseen * (estimate - low), lower)
    upper = np.where(agree, estimate + unseen * (high - estimate), upper)
    return np.where(np.isnan(estimate), np.nan, lower), np.where(np.isnan(estimate), np.nan, upper)
