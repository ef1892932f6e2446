"""Figures are tested for what they show (artists, labels, lines), not for their pixels."""

import html
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import time

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from scipy import odr

from c3po_utils.evaluation import scores
from c3po_utils.feedback import SPLITS
from c3po_utils.figures import (
    answer_card,
    elements,
    outcomes,
    paper_figures,
    style,
    sweeps,
    tables,
    text_layout,
    tradeoff,
)
from c3po_utils.figures.style import LOOKS, bar, look, ordered
from c3po_utils.runs import jobs
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import read_json, read_jsonl, write_json, write_jsonl
from c3po_utils.runs.stage import MANIFEST, ROOT, Stage
from c3po_utils.training.methods import METHODS as METHODS_TRAINED
from tests.synthetic import METHODS, answers

matplotlib.use("Agg")
THREE = ("in_context", "scd", "c3po")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def ten():
    return answers(10, METHODS)


@pytest.fixture(scope="module")
def two():
    return answers(2, THREE)


def legend_labels(ax):
    (legend,) = ax.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def test_orthogonal_line_by_hand():
    center, direction = paper_figures.orthogonal_line([0, 1, 2], [1, 3, 5])
    assert direction[1] / direction[0] == pytest.approx(2)
    np.testing.assert_allclose(center, [1, 3])
    # s_xx = s_yy = 2, s_xy = 1: the line has slope 1 (least squares would say 1/2)
    _, direction = paper_figures.orthogonal_line([-1, 0, 1], [0, -1, 1])
    assert direction[1] / direction[0] == pytest.approx(1)


def test_orthogonal_line_may_be_vertical_or_have_no_direction():
    _, direction = paper_figures.orthogonal_line([2, 2, 2], [0, 1, 2])
    np.testing.assert_allclose(np.abs(direction), [0, 1], atol=1e-12)
    assert np.isnan(paper_figures.orthogonal_line([1, 1], [1, 1])[1]).all()


@pytest.mark.parametrize("seed", range(5))
def test_orthogonal_line_is_scipys_odr(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=30)
    y = (seed - 2) * x + rng.normal(size=30) * 0.5
    center, direction = paper_figures.orthogonal_line(x, y)
    fit = odr.ODR(odr.Data(x, y), odr.unilinear, beta0=[0.0, 0.0], sstol=1e-15, partol=1e-15, maxit=500).run()
    slope = direction[1] / direction[0]
    assert slope == pytest.approx(fit.beta[0], abs=1e-5)
    assert center[1] - slope * center[0] == pytest.approx(fit.beta[1], abs=1e-5)
    first = np.linalg.svd(np.column_stack([x, y]) - center)[2][0]
    assert abs(first @ direction) == pytest.approx(1, abs=1e-12)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=9), st.floats(0, np.pi))
def test_no_line_through_the_means_is_nearer(points, angle):
    points = np.array(points)
    center, direction = paper_figures.orthogonal_line(*points.T)

    def squared_distances(direction):  # of the points to the line
        return ((points - center) @ [-direction[1], direction[0]]) @ ((points - center) @ [-direction[1], direction[0]])

    if not np.isnan(direction).any():
        assert squared_distances(direction) <= squared_distances([np.cos(angle), np.sin(angle)]) + 1e-9


def test_pareto_front_by_hand():
    table = pd.DataFrame({"S_out": [0.1, 0.1, 0.2, 0.3, 0.4], "S_in": [0.5, 0.4, 0.5, 0.9, 0.8]})
    assert tradeoff.pareto_front(table).index.tolist() == [0, 3]


def test_fig2_shows_the_papers_methods_with_dots_and_fitted_lines(ten):
    table = scores.feedback_scores(ten)
    axes = paper_figures.fig2(table)
    assert [ax.get_title() for ax in axes] == ["Out of scope", "Near scope"]
    for ax, score in zip(axes, ("S_general", "S_near"), strict=True):
        for method in paper_figures.FIGURE_2:
            own = table[table["method"] == method]
            dots, (fit,) = lines(ax, look(method).name), lines(ax, f"{look(method).name}, fit")
            x, y = np.concatenate([line.get_xydata() for line in dots]).T
            np.testing.assert_allclose(np.sort(x), np.sort(own["S_in"]))
            np.testing.assert_allclose(np.sort(y), np.sort(own[score]))
            _, direction = paper_figures.orthogonal_line(own["S_in"], own[score])
            rise, run = np.diff(fit.get_ydata())[0], np.diff(fit.get_xdata())[0]
            assert rise * direction[0] == pytest.approx(run * direction[1], abs=1e-9)
            assert {to_hex(line.get_color()) for line in dots} == {LOOKS[method].color.lower()}
        (floor,) = lines(ax, "noise floor (base)")
        expected = table.loc[table["method"] == "base_resampled", score].mean()
        assert floor.get_ydata()[0] == pytest.approx(expected)
    assert legend_labels(axes[0]) == ["In-Context", "SCD", "DPO", "C3PO", "noise floor (base)"]


def test_fig2s_lines_stay_among_their_dots(ten):
    table = scores.feedback_scores(ten)
    for ax, score in zip(paper_figures.fig2(table), ("S_general", "S_near"), strict=True):
        for method in paper_figures.FIGURE_2:
            own = table[table["method"] == method]
            (fit,) = lines(ax, f"{look(method).name}, fit")
            assert own["S_in"].min() - 1e-6 <= min(fit.get_xdata()) < max(fit.get_xdata()) <= own["S_in"].max() + 1e-6
            assert own[score].min() - 1e-6 <= min(fit.get_ydata()) < max(fit.get_ydata()) <= own[score].max() + 1e-6


