"""Do the 95% intervals cover 95%? And does every piece agree with the library that has it too?"""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from c3po_utils.evaluation import intervals
from c3po_utils.evaluation.intervals import Spread
from c3po_utils.evaluation.scores import PAPER
from tests.synthetic import simulated_cells

MEANS = PAPER.of(np.array([0.67, 0.2, 0.03]))
IN_SCOPE = intervals.STRATA[0]


def mean_and_spread(data):
    return intervals.across(PAPER.of(intervals.means(data)), intervals.within(data, PAPER))


def coverage(feedbacks, categories, per_category, data_sets=2000):
    """Percent of simulated data sets whose interval holds the truth, per score."""
    data, rates = simulated_cells(feedbacks, categories, per_category, data_sets)
    truth = MEANS if feedbacks >= intervals.FEW else PAPER.of(rates).mean(0)
    mean, spread = mean_and_spread(data)
    low, high = intervals.t_interval(mean, spread, PAPER)
    return 100 * ((low <= truth) & (truth <= high)).mean(0)


def documented():
    """The rows of the coverage table in the module's docstring."""
    rows = [line.split() for line in intervals.__doc__.splitlines() if line.strip()[:1].isdigit()]
    return {int(row[0]): np.array(row[1:], float) for row in rows}


@pytest.mark.parametrize("feedbacks", [10, 30, 100])
def test_t_intervals_cover_feedbacks_like_these(feedbacks):
    covered = coverage(feedbacks, (6, 6, 6), 4)
    assert covered.min() >= 93
    assert covered.max() <= 97


@pytest.mark.parametrize(("feedbacks", "categories"), [(1, 5), (1, 3), (2, 3), (3, 5)])
def test_t_intervals_cover_other_prompts_for_few_fixed_feedbacks(feedbacks, categories):
    covered = coverage(feedbacks, (categories, categories, 8), 5)
    assert covered.min() >= 93
    assert covered.max() <= 99


def test_documented_coverage_is_what_the_simulation_gives():
    rows = documented()
    assert set(rows) == {2, 3, 5, 10, 30, 100}
    for feedbacks, covered in rows.items():
        np.testing.assert_allclose(coverage(feedbacks, (6, 6, 6), 4), covered, atol=1)


def ragged():
    """One feedback, 40 in-scope prompts in five categories of unequal size and clearly different means."""
    rng = np.random.default_rng(3)
    category = rng.choice(5, 40, p=[0.4, 0.25, 0.15, 0.1, 0.1])
    value = rng.normal(category * 0.2 - 0.3, 0.1)
    columns = {"feedback": "f", "method": "m", "split": "in_scope", "prompt_id": range(40)}
    return pd.DataFrame({**columns, "category": [f"c{c}" for c in category], "value": value})


def test_category_variance_is_statsmodels_cluster_robust_variance():
    rows = ragged()
    fit = sm.OLS(rows["value"], np.ones(40)).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(rows["category"])[0]}
    )
    variance, count = intervals.category_variance(intervals.cells(rows), PAPER.weights_KS, IN_SCOPE)
    assert variance[0, 0, 0] == pytest.approx(fit.bse.iloc[0] ** 2, rel=1e-9)
    assert count[0, 0, 0] == 5
    assert variance[0, 0, 4] == pytest.approx(fit.bse.iloc[0] ** 2 / 4, rel=1e-9)


def test_prompt_variance_is_scipy_sem_squared():
    rows = ragged()
    variance, count = intervals.prompt_variance(intervals.cells(rows), PAPER.weights_KS, IN_SCOPE)
    assert variance[0, 0, 0] == pytest.approx(stats.sem(rows["value"]) ** 2, rel=1e-9)
    assert count[0, 0, 0] == 40


def test_satterthwaite_is_welch():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=7), rng.normal(size=12) * 3
    parts, df = np.array([stats.sem(one) ** 2, stats.sem(other) ** 2]), np.array([6, 11])
    found = intervals.satterthwaite(parts.sum(), (parts**2 / df).sum())
    assert float(found) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).df, rel=1e-9)


