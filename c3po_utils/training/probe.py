"""A linear probe of hidden states: logistic regression, cross-validated over categories, and its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import rankdata

SHARES = {"in_scope": 0.5, "near_scope": 0.25, "out_of_scope": 0.25}  # of all weight; a split's prompts share its part
MOST_FOLDS = 10
PLATT_L2 = 1e-3
BINS = 10  # of the calibration error

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """Logistic regression on standardized features: the log-odds that a prompt is in scope.

    The odds are those among prompts of which half are in scope, a quarter near it and a quarter general (`SHARES`).
    """

    weights_D: Floats
    mean_D: Floats
    scale_D: Floats
    bias: float

    def __call__(self, features_ND: Floats) -> Floats:
        return (features_ND - self.mean_D) / self.scale_D @ self.weights_D + self.bias


def split_weights(splits_N: Sequence[str]) -> Floats:
    """(N,), sums to 1: half for the prompts in scope, the other half for the kinds of others that there are.

    Raises:
        ValueError: no prompt in scope, or none outside.
    """
    counts = {split: list(splits_N).count(split) for split in SHARES}
    outside = sum(share for split, share in SHARES.items() if split != "in_scope" and counts[split])
    if not counts["in_scope"] or not outside:
        raise ValueError(f"a gate needs prompts in scope and others: found {counts}")
    parts = {split: share if split == "in_scope" else share / (2 * outside) for split, share in SHARES.items()}
    return np.array([parts[split] / counts[split] for split in splits_N])


def fit_probe(features_ND: Floats, splits_N: Sequence[str], l2: float) -> Probe:
    """The probe that minimizes the mean logistic loss, weighted by `split_weights`, plus l2 |w|^2.

    Args:
        features_ND: standardized here, by their own means and standard deviations.

    Raises:
        ValueError: features that are no numbers; else as `split_weights`.
    """
    if not np.isfinite(features_ND).all():
        raise ValueError("a gate's features are hidden states of finite numbers; found others")
    weights_N = split_weights(splits_N)
    signs_N = np.where(np.array(splits_N) == "in_scope", 1.0, -1.0)
    mean_D, scale_D = features_ND.mean(0), features_ND.std(0)
    scale_D[scale_D < 1e-6] = 1.0
    z_ND = (features_ND - mean_D) / scale_D

    def loss(parameters: Floats) -> tuple[float, Floats]:
        w_D, b = parameters[:-1], parameters[-1]
        margins_N = signs_N * (z_ND @ w_D + b)
        slopes_N = -weights_N * signs_N * expit(-margins_N)
        value = -weights_N @ log_expit(margins_N) + l2 * w_D @ w_D
        return value, np.append(slopes_N @ z_ND + 2 * l2 * w_D, slopes_N.sum())

    found = minimize(loss, np.zeros(z_ND.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return Probe(found[:-1], mean_D, scale_D, float(found[-1]))


def deal_folds(rows: Sequence[dict]) -> NDArray[np.int64]:
    """(N,), each row's fold, at most ten of them: a category of a feedback goes there whole, in and near scope.

    General prompts belong to no category of the feedback and are dealt one by one, as are all with only one category.
    Rows with one id, a prompt in several manners, stay together.
    """
    categories = sorted({(row["feedback"], row["category"]) for row in rows if row["split"] != "out_of_scope"})
    if len(categories) < 2:
        places = {id: place for place, (_, id) in enumerate(sorted({(row["split"], row["id"]) for row in rows}))}
        return np.array([places[row["id"]] % MOST_FOLDS for row in rows])
    fold = {category: place % MOST_FOLDS for place, category in enumerate(categories)}
    general = sorted({row["id"] for row in rows if row["split"] == "out_of_scope"})
    dealt = {id: place % min(len(categories), MOST_FOLDS) for place, id in enumerate(general)}
    return np.array([
        dealt[row["id"]] if row["split"] == "out_of_scope" else fold[row["feedback"], row["category"]] for row in rows
    ])  # fmt: skip


def cross_validated(features_ND: Floats, splits_N: Sequence[str], folds_N: NDArray[np.int64], l2: float) -> Floats:
    """(N,): each prompt's score by a probe that was fitted without the prompt's fold.

    Raises:
        ValueError: without some fold nothing is left in scope, or nothing outside; says what is needed.
    """
    splits, scores_N = np.array(splits_N), np.empty(len(splits_N))
    for fold in np.unique(folds_N):
        held = folds_N == fold
        try:
            scores_N[held] = fit_probe(features_ND[~held], list(splits[~held]), l2)(features_ND[held])
        except ValueError as error:
            raise ValueError(f"too few prompts to cross-validate a gate: without fold {fold}, {error}") from None
    return scores_N


def choose_threshold(scores_N: Floats, splits_N: Sequence[str], leak: float = 0.0) -> float:
    """The threshold above which the gate opens, from scores by cross-validation.

    Args:
        leak: the largest share of prompts out of scope that may lie above it (near scope and general count alike, as
            in S_out); the gate is then as open as that allows. 0: a miss in scope costs as much as a leak elsewhere,
            so it opens at even odds. These are the odds that the scores turned out to mean (Platt's calibration, a
            probe of the scores); the best cut through some dozens of scores would follow single prompts.
    """
    if not leak:
        calibration = fit_probe(scores_N[:, None], splits_N, PLATT_L2)
        slope = max(float(calibration.weights_D[0]), 1e-6)  # scores that mean nothing, or the opposite: at no odds
        return float(calibration.mean_D[0] - calibration.bias / slope * calibration.scale_D[0])
    weights_N, outside_N = split_weights(splits_N), np.array(splits_N) != "in_scope"
    levels = np.unique(scores_N)
    edges = np.concatenate([[levels[0] - 1], levels, [levels[-1] + 1]])
    cuts_C = (edges[1:] + edges[:-1]) / 2
    leaks_C = 2 * (scores_N > cuts_C[:, None]) @ (weights_N * outside_N)
    return float(cuts_C[leaks_C <= leak + 1e-12][0])


def roc_auc(inside: Floats, outside: Floats) -> float:
    """How often a prompt in scope scores above another, ties counted half (Mann and Whitney's U)."""
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def fires(scores_N: Floats, splits_N: Sequence[str], threshold: float) -> dict[str, float]:
    """By split, the share of prompts at which the gate opens."""
    splits = np.array(splits_N)
    return {s: float((scores_N[splits == s] > threshold).mean()) for s in SHARES if (splits == s).any()}


def measures(scores_N: Floats, splits_N: Sequence[str], threshold: float) -> dict[str, float]:
    """What scores by cross-validation are worth.

    `roc_auc` against near scope and general, `fires`, and calibration under `split_weights`: the Brier score, and the
    mean distance of the probability from what was found in ten bins of it (expected calibration error).
    """
    splits, weights_N = np.array(splits_N), split_weights(splits_N)
    inside_N, probs_N = splits == "in_scope", expit(scores_N)
    others = [split for split in SHARES if split != "in_scope" and (splits == split).any()]
    areas = {f"roc_auc_{split}": roc_auc(scores_N[inside_N], scores_N[splits == split]) for split in others}
    bins_N = np.minimum((probs_N * BINS).astype(int), BINS - 1)
    gaps = [abs(weights_N[bins_N == b] @ (probs_N - inside_N)[bins_N == b]) for b in range(BINS)]
    return {
        "roc_auc": float(np.mean(list(areas.values()))),
        **areas,
        **{f"fires_{split}": share for split, share in fires(scores_N, splits_N, threshold).items()},
        "log_loss": float(-weights_N @ log_expit(np.where(inside_N, scores_N, -scores_N))),
        "brier": float(weights_N @ (probs_N - inside_N) ** 2),
        "calibration_error": float(sum(gaps)),
    }