def test_fig2s_line_may_be_level():
    table = scores.feedback_scores(answers(3, ("scd",)))
    table["S_general"] = 0.1 + 0.2  # a number whose mean may differ from it in the last bit
    (fit,) = lines(paper_figures.fig2(table)[0], "SCD, fit")
    assert (min(fit.get_xdata()), max(fit.get_xdata())) == pytest.approx((table["S_in"].min(), table["S_in"].max()))


def test_figure_2_shows_variants_of_its_methods():
    assert paper_figures.figure_2_methods(["base_resampled", "scd@lr=1", "c3po", "c3po_kl"]) == ["scd@lr=1", "c3po"]
    assert paper_figures.figure_2_methods(["base_resampled", "c3po_kl"]) == ["c3po_kl"]


def test_fig2_with_two_feedbacks_has_whiskers_and_no_lines(two):
    axes = paper_figures.fig2(scores.feedback_scores(two))
    assert not [line for line in axes[0].lines if line.get_label().endswith("fit")]
    assert len(axes[0].containers) == 3
    assert "clustered by prompt category" in axes[0].figure.legends[0].get_title().get_text()


def test_fig2_extends_its_axis_for_negative_adherence(ten):
    table = scores.feedback_scores(ten)
    assert paper_figures.fig2(table)[0].get_xlim()[0] > -0.2
    table.loc[table["method"] == "c3po", "S_in"] -= 1.0
    lowest = table.loc[table["method"] == "c3po", "S_in"].min()
    assert paper_figures.fig2(table)[0].get_xlim()[0] < lowest


@pytest.mark.parametrize("methods", [THREE, ordered(METHODS[:10])])
def test_fig6_has_a_bar_with_whiskers_per_split_and_method(ten, methods):
    shares = scores.application_share(ten)
    ax = paper_figures.fig6(shares, methods)
    drawn = [container for container in ax.containers if isinstance(container, matplotlib.container.BarContainer)]
    assert len(drawn) == len(methods)
    for method, bars in zip(methods, drawn, strict=True):
        own = shares[shares["method"] == method].set_index("split")
        heights = [bar.get_height() for bar in bars]
        np.testing.assert_allclose(heights, own.loc[list(scores.SPLITS), "share"])
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "in scope ↑",
        "near scope ↓",
        "out of scope ↓",
    ]
    assert legend_labels(ax) == [*(look(method).name for method in methods), "noise floor (base)"]
    assert ax.figure.legends[0].get_title().get_text() == "whiskers: 95% intervals over 10 feedbacks"


def test_fig6_names_an_unknown_method(two):
    with pytest.raises(ValueError, match="method 'c3p0' is not in the table; found in_context, scd, c3po"):
        paper_figures.fig6(scores.application_share(two), ["c3p0"])


def test_fig2_names_a_method_that_was_not_evaluated(two):
    with pytest.raises(ValueError, match="method 'dpo' is not in the table; found in_context, scd, c3po"):
        paper_figures.fig2(scores.feedback_scores(two), ["scd", "dpo"])


def test_fig7_has_a_panel_per_setting(two):
    shares = scores.application_share(two)
    both = pd.concat([shares.assign(setting="single"), shares.assign(setting="added")])
    axes = paper_figures.fig7(both)
    assert [ax.get_title() for ax in axes] == ["One feedback at a time", "Two feedbacks, adapters added"]
    assert [len(ax.patches) for ax in axes] == [9, 9]


def test_fig7_shows_which_of_two_gates_are_open(two):
    shares = scores.application_share(two).assign(setting="single")
    opened = {"own": [0.9, 0.1, 0.0], "both": 3 * [0.05], "other": 3 * [0.0], "neither": [0.05, 0.85, 0.95]}
    gates = pd.DataFrame({"method": "scd_gated", "split": SPLITS, **opened})
    _, ax = axes = paper_figures.fig7(shares, gates=gates)
    assert len(axes) == 2
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches[-3:]]
    assert tops == pytest.approx([1, 1, 1])
    assert [bar.get_height() for bar in ax.patches[:3]] == [0.9, 0.1, 0.0]
    assert legend_labels(axes[0])[-4:] == ["gate: own", "gate: both", "gate: other", "gate: neither"]


def test_labels_of_three_panels_do_not_touch(two):
    shares = scores.application_share(two)
    axes = paper_figures.fig7(pd.concat([shares.assign(setting=name) for name in paper_figures.SETTINGS]))
    axes[0].figure.draw_without_rendering()
    for ax in axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert len(boxes) == 3
        assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))


def test_fig8_compares_c3po_with_its_kl_variant(ten):
    ax = paper_figures.fig8(scores.application_share(ten))
    assert legend_labels(ax) == ["C3PO", "C3PO-KL", "noise floor (base)"]
    assert len(ax.patches) == 6


