"""Scores against numbers worked out by hand, and against scipy and statsmodels where they have the same."""

import re
import resource
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from c3po_utils.evaluation import scores
from c3po_utils.evaluation.scores import SCORES
from c3po_utils.figures import tables
from tests.synthetic import METHODS, answers

SPLIT_SCORES = {"in_scope": "S_in", "near_scope": "S_near", "out_of_scope": "S_general"}


def table(values, passes=np.nan):
    """Answers from {(feedback, method, split): scores}; prompts are numbered, two to a category."""
    return pd.DataFrame(
        {
            "feedback": feedback,
            "method": method,
            "split": split,
            "category": f"c{i // 2}",
            "prompt_id": f"{split}-{i}",
            "score": score,
            "passes": passes,
        }
        for (feedback, method, split), values_ in values.items()
        for i, score in enumerate(values_)
    )


HAND = table(
    {
        ("a", "m", "in_scope"): [1, 1, 0, -1],  # S_in = 1/4
        ("a", "m", "near_scope"): [0, 1, -1, 0],  # S_near = 1/2
        ("a", "m", "out_of_scope"): [0, 0, 0, -0.4],  # S_general = 0.1, S_out = 0.3, S_overall = 0.475
        ("b", "m", "in_scope"): [1, 1, 1, np.nan],  # S_in = 1, one missing
        ("b", "m", "near_scope"): [0, 0],  # S_near = 0
        ("b", "m", "out_of_scope"): [0.5, 0.5],  # S_general = 0.5, S_out = 0.25, S_overall = 0.875
    }
)


def test_feedback_scores_by_hand():
    found = scores.feedback_scores(HAND).set_index("feedback")
    np.testing.assert_allclose(found.loc["a", list(SCORES)].astype(float), [0.25, 0.5, 0.1, 0.3, 0.475])
    np.testing.assert_allclose(found.loc["b", list(SCORES)].astype(float), [1, 0, 0.5, 0.25, 0.875])
    assert found["n_prompts"].tolist() == [12, 8]
    assert found["n_missing"].tolist() == [0, 1]


def test_method_scores_by_hand():
    (found,) = scores.method_scores(HAND).to_dict("records")
    assert [found[name] for name in SCORES] == pytest.approx([0.625, 0.25, 0.3, 0.275, 0.675])
    assert found["S_in_se"] == pytest.approx(0.375)  # |1 - 1/4| / 2
    assert (found["n_feedbacks"], found["n_prompts"], found["n_missing"]) == (2, 20, 1)


def test_standard_errors_are_scipys():
    rows = answers(9, METHODS[:3])
    by_feedback = scores.feedback_scores(rows).groupby("method")
    by_method = scores.method_scores(rows).set_index("method")
    for name in SCORES:
        expected = by_feedback[name].apply(stats.sem)
        np.testing.assert_allclose(by_method[f"{name}_se"], expected.loc[by_method.index], rtol=1e-9)


@pytest.mark.parametrize("feedbacks", [1, 2, 6])
def test_bounds_hold_the_score_and_stay_in_range(feedbacks):
    rows = answers(feedbacks, METHODS[:3])
    for found in (scores.feedback_scores, scores.method_scores):
        frame = found(rows)
        for k, name in enumerate(SCORES):
            assert (frame[f"{name}_lo"] <= frame[name] + 1e-12).all()
            assert (frame[name] <= frame[f"{name}_hi"] + 1e-12).all()
            assert (frame[f"{name}_lo"] >= scores.RANGES[k, 0]).all()
            assert (frame[f"{name}_hi"] <= scores.RANGES[k, 1]).all()


def test_one_feedback_has_intervals_but_no_standard_error():
    found = scores.method_scores(HAND[HAND["feedback"] == "a"]).iloc[0]
    assert np.isnan(found["S_in_se"])
    assert found["S_in_lo"] < found["S_in"] < found["S_in_hi"]


def test_an_absent_split_makes_its_scores_nan_and_leaves_the_others():
    (found,) = scores.method_scores(HAND[HAND["split"] != "near_scope"]).to_dict("records")
    assert [np.isnan(found[name]) for name in SCORES] == [False, True, False, True, True]
    assert np.isnan(found["S_out_lo"])
    assert found["S_general"] == pytest.approx(0.3)