def test_shared_categories_of_in_and_near_scope_are_one_cluster():
    """Categories that gain in scope half of what they leak near scope leave S_overall without variance."""
    rates = [0.0, 0.25, 0.5, 0.75, 1.0]
    base = {"feedback": "f", "method": "m"}
    rows = pd.DataFrame(
        {**base, "split": split, "category": f"c{c}", "prompt_id": f"{split}{c}{i}", "value": rate * scale}
        for split, scale in (("in_scope", 0.5), ("near_scope", 1.0), ("out_of_scope", 0.0))
        for c, rate in enumerate(rates)
        for i in range(3)
    )
    variance, _ = intervals.category_variance(intervals.cells(rows), PAPER.weights_KS, IN_SCOPE)
    assert variance[0, 0, 4] == pytest.approx(0, abs=1e-15)
    assert variance[0, 0, 1] > 0.01


def test_plain_t_interval_is_scipys():
    linear = intervals.Linear(("mean",), np.eye(3)[:1], np.zeros(1), np.array([[-9.0, 9.0]]), scale="linear")
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.6])
    spread = Spread(np.array([stats.sem(values) ** 2]), np.array([4.0]), np.array([5.0]))
    bounds = np.array(intervals.t_interval(values.mean(keepdims=True), spread, linear)).ravel()
    np.testing.assert_allclose(bounds, stats.ttest_1samp(values, 0).confidence_interval(), rtol=1e-9)


def test_logit_interval_stays_in_range_and_holds_the_estimate():
    estimate = np.array([0.98, 0.02, 0.5, 0.999, -0.45])
    spread = Spread(np.full(5, 0.2), np.full(5, 2.0), np.full(5, 9.0))
    low, high = intervals.t_interval(estimate, spread, PAPER)
    assert (PAPER.range_K2[:, 0] <= low).all()
    assert (high <= PAPER.range_K2[:, 1]).all()
    assert ((low < estimate) & (estimate < high)).all()


def test_prompts_that_all_agree_get_the_rule_of_three_and_not_a_point():
    spread = Spread(np.zeros(5), np.ones(5), np.full(5, 60.0))
    low, high = intervals.t_interval(np.array([1.0, 0, 0, 0, 1.0]), spread, PAPER)
    assert high[1] == pytest.approx(3 / 60, rel=0.03)
    assert low[1] == 0
    assert (low[0], high[0]) == (pytest.approx(1 - 2 * 3 / 60, rel=0.01), 1)


def test_one_leak_is_not_taken_for_clustering():
    """Upper bounds grow gently from no leak to one leak, though one leak puts all spread in one category."""
    columns = {"feedback": "f", "method": "m", "split": "near_scope", "prompt_id": range(40)}
    rows = pd.DataFrame({**columns, "category": [f"c{i // 10}" for i in range(40)], "value": 0.0})
    uppers = []
    for leaks in range(3):
        rows.loc[: leaks - 1, "value"] = 1.0
        mean, spread = mean_and_spread(intervals.cells(rows))
        uppers.append(intervals.t_interval(mean, spread, PAPER)[1][0, 1])
    assert uppers[0] == pytest.approx(3 / 40, rel=0.05)
    assert uppers[1] < 0.2
    assert uppers[0] < uppers[1] < uppers[2]


def test_two_leaks_in_one_category_of_many_feedbacks_do_not_widen_the_interval_to_half_the_scale():
    """All spread then sits within one category, which alone has two degrees of freedom: 2 of 144 came to 0.53."""
    rows = pd.DataFrame([
        {"feedback": f"f{f}", "method": "m", "split": "near_scope", "prompt_id": i, "category": f"c{i // 6}",
         "value": float(f == 0 and i < 2)}
        for f in range(8) for i in range(18)
    ])  # fmt: skip
    mean, spread = mean_and_spread(intervals.cells(rows))
    low, high = intervals.t_interval(mean, spread, PAPER)
    assert spread.df[0, 1] == 7
    assert 0.001 < low[0, 1] < mean[0, 1] == pytest.approx(2 / 144)
    assert 2 / 18 < high[0, 1] < 0.15