def test_fig8_takes_variants_and_says_what_is_missing(two):
    shares = scores.application_share(two)
    assert paper_figures.lacking_for_fig8(shares) == ["c3po_kl"]
    with pytest.raises(ValueError, match="figure 8 compares c3po with c3po_kl: the table has no c3po_kl"):
        paper_figures.fig8(shares)
    kl = shares[shares["method"] == "c3po"].assign(method="c3po_kl@temperature=2")
    ax = paper_figures.fig8(pd.concat([kl, shares]))
    assert legend_labels(ax) == ["C3PO", "C3PO-KL, temperature=2"]


def swept(values, methods=THREE):
    tables = [scores.method_scores(answers(2, methods, seed=i)).assign(lr=v) for i, v in enumerate(values)]
    return pd.concat(tables)


def test_sweep_draws_scores_against_the_parameter():
    table = swept((1e-5, 1e-4, 1e-3), ("c3po", "base_resampled"))
    axes = sweeps.sweep(table, "lr", paper=5e-5)
    for ax, score in zip(axes, ("S_in", "S_out", "S_overall"), strict=True):
        (line,) = lines(ax, "C3PO")
        own = table[table["method"] == "c3po"]
        np.testing.assert_allclose(line.get_xdata(), own["lr"])
        np.testing.assert_allclose(line.get_ydata(), own[score])
        assert ax.get_xscale() == "log"
        assert bool(lines(ax, "noise floor (base)")) == (score == "S_out")
    assert sorted(text.get_text() for text in axes[0].get_xticklabels()) == ["", "0.001", "1e-4", "1e-5"]
    assert legend_labels(axes[0]) == ["C3PO", "C3PO in the paper", "noise floor (base)"]


def test_sweep_takes_linear_and_named_values():
    linear = sweeps.sweep(swept((0.0, 0.1, 0.2)), "lr", scores=("S_overall",))
    assert (len(linear), linear[0].get_xscale()) == (1, "linear")
    named = sweeps.sweep(swept(("mean", "sum")), "lr", scores=("S_overall",))
    named[0].figure.canvas.draw()
    assert [text.get_text() for text in named[0].get_xticklabels()] == ["mean", "sum"]


def test_tradeoff_shows_the_front_the_paper_and_the_floor(ten):
    table = scores.method_scores(ten)
    ax = tradeoff.tradeoff(table, paper=tables.paper_table2())
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 6
    (front,) = lines(ax, "Pareto front")
    contestants = table[~table["method"].isin(["revised", "base_resampled"])]
    expected = tradeoff.pareto_front(contestants)
    np.testing.assert_allclose(front.get_xdata()[1:-1], expected["S_out"])
    np.testing.assert_allclose(front.get_ydata()[1:-1], expected["S_in"])
    assert legend_labels(ax)[-3:] == ["hollow: paper (Mistral-7B)", "noise floor (base)", "Pareto front"]


def test_a_picture_of_many_runs_has_the_papers_methods_and_those_that_none_beats(ten):
    table = scores.method_scores(ten)
    (scd,) = table[table["method"] == "scd"].to_dict("records")
    behind = scd | {"method": "scd@behind", "S_in": scd["S_in"] - 0.1}
    ahead = scd | {"method": "scd_gated@ahead", "S_in": 0.99}
    found = tradeoff.paper_and_front(pd.concat([table, pd.DataFrame([behind, ahead])], ignore_index=True))
    assert {"base_resampled", "revised", "scd", "scd_gated@ahead"} <= set(found["method"])
    assert "scd@behind" not in set(found["method"])


def test_tradeoff_says_which_means_are_over_fewer_feedbacks_and_keeps_them_off_the_front(ten):
    table = scores.method_scores(ten)
    whole = tradeoff.tradeoff(table)
    assert not [text for text in whole.texts if " of " in text.get_text()]
    best = tradeoff.pareto_front(table[~table["method"].isin(["revised", "base_resampled"])])["method"].iloc[-1]
    few = scores.method_scores(ten[(ten["method"] != best) | (ten["feedback"] < "feedback-005")])
    few.loc[few["method"] == best, "S_in"] = 0.99
    ax = tradeoff.tradeoff(few)
    assert f"{look(best).name} (5 of 10)" in [text.get_text() for text in ax.texts]
    assert lines(ax, "Pareto front")[0].get_ydata().max() < 0.99
    families = sweeps.by_family(few.assign(method=few["method"] + "@more"))
    named = [text.get_text() for text in tradeoff.tradeoff(families, "variant").texts]
    assert sorted(set(named)) == ["better", "more", "more (5 of 10)"]


def test_tradeoff_names_its_dots_and_rings_gated_ones():
    table = scores.method_scores(
        answers(5, ("in_context", "scd", "scd_negatives", "c3po", "scd_gated", "base_resampled"))
    )
    table.loc[table.method == "scd_gated", "S_in"] = 0.9
    ax = tradeoff.tradeoff(table)
    names = [text.get_text() for text in ax.texts if text.get_text() != "better"]
    assert names == ["In-Context", "SCD", "SCD + Negatives", "C3PO", "gate + SCD"]
    assert legend_labels(ax) == ["gated", "noise floor (base)", "Pareto front"]
    (ring,) = lines(ax, "gated")
    assert ring.get_ydata() == [0.9]
    ax.figure.draw_without_rendering()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_tradeoffs_frame_follows_its_dots_and_says_which_whiskers_it_cuts():
    table = scores.method_scores(answers(5, ("in_context", "scd", "c3po")))
    whole = tradeoff.tradeoff(table)
    assert whole.get_ylim()[0] < table["S_in_lo"].min()
    assert "go on" not in whole.figure.legends[0].get_title().get_text()
    table.loc[table["method"] == "scd", "S_in_lo"] = -0.8
    cut = tradeoff.tradeoff(table)
    assert cut.get_ylim()[0] == pytest.approx(table["S_in"].min() - 0.4)
    assert cut.figure.legends[0].get_title().get_text().endswith("; some go on below")


