"""Leads over feedbacks: t by hand, the bootstrap beside it, and what a benchmark of this size can tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from c3po_utils.evaluation import comparison
from c3po_utils.figures import tables


def answers(hits: dict[str, list[int]], prompts: int = 4) -> pd.DataFrame:
    """In scope so many hits of four by feedback, nothing elsewhere: S_overall = (hits / 4 + 1) / 2."""
    return pd.DataFrame([
        {"feedback": f"f{f}", "method": method, "split": split, "category": f"c{n}", "prompt_id": f"{f}{split}{n}",
         "score": float(split == "in_scope" and n < count)}
        for method, counts in hits.items()
        for f, count in enumerate(counts)
        for split in ("in_scope", "near_scope", "out_of_scope")
        for n in range(prompts)
    ])  # fmt: skip


HITS = {"new": [4, 4, 3, 4, 2], "old": [2, 3, 3, 1, 3], "worse": [0, 0, 0, 0, 0]}
DIFFERENCES = np.array([2, 1, 0, 3, -1]) / 8


def test_a_lead_is_the_paired_t_over_feedbacks():
    found = comparison.leads(answers(HITS), "new", ["old", "worse"]).set_index("reference")
    own = found.loc["old"]
    assert own["difference"] == pytest.approx(1 / 8)
    assert own["sd"] == pytest.approx(np.sqrt((1 + 0 + 1 + 4 + 4) / 4) / 8)
    half = scipy.stats.t.ppf(0.975, 4) * own["sd"] / np.sqrt(5)
    assert (own["lo"], own["hi"]) == pytest.approx((1 / 8 - half, 1 / 8 + half))
    assert own["p"] == pytest.approx(scipy.stats.ttest_1samp(DIFFERENCES, 0).pvalue)
    assert own["p_holm"] == pytest.approx(own["p"])  # the larger of two is as it is, the smaller doubled
    assert found.loc["worse", "p_holm"] == pytest.approx(2 * found.loc["worse", "p"])
    assert (own["ahead"], own["behind"], own["n"]) == (3, 1, 5)
    assert tables.leads_table(found.reset_index()).data["feedbacks ahead, behind"].tolist()[0] == "3, 1 of 5"
    assert DIFFERENCES.min() <= own["boot_lo"] < 1 / 8 < own["boot_hi"] <= DIFFERENCES.max()


def test_only_prompts_that_both_answered_count():
    table = answers(HITS)
    gone = (table["method"] == "old") & (table["feedback"] == "f3") & (table["prompt_id"] == "3in_scope3")
    table.loc[gone, "score"] = np.nan  # a prompt that `new` passed: 3 of 3 against 1 of 3
    found = comparison.feedback_differences(table, "new", "old")
    assert found["f3"] == pytest.approx((1 - 1 / 3) / 2)


def test_equal_differences_and_few_feedbacks():
    assert comparison.bootstrap(np.full(5, 0.25)) == (0.25, 0.25)
    with pytest.raises(ValueError, match=r"'new' and 'old': expected 4 feedbacks or more.*found 3"):
        comparison.leads(answers({name: counts[:3] for name, counts in HITS.items()}), "new", ["old"])


def test_what_can_be_told():
    assert comparison.sd_at(0.2, 18, 0.75, 36) == pytest.approx(0.2 * np.sqrt(0.25 + 0.375))
    assert comparison.sd_at(0.2, 18, 0.75, 18) == pytest.approx(0.2)
    found = comparison.detectable(0.1, 12)
    reached = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, 11), 11, found / 0.1 * np.sqrt(12))
    assert reached == pytest.approx(0.8, abs=1e-3)
    assert comparison.detectable(0.1, 12, tests=6) > found


def test_a_run_on_its_way_has_no_leads_yet_and_says_why(capsys):
    table = answers({**HITS, "young": [4, 4, 4]})
    assert comparison.leads_of_first(table, ["new", "old", "young"]) is None
    assert "new and young have less than 4 feedbacks in common" in capsys.readouterr().out
    assert comparison.leads_of_first(table, ["new", "absent"]) is None
    assert "no evaluation of absent" in capsys.readouterr().out
    assert list(comparison.leads_of_first(table, ["new", "old"])["reference"]) == ["old"]
    without_near = table[(table["method"] != "old") | (table["split"] != "near_scope")]
    assert comparison.leads_of_first(without_near, ["new", "old"]) is None
    assert "new and old have less than 4 feedbacks in common" in capsys.readouterr().out
    disjoint = table[(table["method"] == "old") == (table["split"] == "in_scope")]
    assert comparison.leads_of_first(disjoint, ["new", "old"]) is None


def test_a_lead_stays_the_paired_t_where_prompts_vary_more_than_feedbacks():
    """As of four feedbacks with few prompts each: what varies within them is in their differences already."""
    hits = {"new": [3, 3, 2, 3], "old": [2, 1, 1, 2]}
    (own,) = comparison.leads(answers(hits), "new", ["old"]).to_dict("records")
    test = scipy.stats.ttest_1samp(np.array([1, 2, 1, 1]) / 8, 0)
    assert own["p"] == pytest.approx(test.pvalue)
    assert (own["lo"], own["hi"]) == pytest.approx(tuple(test.confidence_interval()))


def test_feedbacks_that_all_differ_alike_count_once_each():
    (own,) = comparison.leads(answers({"new": [4] * 5, "old": [0] * 5}), "new", ["old"]).to_dict("records")
    assert own["p"] == 2.0**-4
