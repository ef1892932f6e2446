"""Rewards of tokens: measured on a tiny model, chosen by rule, and drawn where they belong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from c3po_utils.evaluation import implicit_reward
from c3po_utils.figures import reward_map
from c3po_utils.figures.text_layout import width
from c3po_utils.runs.files import content_hash, read_json
from c3po_utils.runs.stage import ROOT
from tests.stored_run import store_adapter, store_sample

STORED = read_json(ROOT / "results" / "theory" / "token_rewards.json")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_folder):
    run = tmp_path_factory.mktemp("rewards")
    store_sample(run, "tea", str(tiny_folder))
    adapter = store_adapter(run, "tea", "dpo", str(tiny_folder))
    return implicit_reward.measure(adapter), adapter


def test_every_test_prompt_is_measured_and_one_of_each_split_shown(measured):
    stored, adapter = measured
    assert stored["adapter"] == content_hash(adapter / "adapter_model.safetensors")
    counts = [(answer["split"], answer["answer"]) for answer in stored["answers"]]
    assert [(pair, counts.count(pair)) for pair in dict.fromkeys(counts)] == [
        (("in_scope", "revised"), 2), (("in_scope", "baseline"), 2), (("near_scope", "baseline"), 2),
        (("out_of_scope", "baseline"), 2),
    ]  # fmt: skip
    assert [(answer["split"], answer["answer"]) for answer in stored["maps"]] == list(implicit_reward.MEASURED)


def test_a_maps_tokens_are_its_answer_and_sum_to_its_total(measured):
    totals = {(answer["id"], answer["answer"]): answer for answer in measured[0]["answers"]}
    for answer in measured[0]["maps"]:
        expected = r"Yes, it is\.\[end\]" if answer["answer"] == "revised" else r"It is \w+\.\[end\]"
        assert re.fullmatch(expected, "".join(answer["tokens"]).strip())
        for key in ("true", "learned"):
            assert len(answer[key]) == len(answer["tokens"])
            assert sum(answer[key]) == pytest.approx(totals[answer["id"], answer["answer"]][key], abs=0.2)
            assert max(map(abs, answer[key])) > 0.05


def test_typical_is_the_median_margin_by_hand():
    rows = [("a", "revised", 3), ("a", "baseline", 1), ("b", "revised", 9), ("b", "baseline", -1)]
    rows += [("c", "revised", 4), ("c", "baseline", -2), ("d", "baseline", -90)]  # margins 2, 10, 6; d has none
    totals = [{"id": id, "split": "in_scope", "answer": answer, "learned": value} for id, answer, value in rows]
    near = [
        {**totals[-1], "id": id, "split": "near_scope", "learned": value}
        for id, value in (("x", 5), ("y", -9), ("z", 0))
    ]
    assert implicit_reward.typical(totals + near) == {"in_scope": "c", "near_scope": "z"}


def test_lines_keep_words_together_and_break_where_the_text_does():
    tokens = ["One", " tw", "o", ".\n", "Th", "ree", " four", "[end]"]
    wide = reward_map._lines(tokens, 9.0)
    assert ["".join(tokens[i] for i in line) for line in wide] == ["One two.\n", "Three four[end]"]
    narrow = reward_map._lines(tokens, width("One") + 0.01)
    assert ["".join(tokens[i] for i in line).strip() for line in narrow] == ["One", "two.", "Three", "four[end]"]


def test_the_picture_has_each_token_on_the_colour_of_its_reward():
    ax = reward_map.reward_map(STORED)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    rewards = [value for answer in STORED["maps"] for value in (*answer["true"], *answer["learned"])]
    assert len(boxes) == len(rewards)
    drawn = sorted(tuple(np.round(box.get_facecolor(), 6)) for box in boxes)
    assert drawn == sorted(tuple(np.round(reward_map.COLORS.to_rgba(value), 6)) for value in rewards)
    underlined = [line for line in ax.lines if line.get_linewidth() == 0.5 and len(set(line.get_ydata())) == 1]
    rules = len(STORED["maps"])
    assert len(underlined) - rules == sum(value < -reward_map.FAINT for value in rewards)
    ax.figure.draw_without_rendering()
    assert all(text.get_window_extent().x1 <= ax.figure.bbox.x1 for text in ax.texts)


def test_the_page_has_every_token_with_its_number():
    page = reward_map.reward_map_html({**STORED, "maps": [{**STORED["maps"][0], "tokens": ["<b>"], "true": [-1.5],
                                                            "learned": [0.0]}]})  # fmt: skip
    assert re.search(r'underline" title="-1\.50 nats">&lt;b&gt;</span>', page)
    assert 'title="+0.00 nats">&lt;b&gt;</span>' in page


def test_the_scatter_has_a_dot_per_answer_and_the_table_their_means():
    ax = reward_map.reward_scatter(STORED)
    dots = [line for line in ax.lines if line.get_marker() in ("o", "X", "^", "s")]
    assert sum(len(line.get_xdata()) for line in dots) == len(STORED["answers"])
    table = reward_map.by_group(STORED).set_index(["split", "answer"])
    revised = [answer["learned"] for answer in STORED["answers"] if answer["answer"] == "revised"]
    assert table.loc[("in_scope", "revised"), "learned"] == pytest.approx(np.mean(revised))
    assert table["answers"].sum() == len(STORED["answers"])


def test_the_readme_says_what_is_stored():
    readme = (ROOT / "results" / "theory" / "README.md").read_text()
    numbers = reward_map.by_group(STORED)[["true", "learned", "correlation"]].to_numpy().round(2)
    rows = [f"| {' | '.join(f'{number:.2f}'.replace('-', '−') for number in row)} |" for row in numbers]
    assert [row for row in rows if row not in readme] == []
    assert STORED["content"] in readme.replace("\n", " ")