def test_tradeoff_labels_dots_from_a_column():
    ax = tradeoff.tradeoff(swept((1e-5, 0.5), ("c3po",)), label="lr")
    assert [text.get_text() for text in ax.texts] == ["better", "1e-5", "0.5"]


def test_labels_lie_beside_their_dots_and_not_on_one_another():
    ax = plt.subplots(figsize=(3, 3), layout="constrained")[1]
    places = np.array([[0.50, 0.5], [0.51, 0.5], [0.5, 0.52], [0.98, 0.98], [0.0, 0.0]])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    texts = ["one=1,two=2", "one=2", "one=3,two=3", "corner=1", "corner=2"]
    elements.label_dots(ax, places, texts, ["c3po", "c3po", "scd", "dpo", "in_context"])
    ax.figure.draw_without_rendering()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    inside = ax.get_window_extent().padded(3)
    assert all(inside.contains(*corner) for box in boxes for corner in box.corners())
    dots = ax.transData.transform(places)
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert all(np.hypot(*(np.mean(box.get_points(), 0) - dot)) < 90 for box, dot in zip(boxes, dots, strict=True))
    assert [text.get_text() for text in ax.texts] == texts


def test_no_two_names_lie_on_each_other_in_the_picture_of_the_readme():
    ax = tradeoff.tradeoff(tradeoff.paper_and_front(pd.read_csv(RESULTS / "benchmark" / "table2.csv")))
    ax.figure.draw_without_rendering()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in ax.texts if text.get_text() != "better"]
    assert len(boxes) > 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    leaders = [patch for patch in ax.patches if isinstance(patch, matplotlib.patches.FancyArrowPatch)]
    assert len(leaders) <= len(boxes), "leaders of a first try are left"


def test_looks_are_distinct_and_depend_on_the_name_alone():
    assert len({entry.color for entry in LOOKS.values()}) == len(LOOKS)
    assert len({entry.marker for entry in LOOKS.values()}) == len({entry.hatch for entry in LOOKS.values()} | {"none"})
    assert len({entry.marker for entry in LOOKS.values()}) == len(LOOKS) > len(METHODS_TRAINED)
    assert set(METHODS_TRAINED) <= set(LOOKS)
    assert look("my_method") == look("my_method")
    assert look("my_method").name == "my method"
    assert look("my_method") != look("your_method")
    assert look("c3po@beta=0.02,epochs=3").name == "C3PO, beta=0.02, epochs=3"
    assert ordered(["dpo", "c3po@b", "own", "c3po", "scd@a"]) == ["scd@a", "dpo", "c3po", "c3po@b", "own"]
    assert [bar(method)["hatchcolor"] for method in ("scd", "c3po_nll")] == ["#333333", "#FFFFFF"]
    assert look("my_method").color == "#97753c"
    assert ordered(["zeta", "c3po", "in_context", "zeta"]) == ["in_context", "c3po", "zeta"]


def test_a_variant_looks_like_its_method_and_an_unknown_name_like_none():
    variants = [look(f"c3po@beta={beta}") for beta in (0.01, 0.02, 0.03, 0.05, 0.1)]
    assert {entry.marker for entry in variants} == {LOOKS["c3po"].marker}
    assert look("scd@lr=1").hatch[:-1] == LOOKS["scd"].hatch
    assert "full" not in {entry.fill for entry in variants}
    assert len({(entry.color, entry.fill, entry.hatch) for entry in variants}) == len(variants)
    unknown = [look(name) for name in ("mine", "yours", "theirs", "other", "one_more")]
    assert len({(entry.color, entry.marker, entry.hatch) for entry in unknown}) == len(unknown)
    assert not {entry.marker for entry in unknown} & {entry.marker for entry in LOOKS.values()}
    assert not {entry.hatch for entry in unknown} & {entry.hatch for entry in LOOKS.values()}


def at(method, S_in, S_general):
    """One feedback's scores, as `scores.feedback_scores` gives them."""
    values = {"S_in": S_in, "S_general": S_general, "S_near": S_general}
    ends = {f"{name}_{end}": value for name, value in values.items() for end in ("lo", "hi")}
    return {"method": method, **values, **ends}


def test_dots_on_one_place_are_side_by_side_and_counted():
    table = pd.DataFrame([at("c3po", 0, 0), at("c3po", 0, 0), at("dpo", 0, 0), at("dpo", 0.5, 0.25)])
    ax = paper_figures.fig2(table)[0]
    ax.figure.draw_without_rendering()
    (c3po,), (moved, alone) = lines(ax, "C3PO"), lines(ax, "DPO")
    places = [line.get_transform().transform(line.get_xydata())[0] for line in (c3po, moved, alone)]
    step = elements.STEP / 72 * ax.figure.dpi
    assert abs(places[1] - places[0]) == pytest.approx([step, 0])
    assert places[2] == pytest.approx(ax.transData.transform([0.5, 0.25]))
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("2", (0, 0))]