def test_methods_may_have_different_feedbacks():
    extra = table({("a", "other", split): [1, 0] for split in SPLIT_SCORES})
    found = scores.method_scores(pd.concat([HAND, extra])).set_index("method")
    assert found["n_feedbacks"].tolist() == [2, 1]
    assert found.loc["other", "S_in"] == pytest.approx(0.5)
    assert len(scores.feedback_scores(pd.concat([HAND, extra]))) == 3


def test_categories_may_be_absent():
    found = scores.method_scores(HAND.assign(category=None)).iloc[0]
    assert found["S_in_lo"] < found["S_in"] < found["S_in_hi"]


def test_row_order_does_not_matter():
    rows = answers(3, METHODS[:2])
    shuffled = rows.sample(frac=1, random_state=0)
    first, second = (scores.method_scores(frame).set_index("method").sort_index() for frame in (rows, shuffled))
    pd.testing.assert_frame_equal(first, second)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_scores_are_plain_means(values):
    rows = table({("a", "m", split): values for split in SPLIT_SCORES})
    found = scores.feedback_scores(rows).iloc[0]
    assert found["S_in"] == pytest.approx(np.mean(values), abs=1e-12)
    assert found["S_near"] == found["S_general"] == pytest.approx(np.mean(np.abs(values)), abs=1e-12)
    assert found["S_overall"] == pytest.approx((found["S_in"] + 1 - found["S_out"]) / 2, abs=1e-12)
    assert found["S_in_lo"] - 1e-9 <= found["S_in"] <= found["S_in_hi"] + 1e-9


def test_paired_differences_by_hand():
    rows = table(
        {
            ("a", "new", "in_scope"): [1, 1, 0.5, np.nan],
            ("a", "old", "in_scope"): [0, 1, 0, 1],  # differences 1, 0, 0.5; the fourth pair lacks a verdict
            ("a", "new", "near_scope"): [0, -1],
            ("a", "old", "near_scope"): [1, 0.5],  # |score|: -1 and 0.5
            ("a", "new", "out_of_scope"): [0, 0],
            ("a", "old", "out_of_scope"): [0, 0],
        }
    )
    (found,) = scores.paired_differences(rows, "new").to_dict("records")
    assert (found["method"], found["reference"], found["n_prompts"]) == ("new", "old", 7)
    assert [found[name] for name in SCORES] == pytest.approx([0.5, -0.25, 0, -0.125, 0.3125])
    assert found["S_general_p"] == 1
    assert found["S_general_lo"] < 0 < found["S_general_hi"]


def test_paired_p_values_and_intervals_are_scipys_paired_t_test():
    rows = answers(8, METHODS[:4], seed=4)
    by_feedback = scores.feedback_scores(rows).pivot(index="feedback", columns="method")
    found = scores.paired_differences(rows, "in_context").set_index("reference")
    for name in SCORES:
        for other in METHODS[1:4]:
            test = stats.ttest_rel(by_feedback[name]["in_context"], by_feedback[name][other])
            row, bounds = found.loc[other], test.confidence_interval()
            assert row[f"{name}_p"] == pytest.approx(test.pvalue, rel=1e-9)
            assert (row[f"{name}_lo"], row[f"{name}_hi"]) == (
                pytest.approx(bounds.low, rel=1e-9),
                pytest.approx(bounds.high, rel=1e-9),
            )


def test_holm_by_hand():
    adjusted = scores._holm(pd.Series([0.01, 0.04, np.nan, 0.03]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06])


def test_equal_methods_do_not_differ_and_constant_differences_are_not_certain():
    rows = answers(5, ("c3po",))
    twin = rows.assign(method="twin")
    found = scores.paired_differences(pd.concat([rows, twin]), "c3po").iloc[0]
    assert [found[f"{name}_p"] for name in SCORES] == [1.0] * 5
    pair = {("a", method, "in_scope"): [value] * 3 for method, value in (("up", 1), ("down", 0))}
    found = scores.paired_differences(table(pair), "up").iloc[0]
    assert found["S_in_p"] == pytest.approx(0.25)  # the sign test of three pairs
    assert found["S_in_lo"] < 1


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="'c3p0' has no scored answers; found m"):
        scores.paired_differences(HAND, "m", ["c3p0"])


