"""How fast a C3PO step is: the reference's algorithm, trl's stock trainer and ours, each in a process of its own.

python -m tests.benchmarks.bench_train [rows]      writes results/bench/train.json

Also what a row costs as rows become more, from 100 to 2,000, on a model so small that their handling is what counts.
All train the same LoRA with the same optimizer on the same token rows in the same order, in bfloat16, and
report the same loss of every step. A token counts once for each of the four sequences in which a row shows it, padding
does not count. Time runs from the first step to the last, with the reference log-probabilities, without loading; ours
once more with those kept that an earlier training on the rows has found, as in a sweep or a comparison of methods.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from c3po_utils.engine.models import EMBEDDED, load_model, load_tokenizer
from c3po_utils.feedback.records import load_general_prompts, load_prompts
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware, peak_gib
from c3po_utils.training import finetune as training
from c3po_utils.training.data import training_rows
from c3po_utils.training.methods import METHODS, SEGMENTS
from tests.tiny import tiny_config

OUTPUT = ROOT / "results" / "bench" / "train.json"
METHOD = METHODS["c3po"]
SYSTEM = "You are a helpful assistant. Reply in one or two short sentences."
RATE, BATCH, WORDS = 1e-4, 8, (35, 75)


def token_rows(count: int) -> list[dict]:
    """Rows with the prompts of a bundled feedback and answers of 35 to 75 words, about 100 tokens a sequence."""
    bundled, general = load_prompts("plant_tip"), [prompt.text for prompt in load_general_prompts()]
    words, start = " ".join(general).split(), 0

    def answer() -> str:
        nonlocal start
        length = WORDS[0] + start * 7 % (WORDS[1] - WORDS[0])
        start += length
        return " ".join(words[(start + i) % len(words)] for i in range(length))

    splits = {s: [p.text for p in bundled if p.split == s] for s in ("in_scope", "near_scope")}
    splits["out_of_scope"] = general
    rows = [
        {"id": f"{split}/{i}", "split": split, "prompt": texts[i % len(texts)], "baseline": answer(),
         "baseline_status": "ok", "revised": answer() if split == "in_scope" else "", "revised_status": "ok"}
        for split, texts in splits.items() for i in range(count)
    ]  # fmt: skip
    return training_rows(rows, load_tokenizer(EMBEDDED), system=SYSTEM)[0]


def padded(rows: Sequence[dict], *names: str) -> dict[str, torch.Tensor]:
    """Segments as transformers takes them: ids, mask, and labels that are -100 outside of completions."""
    pairs = [(row[f"{name}_prompt_ids"], row[f"{name}_ids"]) for name in names for row in rows]

    def pad(parts: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(part) for part in parts], batch_first=True, padding_value=value)

    return {
        "input_ids": pad([prompt + completion for prompt, completion in pairs], 0),
        "attention_mask": pad([[1] * len(prompt + completion) for prompt, completion in pairs], 0),
        "labels": pad([[-100] * len(prompt) + completion for prompt, completion in pairs], -100),
    }


def batches(rows: Sequence[dict]) -> Iterator[Sequence[dict]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def adapted() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(load_model(EMBEDDED), training.lora_config(dropout=0.0)).train()


# The reference's algorithm: a forward pass of policy and of pi_0 for chosen and rejected, of student and teacher for
# near and for out (the teacher's also where its weight is 0), logits of the whole vocabulary for all tokens.


def sequence_logps(model: PeftModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].float()
    labels = inputs["labels"][:, 1:]
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * (labels != -100)).sum(-1)


def student_loss(model: PeftModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad(), model.disable_adapter():
        model(**arguments)
    logits = model(**arguments).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


def reference_loss(model: PeftModel, rows: Sequence[dict]) -> torch.Tensor:
    pairs = padded(rows, "chosen", "rejected")
    chosen, rejected = sequence_logps(model, pairs).chunk(2)
    with torch.no_grad(), model.disable_adapter():
        ref_chosen, ref_rejected = sequence_logps(model, pairs).chunk(2)
    margins = METHOD.beta * (chosen - ref_chosen - rejected + ref_rejected)
    near, out = (student_loss(model, padded(rows, name)) for name in ("near_scope", "out_of_scope"))
    return -logsigmoid(margins).mean() + METHOD.out_weight * out + METHOD.near_weight * near


def reference(rows: Sequence[dict]) -> tuple[float, list[float]]:
    model, losses = adapted(), []
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), RATE, weight_decay=0.0, fused=True
    )
    start = time.monotonic()
    for part in batches(rows):
        with torch.autocast("cpu", torch.bfloat16):
            loss = reference_loss(model, part)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.monotonic() - start, losses


# trl's own DPOTrainer for the pairs, references on the fly, and a plain SFT pass for near and for out.


class StockTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *_):
        return dataset  # token ids already

    def training_step(self, model, inputs, *args):
        kept = {name: inputs.pop(name) for name in ("near_scope", "out_of_scope")}
        loss = super().training_step(model, inputs, *args)
        for name, weight in (("near_scope", METHOD.near_weight), ("out_of_scope", METHOD.out_weight)):
            with self.compute_loss_context_manager():
                part = weight * model(**kept[name]).loss
            self.accelerator.backward(part)
            loss += part.detach()
        return loss


ARGUMENTS = {
    "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "num_train_epochs": 1, "seed": 0,
    "per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", "save_strategy": "no",
}  # fmt: skip


def trl(rows: Sequence[dict]) -> tuple[float, list[float]]:
    columns = {"prompt_ids": "chosen_prompt_ids", "chosen_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
    data = [row | {name: row[column] for name, column in columns.items()} for row in rows]
    config = DPOConfig(
        tempfile.mkdtemp(), beta=METHOD.beta, bf16=True, gradient_checkpointing=False, use_cpu=True, logging_steps=1,
        report_to="none", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, **ARGUMENTS,
    )  # fmt: skip
    trainer = StockTrainer(
        load_model(EMBEDDED), args=config, train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(EMBEDDED), peft_config=training.lora_config(dropout=0.0),
    )  # fmt: skip
    stock = trainer.data_collator
    trainer.data_collator = lambda part: (
        stock(part) | {name: padded(part, name) for name in ("near_scope", "out_of_scope")}
    )
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    return seconds, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def ours(rows: Sequence[dict], *, kept: bool = False) -> tuple[float, list[float]]:
    """With the references, or with those that an earlier training on these rows has kept."""
    model, tokenizer, seconds = load_model(EMBEDDED), load_tokenizer(EMBEDDED), []
    references = tempfile.mkdtemp() if kept else None
    if kept:
        training.with_references(model, rows, references)

    def timed(work: Callable) -> Callable:
        def run(*args, **kwargs):
            start = time.monotonic()
            found = work(*args, **kwargs)
            seconds.append(time.monotonic() - start)
            return found

        return run

    # The steps and the references, as for the other two: without making and storing the adapter.
    steps = {name: timed(getattr(training, name)) for name in ("with_references", "_run")}
    with patch.multiple(training, **steps):
        _, log = training.train(
            model, tokenizer, rows, METHOD, tempfile.mkdtemp(), lora=training.lora_config(dropout=0.0),
            references=references, **ARGUMENTS,
        )  # fmt: skip
    return sum(seconds), [float(entry["loss"]) for entry in log]


CONTESTANTS = {"reference": reference, "trl": trl, "ours": ours, "ours_references_kept": partial(ours, kept=True)}


def measure(who: str, count: int) -> dict:
    rows = token_rows(count)
    before = time.process_time()
    seconds, losses = CONTESTANTS[who](rows)
    tokens = sum(len(row[f"{name}{part}"]) for row in rows for name in SEGMENTS for part in ("_prompt_ids", "_ids"))
    return {
        "who": who,
        "tokens_per_s": round(tokens / seconds, 1),
        "cpu_s_per_1000_tokens": round(1000 * (time.process_time() - before) / tokens, 2),
        "peak_gib": round(peak_gib(), 2),
        "loss": [round(loss, 4) for loss in losses],
        "rows": len(rows),
        "tokens": tokens,
    }


def scaling(counts: Sequence[int] = (100, 500, 2000)) -> list[dict]:
    """Milliseconds a row, from the first step to the last with the references, of trainings on ever more rows."""
    tokenizer, found = load_tokenizer(EMBEDDED), []
    for count in (counts[0], *counts):  # the first once more: it warms up
        rows = token_rows(count)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(len(tokenizer), max_position_embeddings=2048))
        start = time.monotonic()
        training.train(
            model, tokenizer, rows, METHOD, tempfile.mkdtemp(), lora=training.lora_config(dropout=0.0), **ARGUMENTS
        )
        found.append({"rows": len(rows), "ms_per_row": round(1000 * (time.monotonic() - start) / len(rows), 2)})
    return found[1:]


def compare(count: int) -> dict:
    """All, one after another, each in a fresh process, and how they compare."""
    found = {}
    for who in CONTESTANTS:
        command = [sys.executable, "-m", "tests.benchmarks.bench_train", str(count), who]
        result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found[who] = json.loads(result.stdout.splitlines()[-1])
        print(json.dumps(found[who]))
    speed = {who: row["tokens_per_s"] for who, row in found.items()}
    ratios = {
        "speed_over_reference": speed["ours"] / speed["reference"],
        "speed_over_trl": speed["ours"] / speed["trl"],
        "speed_over_reference_with_references_kept": speed["ours_references_kept"] / speed["reference"],
        "memory_of_reference": found["ours"]["peak_gib"] / found["reference"]["peak_gib"],
    }
    ratios = {name: round(value, 2) for name, value in ratios.items()}
    return {
        "machine": hardware(), "commit": git_commit(), "rows": list(found.values()), "ratios": ratios,
        "tiny_model": scaling(),
    }  # fmt: skip


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], size)))
    else:
        comparison = compare(size)
        write_json(OUTPUT, comparison)
        print(f"{Path(OUTPUT).relative_to(ROOT)}: {comparison['ratios']}")