@pytest.mark.parametrize(
    ("places", "drawn"),
    [
        ([(0.1, 0.1), (0.2, 0.3), (0.3, 0.2)], True),
        ([(0.80, 0.1), (0.81, 0.9), (0.82, 0.5), (0.8, 0.3)], False),  # nearly vertical
        ([(0, 0), (0, 0), (0, 0.1), (0.05, 0)], False),  # two values of x
    ],
)
def test_a_line_is_fitted_where_its_slope_says_something(places, drawn):
    ax = paper_figures.fig2(pd.DataFrame([at("c3po", *place) for place in places]))[0]
    assert len(lines(ax, "C3PO, fit")) == drawn
    (handle,) = [line for line in ax.figure.legends[0].get_lines() if line.get_label() == "C3PO"]
    assert (handle.get_linestyle() != "None") == drawn
    assert ("regression" in ax.figure.legends[0].get_title().get_text()) == drawn


def test_a_bar_of_height_zero_is_seen_and_named(two):
    shares = scores.application_share(two)
    shares["share"] = np.where((shares["method"] == "scd") & (shares["split"] == "near_scope"), 0.0, 0.5)
    ax = paper_figures.fig6(shares, ["scd", "c3po"])
    assert [(text.get_text(), round(text.xy[0])) for text in ax.texts] == [("SCD", 1)]
    feet = [foot for foot in ax.collections if len(foot.get_paths()) == 3 and foot.get_hatch() is not None]
    assert [to_hex(foot.get_facecolor()[0]) for foot in feet] == [look("scd").color.lower(), look("c3po").color.lower()]
    assert ax.get_ylim()[0] == -paper_figures.FOOT


def test_fig7_shows_each_feedbacks_own_share(two):
    rows = pd.concat([two.assign(setting=setting) for setting in ("single", "added")])
    shares = pd.concat([scores.application_share(two).assign(setting=name) for name in ("single", "added")])
    axes = paper_figures.fig7(shares, rows)
    own = two.assign(share=scores.applied(two)).groupby(["method", "split", "feedback"])["share"].mean()
    for ax in axes:
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 6]
        assert len(dots) == len(THREE)
        for method, line in zip(THREE, dots, strict=True):
            np.testing.assert_allclose(line.get_ydata(), own[method].loc[list(scores.SPLITS)])
            assert len(set(line.get_xdata())) == 6
    assert "dots: each feedback" in axes[0].figure.legends[0].get_title().get_text()


def test_fig7_leaves_room_for_a_method_without_one_of_the_settings(two):
    rows = pd.concat([two.assign(setting="single"), two[two["method"] != "scd"].assign(setting="added")])
    shares = pd.concat([scores.application_share(own).assign(setting=name) for name, own in rows.groupby("setting")])
    axes = paper_figures.fig7(shares, rows)
    assert [ax.get_title() for ax in axes] == ["Two feedbacks, adapters added", "One feedback at a time"]
    assert [sum(line.get_marker() == "o" for line in ax.lines) for ax in axes] == [2, 3]  # dots, by method
    feet = [[len(foot.get_paths()) for foot in ax.collections if foot.get_hatch() is not None] for ax in axes]
    assert [sorted(counts) for counts in feet] == [[0, 3, 3], [3, 3, 3]]


def test_coincident_variants_share_one_label():
    table = pd.concat([swept((1e-5, 1e-4), ("c3po",))] * 2).assign(variant=["a", "b", "c", "d"])
    ax = tradeoff.tradeoff(table, "variant")
    assert [text.get_text() for text in ax.texts] == ["better", "a / c", "b / d"]
    assert lines(ax, "C3PO")


def test_score_intervals_name_the_methods_and_show_the_noise_floor(ten):
    one = ten[ten["feedback"] == "feedback-000"]
    table = scores.feedback_scores(one)
    axes = outcomes.score_intervals(table)
    names = [look(method).name for method in ordered(table["method"])]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == names
    assert [ax.get_title() for ax in axes] == [elements.LABELS[score] for score in outcomes.PANELS]
    for ax, score in zip(axes, outcomes.PANELS, strict=True):
        assert lines(ax, "noise floor (base)")
        middles = [bars.lines[0].get_xdata()[0] for bars in ax.containers]
        np.testing.assert_allclose(middles, table.set_index("method").loc[ordered(table["method"]), score])
        low, high = ax.get_xlim()
        assert table[f"{score}_lo"].min() > low
        assert table[f"{score}_hi"].max() < high
    assert legend_labels(axes[0]) == ["noise floor (base)"]
    alone = outcomes.score_intervals(table[table["method"] == "c3po"])
    assert [label.get_text() for label in alone[0].get_yticklabels()] == ["C3PO"]


