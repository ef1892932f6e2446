"""Rows as trl takes them: the formats, what is left out, and two steps by stock trainers of trl."""

from __future__ import annotations

import math
import time

import pytest
from datasets import load_dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from c3po_utils.runs.files import read_jsonl, write_jsonl
from c3po_utils.sampling.export import FOLDS, export_rows, report, trl_row
from tests.stored_run import store_sample


@pytest.fixture
def run(tmp_path, tiny_folder):
    store_sample(tmp_path / "run", "tea", str(tiny_folder))
    return tmp_path / "run"


def test_pairs_and_completions_are_conversations(run):
    counts = export_rows(run, run / "out")
    assert counts == {"preference/train": 4, "sft/train": 6}
    pair = next(row for row in read_jsonl(run / "out" / "preference" / "train.jsonl") if row["id"].endswith("taste/1"))
    assert pair == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What about tea/in_scope/taste/1?"},
        ],
        "chosen": [{"role": "assistant", "content": "Yes, it is."}],
        "rejected": [{"role": "assistant", "content": "It is taste."}],
        "id": "tea/in_scope/taste/1", "feedback": "tea", "split": "in_scope", "category": "taste", "fold": "train",
        "chosen_status": "ok", "rejected_status": "ok",
    }  # fmt: skip
    kept = read_jsonl(run / "out" / "sft" / "train.jsonl")
    assert {row["split"] for row in kept} == {"near_scope", "out_of_scope"}
    assert kept[0]["completion"] == [{"role": "assistant", "content": "It is colour."}]


def test_no_system_prompt_is_no_message(run):
    row = read_jsonl(run / "sample" / "tea" / "rows.jsonl")[0]
    assert [message["role"] for message in trl_row(row)[1]["prompt"]] == ["user"]


def test_folds_and_splits_are_chosen(run):
    assert export_rows(run, run / "a", splits=["near_scope"], folds=FOLDS) == {"sft/train": 4, "sft/test": 2}
    with pytest.raises(ValueError, match=r"no sampled feedback 'tee' \(did you mean 'tea'\?\)"):
        export_rows(run, run / "b", feedbacks=["tee"])
    assert not (run / "b").exists()


def test_rows_without_an_answer_and_cut_off_answers_are_counted(run):
    path = run / "sample" / "tea" / "rows.jsonl"
    rows = read_jsonl(path)
    rows[0] |= {"revised": None, "revised_status": "failed"}
    rows[1]["baseline_status"] = "truncated"
    write_jsonl(path, rows)
    counts = export_rows(run, run / "out", splits=["in_scope"])
    said = (
        "preference/train: 3 rows; left out, in_scope without a revised answer: 1 rows; with an answer that was cut off"
    )
    assert report(counts).startswith(said)
    assert report(counts) in (run / "out" / "README.md").read_text()
    with pytest.raises(FileExistsError, match="--force"):
        export_rows(run, run / "out")
    assert export_rows(run, run / "out", force=True)["sft/train"] == 6


def test_stock_trainers_of_trl_train_on_the_rows(run, tiny_folder, tmp_path):
    export_rows(run, run / "out", folds=FOLDS)
    usual = {"output_dir": str(tmp_path / "made"), "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True,
             "report_to": "none", "save_strategy": "no", "bf16": False, "logging_steps": 1}  # fmt: skip
    for kind, trainer_of, config in (
        ("preference", DPOTrainer, DPOConfig(**usual)), ("sft", SFTTrainer, SFTConfig(**usual)),
    ):  # fmt: skip
        data = load_dataset(str(run / "out"), kind, cache_dir=str(tmp_path / "cache"))
        assert {"train", "test"} == set(data)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        trainer = trainer_of(model, args=config, train_dataset=data["train"], processing_class=tokenizer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2
        assert all(map(math.isfinite, losses))
        if kind == "preference":
            assert losses[0] == pytest.approx(math.log(2), abs=1e-3)


def test_datasets_on_disk_hold_the_same_rows(run):
    export_rows(run, run / "lines")
    export_rows(run, run / "made", form="dataset")
    for kind in ("preference", "sft"):
        stored = load_from_disk(str(run / "made" / kind))["train"]
        assert stored.to_list() == read_jsonl(run / "lines" / kind / "train.jsonl")
    assert {path.name for path in (run / "made").iterdir()} == {"README.md", "preference", "sft"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "dataset"])
def test_a_hundred_thousand_rows_take_less_than_twenty_seconds(run, form, capsys):
    path = run / "sample" / "tea" / "rows.jsonl"
    rows = read_jsonl(path)
    long = {"baseline": "A sentence of some length. " * 12, "prompt": "What about it, and why? " * 6}
    write_jsonl(path, ({**rows[n % 10], **long, "id": f"{n}", "fold": "train"} for n in range(100_000)))
    start = time.monotonic()
    assert sum(export_rows(run, run / "out", form=form).values()) == 100_000
    took = time.monotonic() - start
    with capsys.disabled():
        print(f"\n100,000 rows as {form}: {took:.1f} s")
    assert took < 20
