"""Is one method better than another, and could the benchmark tell? Paired over feedbacks, which are the clusters.

A feedback's prompts share its difficulty, and its categories theirs, so feedbacks are the units of every test here: one
paired difference of a score each, from the prompts that both methods have a verdict for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy  # its parts, which take half a second, are imported when they are used
from numpy.typing import NDArray

from c3po_utils.evaluation import scores

RESAMPLES = 10_000


def leads(answers: pd.DataFrame, method: str, references: Sequence[str], score: str = "S_overall") -> pd.DataFrame:
    """One row per reference: how far `method` is ahead of it in a score, over feedbacks.

    `difference` with the paired t interval (`lo`, `hi`), its two-sided `p` and `p_holm`, adjusted over the references;
    `boot_lo`, `boot_hi`: a bootstrap (BCa) over feedbacks, which needs no normal differences; `ahead`, `behind`, `n`:
    feedbacks; `sd`: of their differences.

    Raises:
        ValueError: a method without scored answers, or fewer than four feedbacks (intervals.FEW).
    """
    table = scores.paired_differences(answers, method, references).set_index("reference")
    rows = []
    for reference in references:
        own = feedback_differences(answers, method, reference, score)
        if len(own) < scores.FEW:
            raise ValueError(
                f"{method!r} and {reference!r}: expected {scores.FEW} feedbacks or more, which both have answers for,"
                f" found {len(own)}"
            )
        found = table.loc[reference]
        ends = {end: found[f"{score}_{end}"] for end in ("lo", "hi", "p", "p_holm")}
        low, high = bootstrap(own.to_numpy())
        counts = {"ahead": int((own > 1e-9).sum()), "behind": int((own < -1e-9).sum()), "n": len(own)}
        rows.append({"reference": reference, "difference": found[score], **ends, "boot_lo": low, "boot_hi": high,
                     **counts, "sd": own.std()})  # fmt: skip
    return pd.DataFrame(rows).assign(method=method)


def leads_of_first(answers: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame | None:
    """`leads` of the first method over the others; None, and a line that says why, unless all have answers enough."""
    if not methods:
        print("No leads: `compare` names no methods.")
        return None
    method, *references = methods
    scored = answers[answers["score"].notna()]
    if lacking := [one for one in methods if one not in set(scored["method"])]:
        print(f"No leads: no evaluation of {', '.join(lacking)}.")
        return None
    if few := [one for one in references if len(feedback_differences(scored, method, one)) < scores.FEW]:
        others = ", ".join(few)
        print(f"No leads: {method} and {others} have less than {scores.FEW} feedbacks in common, with all splits.")
        return None
    return leads(answers, method, references)


def feedback_differences(answers: pd.DataFrame, method: str, reference: str, score: str = "S_overall") -> pd.Series:
    """`method` less `reference` in a score, by feedback, on the prompts that both have a verdict for."""
    rows = answers[answers["method"].isin((method, reference)) & answers["score"].notna()]
    both = rows.groupby(scores.KEY)["method"].transform("nunique") == 2
    wide = scores.feedback_scores(rows[both]).pivot(index="feedback", columns="method", values=score)
    wide = wide.reindex(columns=[method, reference])  # of which none is there where they have no prompt in common
    return (wide[method] - wide[reference]).dropna()


def bootstrap(values_F: NDArray) -> tuple[float, float]:
    """95% BCa interval of the mean of one value per feedback; where all are equal, that value."""
    if np.ptp(values_F) < 1e-12:
        return float(values_F[0]), float(values_F[0])
    found = scipy.stats.bootstrap((values_F,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sd_at(sd: float, prompts: int, noise_share: float, wanted: int) -> float:
    """The sd over feedbacks of a difference with `wanted` prompts a split, from that with `prompts`.

    `noise_share` of the variance is the prompts', which falls with their number; the rest is between feedbacks.
    """
    return sd * (1 - noise_share + noise_share * prompts / wanted) ** 0.5


def detectable(sd: float, feedbacks: int, tests: int = 1, power: float = 0.8) -> float:
    """The difference that a paired t test over so many feedbacks finds with this power, two-sided at 0.05 / tests."""
    from statsmodels.stats.power import TTestPower  # takes half a second, which a check need not wait

    return sd * TTestPower().solve_power(nobs=feedbacks, alpha=0.05 / tests, power=power)
