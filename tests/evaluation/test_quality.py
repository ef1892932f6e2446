"""Quality kept: likelihoods by a full pass, levels and the floor by hand, stored beside answers and read back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.evaluation import quality, scores
from c3po_utils.figures import quality_table, tables
from c3po_utils.runs.files import read_json, write_json, write_jsonl
from c3po_utils.training.data import encode
from tests.stored_run import store_sample

NINE = "The old red kettle on our stove whistles."  # eight words and a full stop
FLOOR = quality.FLOOR["in_scope"]


def stored_answer(method: str, id: str, split: str, answer: str, score: float | None = 0.0, status: str = "ok") -> dict:
    return {
        "prompt_id": id, "feedback": "tea", "method": method, "split": split, "category": id[-1], "prompt": "Is it so?",
        "baseline": NINE, "answer": answer, "status": status, "passes": False, "baseline_passes": False, "score": score,
        "scored_by": "metric",
    }  # fmt: skip


def store(run, method: str, rows: list[dict]):
    folder = run / "eval" / "tea" / method
    write_jsonl(folder / "answers.jsonl", rows)
    write_json(folder / "manifest.json", {"status": "done", "identity": {"method": method}})
    return folder


def references(nll: float = 2.0) -> tuple[list[dict], list[dict]]:
    """Two references in scope and two near, of nine words, the second half a nat less likely than the first."""
    rows = [stored_answer("revised", f"{s}{n}", s, NINE) for s in ("in_scope", "near_scope") for n in (0, 1)]
    measured = [{"feedback": "tea", "method": "revised", "prompt_id": row["prompt_id"],
                 "nll": nll + 0.5 * int(row["prompt_id"][-1])} for row in rows]  # fmt: skip
    return rows, measured


def test_distinct_ngrams_are_counted_over_all_texts():
    assert quality.distinct(["a b a b"], 2) == pytest.approx(2 / 3)  # ab ba ab
    assert quality.distinct(["a b", "A b", "b c"], 2) == pytest.approx(2 / 3)  # ab ab bc
    assert quality.distinct(["one"], 2) == quality.distinct([], 3) == 1.0


def test_answers_are_held_against_the_level_of_the_references():
    rows, measured = references()
    rows += [stored_answer("mine", "in_scope0", "in_scope", "Three words here", 1.0)]
    measured += [{"feedback": "tea", "method": "mine", "prompt_id": "in_scope0", "nll": 3.0}]
    table = quality.qualities(pd.DataFrame(rows), pd.DataFrame(measured)).set_index(["method", "prompt_id"])
    assert table["excess"].tolist() == pytest.approx([-0.25, 0.25, -0.25, 0.25, 0.75])
    assert table.loc[("mine", "in_scope0"), "length"] == pytest.approx(3 / 9)
    summary = quality.by_method(table.reset_index()).set_index("method").loc["mine"]
    assert summary["excess_in_scope"] == pytest.approx(0.75)
    assert np.isnan(summary["excess_elsewhere"])
    assert summary["distinct_2"] == summary["kept_in_scope"] == 1.0


@pytest.mark.parametrize(
    ("answer", "excess", "kept"),
    [
        (NINE, FLOOR["excess"], 1),
        (NINE, FLOOR["excess"] + 0.01, 0),  # gibberish
        ("Brown. It is.", 0.0, 1),  # five of nine words
        ("Yes.", 0.0, 0),  # two of nine
        ("go on " * 9, -1.0, 0),  # likely, as repetition is
        ("", None, 0),
    ],
)
def test_what_is_below_the_floor(answer, excess, kept):
    rows, measured = references()
    rows += [stored_answer("mine", "in_scope0", "in_scope", answer, 1.0)]
    nll = None if excess is None else 2.25 + excess - 1e-9
    measured += [{"feedback": "tea", "method": "mine", "prompt_id": "in_scope0", "nll": nll}]
    assert quality.qualities(pd.DataFrame(rows), pd.DataFrame(measured))["kept"].iloc[-1] == kept


def test_where_no_reference_passed_an_answer_is_neither_kept_nor_not():
    rows, measured = references()
    rows += [stored_answer("mine", "out_of_scope0", "out_of_scope", NINE, 0.0)]
    measured += [{"feedback": "tea", "method": "mine", "prompt_id": "out_of_scope0", "nll": 2.0}]
    kept = quality.qualities(pd.DataFrame(rows), pd.DataFrame(measured))["kept"]
    assert kept.isna().tolist() == [False, False, False, False, True]


def test_answers_below_the_floor_earn_nothing():
    score = [1.0, 1.0, -1.0, np.nan, np.nan, 0.0, 0.0, 1.0]
    kept = [1.0, 0.0, 0.0, 0.0, np.nan, 1.0, 0.0, 0.0]
    split = ["in_scope"] * 5 + ["near_scope"] * 3
    table = pd.DataFrame({"score": score, "kept": kept, "split": split})
    assert quality.floored(table)["score"].tolist() == pytest.approx([1, 0, -1, 0, np.nan, 0, 1, 1], nan_ok=True)


def test_s_kept_is_s_overall_of_what_is_kept():
    rows, measured = references()
    for s, score in (("in_scope", 1.0), ("near_scope", 0.0), ("out_of_scope", 0.0)):
        rows += [stored_answer("mine", f"{s}{n}", s, NINE, score) for n in (0, 1)]
        measured += [{"feedback": "tea", "method": "mine", "prompt_id": f"{s}{n}", "nll": 2.0} for n in (0, 1)]
    rows += [stored_answer("revised", f"out_of_scope{n}", "out_of_scope", NINE) for n in (0, 1)]
    measured += [{"feedback": "tea", "method": "revised", "prompt_id": f"out_of_scope{n}", "nll": 2.0} for n in (0, 1)]
    measured[4]["nll"] = 9.0  # of the two hits one is gibberish: S_in falls from 1 to 1/2
    answers = pd.DataFrame(rows)
    found = quality.with_kept(scores.method_scores(answers), quality.qualities(answers, pd.DataFrame(measured)))
    mine = found.set_index("method").loc["mine"]
    assert (mine["S_overall"], mine["S_kept"]) == pytest.approx((1.0, 0.75))
    assert mine["S_kept_lo"] < 0.75 < mine["S_kept_hi"]
    assert "S_kept ↑" in tables.table2(found).data
    assert "S_kept" not in quality.with_kept(scores.method_scores(answers), pd.DataFrame())


def test_likelihoods_are_those_of_a_full_pass_stored_and_read_back(tmp_path, tiny_folder, monkeypatch):
    store_sample(tmp_path, "tea", str(tiny_folder))
    rows = [stored_answer("mine", "a", "in_scope", "It is so."), stored_answer("mine", "b", "near_scope", "")]
    rows += [stored_answer("mine", "c", "near_scope", "Yes, and it", status="truncated")]
    folder = store(tmp_path, "mine", rows)
    found = quality.measure(tmp_path, "tea", ["mine"]).set_index("prompt_id")["nll"]
    model, tokenizer = load_model(str(tiny_folder), dtype=torch.float32), load_tokenizer(str(tiny_folder))
    for row in (rows[0], rows[2]):
        given = encode(tokenizer, "", row["prompt"], row["answer"], ended=row["status"] == "ok", system="Be brief.")
        ids = torch.tensor([given.prompt_ids + given.completion_ids])
        labels = ids.clone()
        labels[:, : len(given.prompt_ids)] = -100
        assert found[row["prompt_id"]] == pytest.approx(model(ids, labels=labels).loss.item(), rel=2e-3)  # bfloat16
    assert np.isnan(found["b"])

    monkeypatch.setattr(quality, "answer_logps", lambda *_: pytest.fail("it was measured already"))
    assert quality.measure(tmp_path, "tea", ["mine"])["nll"].tolist() == pytest.approx(found.tolist(), nan_ok=True)
    assert quality.collect(tmp_path)["prompt_id"].tolist() == ["a", "b", "c"]
    assert quality.measure_run(tmp_path)["method"].tolist() == ["mine"] * 3
    write_jsonl(folder / "answers.jsonl", rows[1:])  # what was measured is not what lies there now
    assert quality.collect(tmp_path).empty


def test_pi_0_is_known_from_a_training_where_no_sample_is_kept(tmp_path, tiny_folder):
    store(tmp_path, "mine", [stored_answer("mine", "a", "in_scope", "")])
    with pytest.raises(FileNotFoundError, match="has no finished sample"):
        quality.measure(tmp_path, "tea", ["mine"])
    sampled = {"model": str(tiny_folder), "system_prompt": "Be brief."}
    write_json(tmp_path / "train" / "tea" / "scd" / "manifest.json", {"identity": {"sampled_with": sampled}})
    quality.measure(tmp_path, "tea", ["mine"])
    assert (
        read_json(tmp_path / "eval" / "tea" / "mine" / "quality.json")["identity"] | sampled
        == read_json(tmp_path / "eval" / "tea" / "mine" / "quality.json")["identity"]
    )


def test_only_methods_that_are_measured_everywhere_are_shown(tmp_path):
    rows, measured = references()
    answers = pd.DataFrame([*rows, stored_answer("mine", "in_scope0", "in_scope", NINE)])
    store(tmp_path, "mine", [])
    folder = store(tmp_path, "revised", rows)
    assert quality.stored(answers, tmp_path).empty
    identity = {"answers": quality._identity(folder, {})["answers"]}
    nlls = {row["prompt_id"]: row["nll"] for row in measured}
    write_json(folder / "quality.json", {"identity": identity, "nll": nlls})
    found = quality.stored(answers, tmp_path)
    assert set(found["method"]) == {"revised"}
    (_, table) = quality_table.quality_section(found)
    assert table.data["above the floor, in scope"].tolist() == ["1.00"]
    assert list(quality_table.quality_section(found.iloc[:0])) == []
    with pytest.raises(ValueError, match="quality of 'tea': expected answers of 'revised'"):
        quality.qualities(answers[answers.method == "mine"], pd.DataFrame(measured))
