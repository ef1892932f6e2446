"""Fine-tuning: a small subclass of trl's DPOTrainer that trains any `Method` on packed batches of token rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer

from c3po_utils.adapters import load_adapter, lora_config, save_adapter
from c3po_utils.fused import fused
from c3po_utils.loss import sequence_logps
from c3po_utils.methods import METHODS, Method, get_method
from c3po_utils.objective import Batch, collate, completion_logps, objective
from c3po_utils.runs import write_json

__all__ = ["METHODS", "Method", "get_method", "load_adapter", "lora_config", "save_adapter", "train"]

LOG = "log.json"
TOKENS_PER_PASS = {"cpu": 4096, "cuda": 8192}


class C3POTrainer(DPOTrainer):
    """trl's DPOTrainer with the objective of a `Method` on packed batches and precomputed reference log-probs."""

    def __init__(self, *args: Any, method: Method, tokens_per_pass: int | None, **kwargs: Any):
        self.method = method
        super().__init__(*args, data_collator=lambda rows: {"parts": collate(rows, tokens_per_pass)}, **kwargs)
        self._sums: Counter[str] = Counter()
        base = self.model.get_base_model()
        # Routed through forward, so that wrappers (autocast, DDP) see an ordinary forward pass.
        base.forward = lambda batch, **_: completion_logps(base, batch)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # rows are token ids already

    def _prepare_inputs(self, inputs: dict[str, list[Batch]]) -> dict[str, list[Batch]]:
        return {"parts": [part.to(self.accelerator.device) for part in inputs["parts"]]}

    def training_step(self, model: torch.nn.Module, inputs: dict[str, list[Batch]], *args: Any) -> torch.Tensor:
        """One backward pass for each part of the batch, so that memory is bounded by a part's tokens."""
        loss = torch.zeros((), device=self.accelerator.device)
        for part in inputs["parts"]:
            loss += super().training_step(model, {"parts": [part]}, *args)
        self._record("train")
        return loss

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, list[Batch]], return_outputs: bool = False):
        loss = 0.0
        for batch in inputs["parts"]:
            part, metrics = objective(self.method, model(batch=batch), batch)
            loss = loss + part
            self._sums.update(metrics)
        if not self.model.training:
            self._record("eval")
        return (loss, {}) if return_outputs else loss

    def _record(self, mode: str) -> None:
        for name, value in self._sums.items():
            self._metrics[mode][name].append(value.item())
        self._sums.clear()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super(DPOTrainer, self)._save_checkpoint(model, trial)  # without a model card in each checkpoint


@torch.no_grad()
def reference_logps(model: PreTrainedModel, rows: Sequence[dict], *, batch_size: int = 16) -> list[dict]:
    """The rows with `ref_chosen_logps` and `ref_rejected_logps`: log pi_0 of both answers, summed over tokens."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["chosen_ids"]))
    result = [dict(row) for row in rows]
    for start in tqdm(range(0, len(rows), batch_size), desc="reference log-probs", leave=False):
        indices = order[start : start + batch_size]
        keys = ("chosen_ids", "chosen_prompt_ids", "rejected_ids", "rejected_prompt_ids")
        (batch,) = collate([{key: rows[i][key] for key in keys} for i in indices])
        batch = batch.to(model.device)
        logps_S = sequence_logps(completion_logps(model, batch), batch.sequence_N, 2 * len(indices)).tolist()
        for position, i in enumerate(indices):
            result[i]["ref_chosen_logps"] = logps_S[position]
            result[i]["ref_rejected_logps"] = logps_S[len(indices) + position]
    return result


class _Bar(TrainerCallback):
    """One progress bar over steps, with the loss; the trainer prints nothing else."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=args.run_name or "training", unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    method: Method,
    folder: Path | str,
    *,
    lora: LoraConfig | None = None,
    name: str = "",
    tokens_per_pass: int | None = None,
    **arguments: Any,
) -> tuple[PeftModel, list[dict]]:
    """Train an adapter on token rows (see data.py) and store it in `folder`.

    Args:
        model: pi_0; the adapter is injected into it.
        tokens_per_pass: how many tokens go through the model at one time. Memory grows with it; the result does not
            depend on it, as the passes of one batch add up.
        arguments: any field of trl's DPOConfig (and so of transformers' TrainingArguments).

    Returns:
        The trained model and the log: one dict per step with loss terms, rewards and learning rate.
    """
    folder, device = Path(folder), model.device.type
    if method.preference:
        with fused(model):
            rows = reference_logps(model, rows)
    settings = {
        "learning_rate": 5e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "num_train_epochs": 1,
        "per_device_train_batch_size": 16, "gradient_checkpointing": False, "bf16": False, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "max_length": None, "log_level": "error",
        "use_cpu": device == "cpu", "run_name": name, "disable_dropout": False, "seed": 0,
    } | arguments  # fmt: skip
    config = DPOConfig(output_dir=str(folder / "checkpoints"), beta=method.beta, **settings)
    torch.manual_seed(config.seed)
    policy = get_peft_model(model, lora or lora_config())
    trainer = C3POTrainer(
        policy, args=config, method=method, train_dataset=Dataset.from_list([strip(row) for row in rows]),
        tokens_per_pass=tokens_per_pass or TOKENS_PER_PASS.get(device, 4096),
        processing_class=tokenizer, callbacks=[_Bar()],
    )  # fmt: skip
    policy.delete_adapter("ref")  # trl's copy for a reference on the fly
    trainer.pop_callback("PrinterCallback")
    try:
        with fused(policy):
            trainer.train()
    finally:
        del policy.get_base_model().forward  # back to the class's own
    policy.eval()
    policy.config.use_cache = True
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    save_adapter(policy, folder)
    write_json(folder / LOG, log)
    return policy, log


def strip(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the ids of its parts: what a step needs."""
    return {key: value for key, value in row.items() if not key.endswith("_id") and key != "id"}
