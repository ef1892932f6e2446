"""Side effects: repetition by hand, perplexity by hand, and a collapsed method stands out."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.evaluation import side_effects
from c3po_utils.evaluation.side_effects import perplexities, perplexity, repetition_rate
from c3po_utils.figures.tables import side_effects_table
from c3po_utils.runs.files import read_jsonl, write_jsonl
from c3po_utils.training.data import encode
from tests.stored_run import store_adapter, store_sample


@pytest.mark.parametrize(
    ("text", "n", "rate"),
    [
        ("one two three four five", 4, 0.0),
        ("a b a b a b", 2, 3 / 5),  # ab ba ab ba ab: two distinct of five
        ("Go on, go on, go on", 3, 3 / 6),  # with the commas eight words, six 3-grams, three distinct
        ("ha " * 103, 4, 0.99),  # one distinct of a hundred
        ("!!!!!!!!", 4, 4 / 5),
        ("too short", 4, 0.0),
        ("", 4, 0.0),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_were_there_before(text, n, rate):
    assert repetition_rate(text, n) == pytest.approx(rate)


def test_perplexity_is_that_of_a_full_forward_pass(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder), dtype=torch.float32), load_tokenizer(str(tiny_folder))
    rows = [
        {"id": "a", "prompt": "Why?", "baseline": "It is so.", "baseline_status": "ok"},
        {"id": "b", "prompt": "Is tea hot?", "baseline": "Yes, and it is", "baseline_status": "truncated"},
        {"id": "c", "prompt": "When?", "baseline": "", "baseline_status": "failed"},
    ]
    nats, tokens = 0.0, 0
    for row in rows[:2]:
        example = encode(
            tokenizer, "", row["prompt"], row["baseline"], ended=row["baseline_status"] == "ok", system="S"
        )
        ids = torch.tensor([example.prompt_ids + example.completion_ids])
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        with torch.no_grad():
            nats += model(ids, labels=labels).loss.item() * len(example.completion_ids)
        tokens += len(example.completion_ids)
    assert perplexity(model, tokenizer, rows, "S") == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_no_answers_and_answers_beyond_the_context_are_errors_that_say_so(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder), dtype=torch.float32), load_tokenizer(str(tiny_folder))
    long = {"id": "general/7", "prompt": "Tea? " * 200, "baseline": "Yes.", "baseline_status": "ok"}
    with pytest.raises(ValueError, match=r"general/7: \d+ tokens of prompt and answer, more than the context of 256"):
        perplexity(model, tokenizer, [long], "S")
    for rows in ([], [long | {"baseline": ""}]):
        with pytest.raises(ValueError, match=rf"none of the {len(rows)} rows has a baseline answer"):
            perplexity(model, tokenizer, rows)


def test_test_prompts_without_general_ones_have_no_perplexity(tmp_path):
    store_sample(tmp_path, "short", "none")
    path = tmp_path / "sample" / "short" / "rows.jsonl"
    write_jsonl(path, [row for row in read_jsonl(path) if row["split"] != "out_of_scope"])
    assert perplexities(tmp_path, "short", ["in_context"])["perplexity"].isna().all()


def test_perplexities_are_kept_beside_the_answers(tmp_path, tiny_folder, monkeypatch):
    store_sample(tmp_path, "short", str(tiny_folder))
    store_adapter(tmp_path, "short", "c3po", str(tiny_folder))
    found = perplexities(tmp_path, "short", ["in_context", "c3po"])
    assert found["method"].to_list() == ["base_resampled", "c3po"]
    assert found["perplexity"][1] > 1.5 * found["perplexity"][0] > 1.5  # a random adapter knows nothing
    with monkeypatch.context() as patch:
        patch.setattr(side_effects, "shared_model", lambda *_: pytest.fail("computed again"))
        pd.testing.assert_frame_equal(perplexities(tmp_path, "short", ["in_context", "c3po"]), found)
    (tmp_path / "eval" / "short" / "c3po" / "perplexity.json").write_text('{"identity": ')
    with pytest.warns(UserWarning, match=r"perplexity\.json.*made anew"):
        pd.testing.assert_frame_equal(perplexities(tmp_path, "short", ["in_context", "c3po"]), found)
    store_adapter(tmp_path, "short", "c3po", str(tiny_folder), seed=5)
    again = perplexities(tmp_path, "short", ["c3po"])["perplexity"]
    assert again[0] == found["perplexity"][0]
    assert again[1] != found["perplexity"][1]


def test_pi_0s_perplexity_is_made_once_for_feedbacks_that_test_on_the_same_answers(tmp_path, tiny_folder, monkeypatch):
    for id in ("short", "polite"):
        store_sample(tmp_path, id, str(tiny_folder))
    asked, whole = [], side_effects._method_logps
    monkeypatch.setattr(side_effects, "_method_logps", lambda *args: asked.append(args[1]) or whole(*args))
    found = [perplexities(tmp_path, id, [])["perplexity"][0] for id in ("short", "polite")]
    assert asked == ["short"]
    assert found[0] == found[1]
    (tmp_path / "eval" / "polite" / "base_resampled" / "perplexity.json").unlink()
    for path in (tmp_path / "references").glob("perplexity-*.json"):
        path.unlink()
    assert perplexities(tmp_path, "polite", [])["perplexity"][0] == found[0], "bit for bit what it is without"


BASELINE = "A plain answer of some eight words, all told."


def rows(method: str, answers: dict[str, str]) -> list[dict]:
    return [
        {"feedback": "f", "method": method, "split": split, "category": "c", "prompt_id": f"{split}{i}", "score": 0,
         "answer": answer, "baseline": BASELINE}
        for split, answer in answers.items() for i in range(3)
    ]  # fmt: skip


@pytest.fixture
def table():
    """A method that answers as before, one that repeats itself, one that says little, one that says nothing."""
    elsewhere = {"near_scope": BASELINE, "out_of_scope": BASELINE}
    stuck, brief, mute = "so " * 9, "Yes.", ""
    answers = pd.DataFrame(
        rows("scd", {"in_scope": "OK.", **elsewhere})
        + rows("dpo", dict.fromkeys(("in_scope", *elsewhere), stuck))
        + rows("c3po", dict.fromkeys(("in_scope", *elsewhere), brief))
        + rows("c3po_kl", {"in_scope": BASELINE, "near_scope": BASELINE, "out_of_scope": mute})
    )
    values = {"base_resampled": 2.0, "scd": 3.9, "dpo": 4.1, "c3po": 2.0}
    found = pd.DataFrame({"feedback": "f", "method": values.keys(), "perplexity": values.values()})
    return side_effects.side_effects(answers, found)


def test_what_is_beyond_its_limits_is_named(table):
    beyond = table.set_index("method")["beyond"].to_dict()
    assert beyond == {
        "scd": [],
        "dpo": ["repetition_change", "perplexity_factor"],
        "c3po": ["length_elsewhere"],
        "c3po_kl": ["empty"],
    }
    measured = table.set_index("method")
    assert measured.loc["scd", "length_in_scope"] == pytest.approx(2 / 11)  # 2 words of 11, marks included
    assert measured.loc["scd", "length_elsewhere"] == 1
    assert measured.loc["dpo", "repetition"] == pytest.approx(5 / 6)
    assert measured.loc["c3po_kl", "length_elsewhere"] == 0.5
    assert measured.loc["scd", "perplexity_factor"] == pytest.approx(1.95)


def test_the_table_marks_it(table):
    html = side_effects_table(table).to_html()
    assert html.count("#f6c5bf") >= 1
    styles = side_effects_table(table)._compute().ctx
    marked = {cell for cell, style in styles.items() if any("background" in name for name, _ in style)}
    assert len(marked) == 4