def test_hit_grid_colours_what_happened_and_names_only_that(ten):
    rows = ten[(ten["feedback"] == "feedback-000") & ten["method"].isin(THREE)].copy()
    rows["score"] = np.where(rows["split"] == "in_scope", 1.0, 0.0)
    axes = outcomes.hit_grid(rows)
    assert legend_labels(axes[0]) == ["hit", "no change"]
    rows.loc[rows.index[:1], "score"] = np.nan
    rows.loc[rows["split"] == "near_scope", "score"] = [0.5, *[-1.0] * (3 * 20 - 1)]
    axes = outcomes.hit_grid(rows)
    assert legend_labels(axes[0]) == list(outcomes.OUTCOMES)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [look(method).name for method in THREE]
    assert [ax.get_xlabel() for ax in axes] == ["20 prompts, 5 categories"] * 3
    cells = axes[1].collections[0].get_array()
    first = ordered(THREE).index(rows.loc[rows["split"] == "near_scope", "method"].iloc[0])
    pale = np.add(to_rgb(outcomes.OUTCOMES["leak"]), to_rgb(outcomes.OUTCOMES["no change"])) / 2
    np.testing.assert_allclose(cells[first, 0], pale)
    np.testing.assert_allclose(cells[-1, -1], to_rgb(outcomes.OUTCOMES["effect lost"]))


@pytest.mark.parametrize("split", SPLITS)
def test_test_prompts_that_lack_a_split_are_drawn_without_it(split):
    rows = answers(2, ("base_resampled", *THREE)).query("split != @split")
    by_feedback, by_method = scores.feedback_scores(rows), scores.method_scores(rows)
    assert sweeps.best(by_method) == ["base_resampled", *THREE]
    assert len(paper_figures.fig2(by_feedback)) == 2
    tradeoff.tradeoff(by_method)
    headings = [
        text.get_text() for text in answer_card.fig5(rows).texts if text.get_text() in ("In scope", "Out of scope")
    ]
    assert len(headings) == 2 - (split != "near_scope")
    one = rows[rows["feedback"] == "feedback-000"]
    assert len(outcomes.hit_grid(one)) == 2
    assert len(outcomes.score_intervals(scores.feedback_scores(one))) == 3
    assert "nan" not in tables.bounds_table(scores.missing_bounds(one)).to_html()


@pytest.mark.parametrize("number", [1, 12])
def test_pictures_of_one_feedback_are_not_clipped(ten, number, tmp_path):
    rows = ten[(ten["feedback"] == "feedback-000") & ten["method"].isin(METHODS[-number:])]
    for axes in (outcomes.score_intervals(scores.feedback_scores(rows)), outcomes.hit_grid(rows)):
        figure = axes[0].figure
        figure.draw_without_rendering()
        texts = [*axes[0].get_yticklabels(), *figure.legends[0].get_texts(), *(ax.title for ax in axes)]
        boxes = [text.get_window_extent() for text in texts]
        assert all(figure.bbox.padded(1).containsx(box.x0) and figure.bbox.containsx(box.x1) for box in boxes)
        assert all(figure.bbox.containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1) for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes[:number]))
        assert min(ax.get_window_extent().height for ax in axes) > 20


def card_answers():
    """Two prompts per split with scores near and far from the methods' means."""
    rows = []
    for split, ids in {"in_scope": "ab", "out_of_scope": "xy"}.items():
        for prompt, score in zip(ids, (1.0, 0.0), strict=True):
            for method in ("c3po", "scd"):
                row = {"feedback": "f", "method": method, "split": split, "prompt_id": prompt, "score": score}
                texts = {
                    "prompt": f"prompt {prompt}",
                    "answer": f"{method} on {prompt} <b>",
                    "baseline": "plain",
                }
                rows.append({**row, **texts})
    rows += [dict(row, prompt_id=f"{row['prompt_id']}2", prompt="again") for row in rows if row["prompt_id"] == "a"]
    return pd.DataFrame(rows)


def test_card_takes_the_prompt_nearest_to_the_method_means():
    chosen = answer_card.representative(card_answers())  # in scope two of three prompts score 1; out of scope a tie
    assert sorted(set(chosen["prompt_id"])) == ["a", "x"]
    assert len(chosen) == 4


