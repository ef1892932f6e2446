"""Fine-tuning: a method's adapter from token rows, and from a run's sampled rows to the run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig

from c3po_utils.engine import fused, load_model, models, threads
from c3po_utils.feedback import records
from c3po_utils.runs import files, nearest
from c3po_utils.sampling import load_rows, members, stored_feedback
from c3po_utils.training.adapters import load_adapter, lora_config, refuse_untrainable, save_adapter
from c3po_utils.training.data import Preflight, check_lengths, training_rows
from c3po_utils.training.gate import GateTraining
from c3po_utils.training.limits import check_arguments, deciding
from c3po_utils.training.methods import Method
from c3po_utils.training.references import with_references
from c3po_utils.training.stage import LOG, RunTraining, TrainSettings, adapter_folder, adapter_hash
from c3po_utils.training.trainer import Bar, C3POTrainer, last_valid
from c3po_utils.training.transfer import passing, transfer_rows

TOKENS_PER_PASS = {"cpu": 2048, "cuda": 8192}
WHOLE_BATCH = {"aot", "aot_unpaired", "sft"}  # trl's losses that are no mean over pairs
PAPER = {
    "learning_rate": 5e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
}  # fmt: skip
QUIET = {
    "report_to": "none", "disable_tqdm": True, "log_level": "error", "logging_steps": 1, "save_steps": 20,
    "save_total_limit": 2, "remove_unused_columns": False, "dataloader_pin_memory": False,
    "activation_checkpointing": False, "bf16": False, "disable_dropout": False, "seed": 0,
}  # fmt: skip


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    method: Method,
    folder: Path | str,
    *,
    lora: LoraConfig | None = None,
    name: str = "",
    start: Path | str | None = None,
    references: Path | str | None = None,
    tokens_per_pass: int | None = None,
    **arguments: Any,
) -> tuple[PeftModel, list[dict]]:
    """Train an adapter on token rows (see data.py) and store it in `folder`.

    A training that was killed continues from the last checkpoint that is whole and has the same settings and rows.

    Args:
        model: pi_0; the adapter is injected into it.
        lora: the adapter's configuration; that of `start` where training starts from an adapter.
        name: for the progress bar.
        start: folder of the adapter that a method with `start` begins with.
        references: folder in which log-probabilities under pi_0 are kept (see references.py).
        tokens_per_pass: about how many tokens go through the model at one time. Memory grows with it; without
            dropout the result does not depend on it, as the passes of one batch add up.
        arguments: any field of trl's DPOConfig (and so of transformers' TrainingArguments).

    Returns:
        The trained model and the log: one dict per step with loss terms, rewards and learning rate.

    Raises:
        ValueError: the method is gated, or starts from an adapter and none is given, trl refuses a training argument,
            or the adapter would change embeddings or the head.
        DataError: no rows, or one that is longer than the model's context.
    """
    threads.keep_memory()
    folder = Path(folder)
    if method.gated:
        raise ValueError(f"a gate for {method.gated!r} is no adapter to train: expected gate.GateTraining to fit it")
    if bool(method.start) != bool(start):
        raise ValueError(f"method.start is {method.start!r} and start is {start!r}: expected both or neither")
    lora = lora or lora_config()
    refuse_untrainable(model, lora)
    check_lengths(rows, models.context_length(model.config))
    config = _config(model, method, folder, name, arguments)
    if method.preference:
        rows = with_references(model, rows, references)
        threads.give_back_memory()
    torch.manual_seed(config.seed)
    policy = load_adapter(model, start, trainable=True) if start else get_peft_model(model, lora)
    rows = [{key: row[key] for key in row if key != "id" and not key.endswith("_id")} for row in rows]
    per_pass = tokens_per_pass or TOKENS_PER_PASS.get(model.device.type, 4096)
    trainer = C3POTrainer(
        policy, args=config, method=method, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[Bar()], tokens_per_pass=None if WHOLE_BATCH & set(config.loss_type) else per_pass,
        identity=[
            method.differences, adapter_hash(Path(start)) if start else None, policy.peft_config["default"].to_dict(),
            deciding(arguments), rows,
        ],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    _run(trainer, policy)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    save_adapter(policy, folder)
    files.write_json(folder / LOG, log)
    shutil.rmtree(config.output_dir, ignore_errors=True)  # checkpoints are there to resume
    return policy, log


def _config(model: PreTrainedModel, method: Method, folder: Path, name: str, arguments: dict[str, Any]) -> DPOConfig:
    check_arguments(arguments)
    known = {field.name for field in fields(DPOConfig)}
    for key in arguments.keys() - known:
        raise ValueError(f"training argument {key!r}: expected a field of trl's DPOConfig ({nearest(key, known)})")
    old, new = "gradient_checkpointing", "activation_checkpointing"
    arguments = {key.replace(old, new): value for key, value in arguments.items()}
    device = {"use_cpu": model.device.type == "cpu", "run_name": name, "save_strategy": "steps", "max_length": None}
    return DPOConfig(output_dir=str(folder / "checkpoints"), beta=method.beta, **PAPER | QUIET | device | arguments)


def _run(trainer: C3POTrainer, policy: PeftModel) -> None:
    """Train, from the last valid checkpoint if there is one; leaves the model ready to answer."""
    folder = trainer.args.output_dir
    last = last_valid(folder, trainer.identity)
    if not last:  # what lies there is another training's, or damaged, and would be counted among the newest
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with nullcontext() if trainer.args.bf16 or trainer.args.fp16 else fused(policy):  # autocast mixes types
            trainer.train(resume_from_checkpoint=last)
    finally:
        del policy.get_base_model().forward  # back to the class's own
    policy.eval()
    policy.config.use_cache = True


class Training(RunTraining):
    """One method on one feedback's sampled data: from a run's rows to an adapter in the run's folder."""

    @classmethod
    def of(cls, run: Path | str, feedback: str, settings: TrainSettings) -> Training | GateTraining:
        """The training on one feedback, `id` or `path/to/set.yaml#id`, of a run: of an adapter, or a gated method's."""
        return (GateTraining if settings.objective.gated else cls)(Path(run), records.feedback_id(feedback), settings)

    @cached_property
    def _prepared(self) -> tuple[list[dict], Preflight]:
        objective = self.settings.objective
        rows = load_rows(self.run, self.feedback_id, "train")
        if objective.distils:
            rows += transfer_rows(self.run, self.feedback_id, objective)
        return training_rows(
            rows, self.tokenizer, system=self.sampled_with.system_prompt,
            context=models.context_of(self.sampled_with.model), seed=self.settings.seed,
            keep=self._passing() if objective.only_passing else None, **objective.rows,
        )  # fmt: skip

    @property
    def rows(self) -> list[dict]:
        """Token rows of the training fold; see data.training_rows for the errors."""
        return self._prepared[0]

    @property
    def preflight(self) -> Preflight:
        return self._prepared[1]

    def first_pair(self) -> str:
        """The first row's prompt and chosen answer as the model sees them, what is trained on in double brackets.

        Of an objective that has no use for pairs, the first answer that is to be kept.
        """
        first, segment = self.rows[0], self.settings.objective.segments[0]
        prompt, answer = (self.tokenizer.decode(first[f"{segment}_{part}"]) for part in ("prompt_ids", "ids"))
        return f"{prompt}⟦{answer}⟧"

    def fit(self) -> pd.DataFrame:
        """Train and store the adapter, or do nothing if that was done; returns the log, one row per step."""
        settings, stage = self.settings, self.stage
        start = settings.objective.start
        if not stage.done:
            self.tell_replaced()
            with stage:
                train(
                    load_model(self.sampled_with.model), self.tokenizer, self.rows, settings.objective, stage.folder,
                    lora=lora_config(**settings.lora), name=f"training {settings.method}",
                    start=adapter_folder(self.run, self.feedback_id, start) if start else None,
                    references=self.run / "references", learning_rate=settings.learning_rate,
                    num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch_size,
                    seed=settings.seed, **settings.training_arguments,
                )  # fmt: skip
                tokens = (len(value) for row in self.rows for key, value in row.items() if key.endswith("_ids"))
                stage.notes["tokens"] = sum(tokens)
        return pd.DataFrame(files.read_json(stage.path(LOG))).apply(pd.to_numeric, errors="coerce")

    def _passing(self) -> Callable[[dict], bool]:
        """Whether a row's revision passes the metric of its feedback.

        Raises:
            ValueError: a feedback without a metric.
        """
        if not all(stored_feedback(self.run, id).metric for id in members(self.feedback_id)):
            raise ValueError(f"only_passing: feedback {self.feedback_id!r} has no metric to choose pairs by")
        return passing(self.run, self.feedback_id)
