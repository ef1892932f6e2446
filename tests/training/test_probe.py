"""The linear probe on hand-computed numbers, and the folds, thresholds and measures of its cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_expit

from c3po_utils.training import probe

SPLITS = ["in_scope"] * 6 + ["near_scope"] * 9 + ["out_of_scope"] * 15


def clouds(splits=SPLITS, distance: float = 4.0, dims: int = 7, seed: int = 0):
    """Features (N, D) whose first coordinate tells prompts in scope from the others."""
    features = np.random.default_rng(seed).normal(size=(len(splits), dims))
    features[:, 0] += distance * np.array([split == "in_scope" for split in splits])
    return features


def rows(splits=SPLITS, categories: int = 3) -> list[dict]:
    return [
        {"id": f"{split}/{n:02}", "feedback": "f", "split": split, "category": f"c{n % categories}"}
        for n, split in enumerate(splits)
    ]


def test_weights_are_halves_and_quarters_whatever_the_counts():
    weights = probe.split_weights(SPLITS)
    assert weights[0] == pytest.approx(0.5 / 6)
    assert weights[6] == pytest.approx(0.25 / 9)
    assert weights[-1] == pytest.approx(0.25 / 15)
    assert probe.split_weights(["in_scope", "near_scope", "near_scope"]).tolist() == [0.5, 0.25, 0.25]


def test_the_fit_is_the_minimum_of_the_weighted_loss():
    features, l2 = clouds(), 0.01
    found = probe.fit_probe(features, SPLITS, l2)
    z = (features - features.mean(0)) / features.std(0)
    signs = np.where(np.array(SPLITS) == "in_scope", 1, -1)

    def loss(w, b):
        return -probe.split_weights(SPLITS) @ log_expit(signs * (z @ w + b)) + l2 * w @ w

    least = loss(found.weights_D, found.bias)
    for step in np.random.default_rng(1).normal(scale=0.05, size=(20, 8)):
        assert loss(found.weights_D + step[:7], found.bias + step[7]) > least
    assert np.allclose(found(features), z @ found.weights_D + found.bias)


def test_features_that_say_nothing_give_even_odds():
    found = probe.fit_probe(np.ones((30, 3)), SPLITS, 1e-3)
    assert expit(found(np.ones((1, 3))))[0] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (["in_scope"] * 4, "'in_scope': 4, 'near_scope': 0, 'out_of_scope': 0"),
        (["near_scope", "out_of_scope"], "'in_scope': 0, 'near_scope': 1, 'out_of_scope': 1"),
        ([], "'in_scope': 0"),
    ],
)
def test_one_class_only_is_an_error_that_counts(splits, found):
    with pytest.raises(ValueError, match=f"a gate needs prompts in scope and others: found .*{found}"):
        probe.fit_probe(np.zeros((len(splits), 2)), splits, 1e-3)


def test_features_that_are_no_numbers_are_refused():
    features = clouds()
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite numbers"):
        probe.fit_probe(features, SPLITS, 1e-3)


def test_a_category_is_held_out_whole_with_its_near_prompts():
    given = rows(categories=4)
    folds = probe.deal_folds(given)
    by_category = {}
    for row, fold in zip(given, folds, strict=True):
        if row["split"] != "out_of_scope":
            by_category.setdefault(row["category"], set()).add(fold)
    assert sorted(by_category.values(), key=min) == [{0}, {1}, {2}, {3}]
    general = [fold for row, fold in zip(given, folds, strict=True) if row["split"] == "out_of_scope"]
    assert np.bincount(general).tolist() == [4, 4, 4, 3]
    assert np.array_equal(probe.deal_folds(given[::-1]), folds[::-1])


def test_with_one_category_prompts_are_dealt_one_by_one():
    folds = probe.deal_folds(rows(categories=1))
    assert len(set(folds.tolist())) == probe.MOST_FOLDS
    scores = probe.cross_validated(clouds(), SPLITS, folds, 1e-3)
    assert probe.measures(scores, SPLITS, 0.0)["roc_auc"] > 0.9


def test_two_prompts_a_split_are_enough_and_one_is_an_error():
    few = ["in_scope", "near_scope", "out_of_scope"] * 2
    given = rows(few, categories=1)
    for n, row in enumerate(given):
        row["category"] = f"c{n // 3}"
    scores = probe.cross_validated(clouds(few), few, probe.deal_folds(given), 1e-3)
    assert np.isfinite(probe.choose_threshold(scores, few))
    one = ["in_scope", "near_scope", "out_of_scope"]
    with pytest.raises(ValueError, match=r"too few prompts to cross-validate a gate: without fold \d, a gate needs"):
        probe.cross_validated(clouds(one), one, probe.deal_folds(rows(one, 1)), 1e-3)


def test_cross_validation_does_not_see_what_it_scores():
    noise = np.random.default_rng(3).normal(size=(30, 200))  # more features than prompts: any fit is perfect
    scores = probe.cross_validated(noise, SPLITS, probe.deal_folds(rows()), 1e-3)
    assert probe.measures(scores, SPLITS, 0.0)["roc_auc"] < 0.8
    assert probe.measures(probe.fit_probe(noise, SPLITS, 1e-3)(noise), SPLITS, 0.0)["roc_auc"] == 1


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_some_wrong_labels_do_not_turn_it(noise):
    splits = SPLITS * 4
    features, draw = clouds(splits), np.random.default_rng(5)
    other = {"in_scope": "near_scope", "near_scope": "in_scope", "out_of_scope": "in_scope"}
    wrong = [other[split] if draw.random() < noise else split for split in splits]
    found = probe.fit_probe(features, wrong, 1e-2)
    assert probe.measures(found(clouds(splits, seed=9)), splits, 0.0)["roc_auc"] > 0.95


def test_the_area_is_that_of_mann_and_whitney():
    assert probe.roc_auc(np.array([3.0, 1.0]), np.array([2.0, 1.0, 0.0])) == pytest.approx(4.5 / 6)


def test_the_threshold_is_at_even_odds_or_at_a_given_leak():
    scores = np.array([5.0, 4.0, 3.0, 2.5, -1.0, -2.0, -3.0, -4.0, 6.0, -6.0])
    splits = ["in_scope"] * 4 + ["near_scope"] * 4 + ["out_of_scope"] * 2
    assert -1 < probe.choose_threshold(scores[:8], splits[:8]) < 2.5
    assert probe.choose_threshold(scores, splits, 0.25) == 0.75  # one of two general prompts, no near one
    for leak in (0.05, 0.25, 0.5):
        opened = probe.fires(scores, splits, probe.choose_threshold(scores, splits, leak))
        assert (opened["near_scope"] + opened["out_of_scope"]) / 2 <= leak
    assert probe.fires(scores, splits, probe.choose_threshold(scores, splits, 0.05))["in_scope"] == 0
    assert probe.fires(scores, splits, probe.choose_threshold(scores, splits, 0.25))["in_scope"] == 1


def test_scores_that_are_worse_than_chance_still_have_a_threshold():
    assert np.isfinite(probe.choose_threshold(-clouds()[:, 0], SPLITS))


def test_calibration_is_measured_under_the_weights():
    splits = ["in_scope", "near_scope", "out_of_scope"]
    sure = probe.measures(np.array([40.0, -40.0, -40.0]), splits, 0.0)
    assert (sure["brier"], sure["calibration_error"]) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    even = probe.measures(np.zeros(3), splits, -1.0)
    assert (even["brier"], even["calibration_error"], even["log_loss"]) == (
        0.25,
        pytest.approx(0),
        pytest.approx(np.log(2)),
    )
    wrong = probe.measures(np.array([-40.0, 40.0, -40.0]), splits, 0.0)
    assert (wrong["fires_in_scope"], wrong["fires_near_scope"], wrong["roc_auc_near_scope"]) == (0, 1, 0)
    assert wrong["calibration_error"] == pytest.approx(0.75)