def test_card_avoids_what_a_person_rejected_and_answers_that_did_not_end(tmp_path, monkeypatch):
    rows = card_answers()
    monkeypatch.setattr(answer_card, "RESULTS", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rejected_prompts.yaml").write_text("x: an answer that nobody should read\n")
    assert sorted(set(answer_card.representative(rows)["prompt_id"])) == ["a", "y"]
    rows["status"] = np.where((rows["prompt_id"] == "a") & (rows["method"] == "scd"), "truncated", "ok")
    assert sorted(set(answer_card.representative(rows)["prompt_id"])) == ["a2", "y"]
    rows.loc[rows["prompt_id"] == "a2", "answer"] = " "  # now the nearest prompt that is fit is the farther one
    assert sorted(set(answer_card.representative(rows)["prompt_id"])) == ["b", "y"]
    rows["status"] = "truncated"  # better than none; of equals the one with the shorter answers
    assert sorted(set(answer_card.representative(rows)["prompt_id"])) == ["a2", "y"]


def test_the_committed_cards_show_no_rejected_prompt():
    rejected = answer_card.rejected_prompts()
    stored = [row for path in ROOT.glob("results/*/eval/*/*/answers.jsonl") for row in read_jsonl(path)]
    texts = {html.escape(row["prompt"]) for row in stored if row["prompt_id"] in rejected}
    assert texts
    for page in ROOT.glob("results/**/fig5.html"):
        assert not [text for text in texts if text in page.read_text("utf-8")]


def test_card_needs_a_prompt_that_every_method_was_scored_on():
    rows = card_answers()
    rows.loc[(rows["method"] == "scd") & (rows["split"] == "in_scope"), "score"] = np.nan
    with pytest.raises(ValueError, match="no prompt of in_scope, out_of_scope has a score from each of scd, c3po"):
        answer_card.representative(rows)


def test_card_is_of_the_methods_that_have_scores():
    rows = card_answers()
    rows.loc[rows["method"] == "scd", "score"] = np.nan
    assert set(answer_card.representative(rows)["method"]) == {"c3po"}


def test_card_of_runs_with_different_methods_is_of_a_feedback_with_the_most_of_them():
    more, fewer = card_answers(), card_answers().query("method == 'c3po'").assign(feedback="a")
    rows = pd.concat(
        [fewer.assign(method="dpo"), fewer, more, more.query("method == 'scd'").assign(method="scd_mixed")]
    )
    chosen = answer_card.representative(rows)
    assert set(chosen["feedback"]) == {"f"}
    assert set(chosen["method"]) == {"c3po", "scd", "scd_mixed"}


def test_card_shows_prompts_answers_and_scores():
    ax = answer_card.fig5(card_answers())
    shown = [text.get_text() for text in ax.texts]
    for expected in ("In scope", "Out of scope", "prompt a", "prompt x", "plain", "SCD", "C3PO", "+1"):
        assert expected in shown
    assert "scd on a <b>" in shown
    page = answer_card.fig5_html(card_answers())
    assert "scd on a &lt;b&gt;" in page
    assert "<small>+1</small>" in page


def test_card_text_stays_inside_its_column():
    rows = card_answers()
    rows["answer"] = "word " * 200 + "x" * 500 + " $not math$ \U0001f600\ufe0f end"
    ax = answer_card.fig5(rows)
    renderer = ax.figure.canvas.get_renderer()
    for text in ax.texts:
        box = text.get_window_extent(renderer).transformed(ax.transAxes.inverted())
        assert box.x0 >= 0
        assert box.x1 <= 1.005
        assert box.y0 >= -0.005
        assert box.y1 <= 1.005
    assert any(text.get_text().endswith("…") for text in ax.texts)


def test_what_the_font_lacks_is_spelled_out():
    assert text_layout.drawable("I ❤\ufe0f this \U0001f984!\n") == "I ❤ this [unicorn face]!\n"
    assert text_layout.drawable("say 你好, привет") == "say [cjk text], привет"


def test_an_id_that_is_too_wide_is_broken_after_an_underscore():
    room = text_layout.width("birthday_cak", "bold")
    assert text_layout.wrap("birthday_cake", room, 3, "bold") == ["birthday_", "cake"]
    assert text_layout.wrap("birthdayscake", room, 3, "bold")[0].startswith("birthdaysca")


def test_save_writes_equal_bytes_with_embedded_fonts_and_no_date(tmp_path, two):
    shares = scores.application_share(two)
    first = style.save(paper_figures.fig6(shares), tmp_path / "first", "fig6")
    again = style.save(paper_figures.fig6(shares), tmp_path / "again", "fig6")
    assert [path.name for path in first] == ["fig6.png", "fig6.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    pdf = first[1].read_bytes()
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf


def test_save_takes_an_array_of_axes_or_a_figure(tmp_path, two):
    axes = paper_figures.fig2(scores.feedback_scores(two))
    assert len(style.save(axes, tmp_path, "fig2")) == len(style.save(axes[0].figure, tmp_path, "same")) == 2
    assert (tmp_path / "fig2.png").read_bytes() == (tmp_path / "same.png").read_bytes()


def test_style_leaves_the_users_settings_alone(two):
    before = dict(plt.rcParams)
    paper_figures.fig6(scores.application_share(two))
    assert dict(plt.rcParams) == before


def test_papers_table_is_consistent_with_its_definition():
    paper = tables.paper_table2()
    assert set(paper["method"]) <= set(LOOKS)
    np.testing.assert_allclose(paper["S_overall"], (paper["S_in"] + 1 - paper["S_out"]) / 2, atol=0.0011)


def made_scores():
    columns = {"S_in": [0.561, 0.4, 0.9], "S_in_lo": [0.5, 0.3, 0.8], "S_in_hi": [0.61, 0.5, 0.95]}
    columns |= {"S_in_se": [0.031, np.nan, 0.02], "S_out": [0.15, 0.1, -0.0], "n_feedbacks": 5}
    return pd.DataFrame({"method": ["c3po", "scd", "revised"], **columns})


def test_table2_markdown_by_hand():
    text = tables.table2_markdown(made_scores(), tables.paper_table2(), scores=("S_in", "S_out"))
    header, _, revised, scd, c3po, _, note = text.strip().split("\n")
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, revised, scd, c3po)]
    assert split[0] == ["method", "S_in ↑", "S_in, paper", "S_out ↓", "S_out, paper"]
    assert split[1] == ["Revised", "0.90 [0.80, 0.95]", "–", "0.00", "–"]
    assert split[2] == ["SCD", "0.40 [0.30, 0.50]", "0.47 ± .03", "**0.10**", "0.27 ± .02"]
    assert split[3] == ["C3PO", "**0.56 [0.50, 0.61]**", "0.56 ± .03", "0.15", "0.15 ± .01"]
    assert note == "95% intervals over 5 feedbacks; paper: Mistral-7B, ± standard error over its 100 feedbacks."