def test_missing_bounds_by_hand():
    (found,) = scores.missing_bounds(HAND.set_index(np.zeros(len(HAND)))).to_dict("records")
    assert (found["S_in_worst"], found["S_in_best"]) == (pytest.approx(0.375), pytest.approx(0.625))
    assert found["S_near_worst"] == found["S_near_best"] == pytest.approx(0.25)
    assert found["S_overall_best"] - found["S_overall_worst"] == pytest.approx(0.125)
    assert (found["n_prompts"], found["n_missing"]) == (20, 1)


def test_missing_bounds_outside_the_scope():
    rows = table({("a", "m", "near_scope"): [0, np.nan], ("a", "m", "out_of_scope"): [np.nan, np.nan]})
    (found,) = scores.missing_bounds(rows).to_dict("records")
    assert (found["S_near_best"], found["S_near_worst"]) == (0, 0.5)
    assert (found["S_out_best"], found["S_out_worst"]) == (0, 0.75)
    assert np.isnan(found["S_in_best"])


def test_application_share_by_hand():
    metric = table({("a", "m", "in_scope"): [0, 0, 1, -1]}).assign(passes=[True, False, True, True])
    judged = table({("b", "m", "in_scope"): [0.5, -0.5, 0, np.nan]})
    found = scores.application_share(pd.concat([metric, judged])).set_index("split").loc["in_scope"]
    assert found["share"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert found["share_lo"] < found["share"] < found["share_hi"]
    assert (found["n_prompts"], found["n_missing"], found["n_feedbacks"]) == (8, 1, 2)


@pytest.mark.parametrize("kind", ["object", "boolean", "bool", "float"])
def test_application_share_takes_any_kind_of_passes(kind):
    rows = table({("a", "m", "in_scope"): [0, 0, 1, -1]}).assign(passes=[True, False, True, True])
    found = scores.application_share(rows.astype({"passes": kind}))
    assert found["share"].tolist() == [0.75]
    if kind in ("object", "boolean"):
        unknown = rows.astype({"passes": kind})
        unknown.loc[3, "passes"] = pd.NA if kind == "boolean" else np.nan
        assert scores.application_share(unknown)["share"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="category"), r"columns \['category'\] are missing"),
        (lambda rows: rows.replace("near_scope", "nearscope"), "unknown split 'nearscope'; expected one of"),
        (lambda rows: rows.assign(score=rows["score"] * 3), "scores outside"),
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "1 rows repeat"),
    ],
)
def test_a_wrong_table_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        scores.method_scores(change(HAND))


def test_interval_note_says_what_the_intervals_are_about():
    many, two = (scores.method_scores(answers(count, METHODS[:2])) for count in (5, 2))
    assert scores.interval_note(many) == "95% intervals over 5 feedbacks"
    assert scores.interval_note(two) == "95% intervals over prompt categories, 2 feedbacks held fixed"
    mixed = "95% intervals over 2–5 feedbacks, or with fewer than 4 over their prompt categories"
    assert scores.interval_note(pd.concat([many, two])) == mixed


@pytest.mark.slow
def test_a_full_run_is_scored_in_seconds():
    rows = answers(100, METHODS, prompts=75, categories=15)
    assert len(rows) == 100 * 12 * 225
    start = time.monotonic()
    scores.feedback_scores(rows)
    scores.method_scores(rows)
    scores.paired_differences(rows, "c3po")
    scores.missing_bounds(rows)
    scores.application_share(rows)
    assert time.monotonic() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 2


def test_notebook_tables_show_differences_and_bounds_by_hand():
    rows = pd.concat([HAND, HAND.assign(method="scd", score=HAND["score"].where(HAND["score"] != 1, 0.0))])
    differences = scores.paired_differences(rows, "m")
    html = tables.differences_table(differences, ("S_in",)).to_html()
    shown = re.search(r"0\.75 \[.*?\]\np = (0\.\d{3})", html)
    assert float(shown[1]) == pytest.approx(differences["S_in_p_holm"][0], abs=5e-4)
    assert "SCD" in html
    bounds = tables.bounds_table(scores.missing_bounds(HAND), ("S_in", "S_near")).to_html()
    assert re.findall(r">([^<>]* … [^<>]*)<", bounds) == ["0.38 … 0.62"], "nothing is missing near the scope"
    assert ">1 of 20<" in bounds
    means = tables.means_table(scores.split_means(HAND, "score")).to_html()
    assert re.findall(r">(-?[\d.−]+) \[", means) == ["0.62", "0.00", "0.20"]