def test_means_over_fewer_feedbacks_say_so_and_are_not_the_best():
    table = made_scores().assign(n_feedbacks=[5, 5, 5])
    assert " of " not in tables.table2_markdown(table, scores=("S_in", "S_out"))
    other = table.iloc[:1].assign(method="dpo", S_in=0.8, S_out=0.01, n_feedbacks=4)
    text = tables.table2_markdown(pd.concat([table, other]), scores=("S_in", "S_out"))
    assert "| DPO (4 of 5) | 0.80 [0.50, 0.61]     | 0.01      |" in text
    assert "**0.56 [0.50, 0.61]**" in text
    assert text.endswith("95% intervals over 4–5 feedbacks; (n of 5): over n of the feedbacks, and never in bold.\n")
    styled = tables.table2(pd.concat([table, other]), scores=("S_in", "S_out")).to_html()
    (bold,) = re.findall(r"([^{}]*)\{[^{}]*font-weight: bold", styled)
    assert re.findall(r"row\d_col\d", bold) == ["row1_col2", "row3_col1"]  # neither is of DPO, in row 2


def test_table2_html_has_the_same_cells_with_standard_errors():
    styler = tables.table2(made_scores(), scores=("S_in",), uncertainty="se")
    page = styler.to_html()
    assert "0.56 ± .03" in page
    assert page.count("font-weight: bold") == 1
    assert "± standard error over feedbacks" in page


RESULTS = ROOT / "results"
EMBEDDED = RESULTS / "embedded"


def drawing(run, output, **environment) -> subprocess.Popen:
    """Notebook 05 started on a run, in processes of its own."""
    command = [
        sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "WARNING", "05_figures.ipynb",
        output / "05.ipynb", "-y", json.dumps({"runs": [str(run)], "output": str(output)}),
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT / "notebooks", env={**os.environ, **environment})


def written(output) -> dict[str, bytes]:
    """Tables and figures by file name."""
    return {path.name: path.read_bytes() for path in output.glob("*.*") if path.suffix not in (".json", ".ipynb")}


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """The committed run's tables and figures, made anew twice."""
    folders = [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("again")]
    started = [drawing(EMBEDDED, folder, PYTHONHASHSEED=str(seed)) for seed, folder in enumerate(folders)]
    assert [process.wait() for process in started] == [0, 0]
    return [written(folder) for folder in folders]


def test_figures_are_made_again_byte_by_byte(redrawn):
    first, again = redrawn
    assert {path.rpartition(".")[2] for path in first} == {"csv", "md", "png", "pdf", "html"}
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_committed_tables_are_what_the_stored_answers_give(redrawn):
    first, _ = redrawn
    tables = {name for name in first if name.endswith((".csv", ".md"))}
    assert tables == {"table2.csv", "table2.md", "scores.csv"}
    assert [name for name in tables if first[name] != (EMBEDDED / name).read_bytes()] == []
    assert {name for name in first if not (EMBEDDED / name).exists()} == set()


def test_the_committed_figures_are_of_the_committed_evaluations():
    evaluated = {path.parent for path in EMBEDDED.glob(f"eval/**/{MANIFEST}")}
    drawn = read_json(EMBEDDED / MANIFEST)["identity"]["evaluations"]
    assert {str(path.relative_to(ROOT)) for path in evaluated} == {name[name.index("results/") :] for name in drawn}
    assert all(read_json(path / MANIFEST)["status"] == "done" for path in evaluated)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_from_a_full_run_takes_less_than_a_minute_and_two_gigabytes(tmp_path):
    rows = answers(100, METHODS, prompts=75, categories=15)
    assert len(rows) == 100 * 12 * 225
    for (feedback, method), own in rows.groupby(["feedback", "method"]):
        folder = tmp_path / "run" / "eval" / feedback / method
        write_jsonl(folder / "answers.jsonl", own.to_dict("records"))
        write_json(folder / MANIFEST, {"status": "done", "identity": {"method": method}})
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    assert drawing(tmp_path / "run", tmp_path).wait() == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: what the wall clock shows on a machine that does nothing else.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    drawn, peak = written(tmp_path), read_json(tmp_path / MANIFEST)["peak_gib"]
    print(f"{seconds:.1f} s of processor time, {time.monotonic() - start:.1f} s in all, {peak:.2f} GiB")
    assert {"table2.csv", "fig2.pdf", "fig5.pdf", "fig6.pdf", "fig8.pdf", "tradeoff.pdf"} <= drawn.keys()
    assert seconds < 60
    assert peak < 2


def test_figures_of_several_runs_are_done_when_they_were_drawn_from_all_of_them(tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        with Stage(run / "eval" / "tea" / "c3po", {"method": "c3po"}):
            pass
    given = {"runs": [str(run) for run in runs], "output": str(runs[0] / "figures")}
    config = RunConfig(run=given["runs"][0], methods=["c3po"], figures=given)
    with tables.figures_stage(runs, given["output"], jobs.figures_values(config)):  # as 05_figures ends
        pass
    assert jobs.figures_job(config).done


def test_figures_that_are_to_show_something_else_are_not_done(tmp_path):
    config = RunConfig(run=str(tmp_path), methods=["c3po"])
    with jobs.figures_job(config).stages[0]:
        pass
    assert jobs.figures_job(config).done
    for other in ({"uncertainty": "se"}, {"compare": ["c3po", "scd"]}, {"paper": True}, {"methods": ["scd"]}):
        assert not jobs.figures_job(config.model_copy(update={"figures": other})).done
