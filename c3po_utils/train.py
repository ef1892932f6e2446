"""Fine-tuning: a small subclass of trl's DPOTrainer that trains any `Method` on packed batches of token rows."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from c3po_utils import checkpoints
from c3po_utils.adapters import load_adapter, lora_config, save_adapter
from c3po_utils.cores import give_back_memory, keep_memory, side_by_side, streams
from c3po_utils.fused import fused
from c3po_utils.head import token_kl, token_logps
from c3po_utils.methods import METHODS, Method, get_method
from c3po_utils.objective import Batch, collate, completion_states, head_weight, objective
from c3po_utils.references import with_references
from c3po_utils.runs import write_json

__all__ = ["METHODS", "Method", "get_method", "load_adapter", "lora_config", "save_adapter", "train"]

LOG = "log.json"
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


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients with respect to the parameters are known."""

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        gradients, ctx.gradients = ctx.gradients, None  # so that the parameters take them without a copy
        torch._foreach_mul_(gradients, grad)
        return None, None, *gradients


class C3POTrainer(DPOTrainer):
    """trl's DPOTrainer with the objective of a `Method` on packed batches and precomputed reference log-probs."""

    def __init__(self, *args: Any, method: Method, tokens_per_pass: int | None, identity: Any, **kwargs: Any):
        self.method, self.identity = method, identity
        super().__init__(
            *args,
            data_collator=lambda rows: {
                "parts": collate(rows, tokens_per_pass, at_once=self.passes_at_once, teacher=bool(method.kl))
            },
            **kwargs,
        )
        self._sums: Counter[str] = Counter()
        self.passes_at_once = self._passes_at_once()
        self.precompute_ref_logps = True
        self.model.delete_adapter("ref")  # trl's copy of the adapter, for references on the fly
        base = self.model.get_base_model()
        # Routed through forward, so that wrappers (DDP, say) see an ordinary forward pass.
        base.forward = lambda batch, teacher_ND=None, **_: self._outputs(base, batch, teacher_ND)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # rows are token ids already

    def _prepare_inputs(self, inputs: dict[str, list[Batch]]) -> dict[str, list[Batch]]:
        return {"parts": [part.to(self.accelerator.device) for part in inputs["parts"]]}

    def training_step(self, model: nn.Module, inputs: dict[str, list[Batch]], *args: Any) -> torch.Tensor:
        """One backward pass for each part of the batch, so that memory is bounded by a part's tokens."""
        parts = inputs["parts"]
        loss = torch.zeros((), device=self.accelerator.device)
        for backward in [parts] if self.passes_at_once > 1 else [[part] for part in parts]:
            loss += super().training_step(model, {"parts": backward}, *args)
        self._record("train")
        return loss

    def _outputs(self, base: PreTrainedModel, batch: Batch, teacher_ND: torch.Tensor | None) -> dict:
        """log pi of every completion token, (N,), and where a teacher is given its divergence from pi, (N,)."""
        hidden_ND, weight_VD = completion_states(base, batch), head_weight(base)
        outputs = {"logps_N": token_logps(hidden_ND, weight_VD, batch.labels_N)}
        if teacher_ND is not None:
            pairs = len(hidden_ND) - len(teacher_ND)  # the kept segments stand at the end
            kl = token_kl(hidden_ND[pairs:], teacher_ND, weight_VD, self.method.kl_temperature)
            outputs["kl_N"] = torch.cat([kl.new_zeros(pairs), kl])
        return outputs

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> torch.Tensor | None:
        if batch.teacher is None:
            return None
        with self.model.disable_adapter():
            return completion_states(self.model.get_base_model(), batch.teacher)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, list[Batch]], return_outputs: bool = False):
        if self.passes_at_once > 1 and torch.is_grad_enabled():
            return self._loss_side_by_side(model, inputs["parts"])
        loss = 0.0
        for batch in inputs["parts"]:
            part, metrics = self._part(model, batch)
            loss = loss + part
            self._sums.update(metrics)
        if not self.model.training:
            self._record("eval")
        return (loss, {}) if return_outputs else loss

    def _part(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What one pass adds to its optimizer batch's loss and curves."""
        outputs = model(batch=batch, teacher_ND=self._teacher(batch))
        own = None if self._plain else self._trl_preference
        return objective(self.method, batch=batch, preference=own, **outputs)

    def _passes_at_once(self) -> int:
        """How many parts of a batch may pass through the model at one time, each in a thread of its own.

        Only one where a pass draws random numbers, whose order would be left to chance, or changes a state: autocast,
        the adapter switched off for the teacher, trl's losses.
        """
        args, config = self.args, self.model.config.get_text_config()
        dropout = any(module.p for module in self.model.modules() if isinstance(module, nn.Dropout))
        dropout = dropout or getattr(config, "attention_dropout", 0)
        stateful = args.bf16 or args.fp16 or args.activation_checkpointing or self.method.kl or not self._plain
        return 1 if dropout or stateful or args.world_size > 1 else streams(self.accelerator.device)

    def _loss_side_by_side(self, model: nn.Module, parts: Sequence[Batch]) -> torch.Tensor:
        """The batch's loss, with its gradients; they are added up in the same order every time."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        @torch.enable_grad()
        def part(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor], Sequence[torch.Tensor]]:
            loss, metrics = self._part(model, batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            return loss.detach(), metrics, gradients

        total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
        for loss, metrics, found in side_by_side(part, parts, self.passes_at_once):
            total = total + loss
            torch._foreach_add_(gradients, found)
            self._sums.update(metrics)
            del found  # together they are as large as the adapter
        return _WithGradients.apply(total, gradients, *parameters)

    @property
    def _plain(self) -> bool:
        """Whether the preference is learned by DPO's own loss."""
        return (self.loss_types, self.loss_weights, self.f_divergence_type) == (["sigmoid"], [1.0], "reverse_kl")

    def _trl_preference(self, logps_N: torch.Tensor, batch: Batch) -> torch.Tensor:
        """trl's own loss of preference for the pass's pairs, from log-probabilities that we computed."""
        pairs = 2 * batch.counts["chosen"]
        tokens_N = batch.sequence_N < pairs
        lengths = torch.bincount(batch.sequence_N[tokens_N], minlength=pairs)
        mask = torch.arange(int(lengths.max()) + 1, device=logps_N.device) <= lengths[:, None]
        mask[:, 0] = False  # a prompt of one token, which trl's shift by one takes away
        log_probs = logps_N.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], logps_N[tokens_N])
        blank = torch.zeros_like(log_probs)
        inputs = {
            "input_ids": mask.long(), "attention_mask": mask.long(), "completion_mask": mask.long(),
            "ref_chosen_logps": batch.ref_chosen_logps_B, "ref_rejected_logps": batch.ref_rejected_logps_B,
        }  # fmt: skip
        outputs = SimpleNamespace(log_probs=log_probs, entropy=blank, mean_logits=blank, is_top1=blank.bool())
        metrics, self._metrics = self._metrics, defaultdict(lambda: defaultdict(list))
        try:
            return super()._compute_loss(lambda **_: outputs, inputs, False)
        finally:
            self._metrics = metrics

    def _record(self, mode: str) -> None:
        for name, value in self._sums.items():
            self._metrics[mode][name].append(float(value))
        self._sums.clear()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super(DPOTrainer, self)._save_checkpoint(model, trial)  # without a model card in each checkpoint
        checkpoints.mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", self.identity)


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
        tokens_per_pass: about how many tokens go through the model at one time. Memory grows with it; the result does
            not depend on it, as the passes of one batch add up.
        arguments: any field of trl's DPOConfig (and so of transformers' TrainingArguments).

    Returns:
        The trained model and the log: one dict per step with loss terms, rewards and learning rate.

    Raises:
        ValueError: the method starts from an adapter and none is given, or trl refuses a training argument.
    """
    keep_memory()
    folder = Path(folder)
    if bool(method.start) != bool(start):
        raise ValueError(f"method.start is {method.start!r} and start is {start!r}: expected both or neither")
    if method.preference:
        rows = with_references(model, rows, references)
        give_back_memory()
    config = _config(model, method, folder, name, arguments)
    torch.manual_seed(config.seed)
    policy = load_adapter(model, start, trainable=True) if start else get_peft_model(model, lora or lora_config())
    rows = [_ids_only(row) for row in rows]
    per_pass = tokens_per_pass or TOKENS_PER_PASS.get(model.device.type, 4096)
    trainer = C3POTrainer(
        policy, args=config, method=method, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[_Bar()], tokens_per_pass=None if WHOLE_BATCH & set(config.loss_type) else per_pass,
        identity=[asdict(method), str(start), policy.peft_config["default"].to_dict(), arguments, rows],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    _run(trainer, policy)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    save_adapter(policy, folder)
    write_json(folder / LOG, log)
    shutil.rmtree(config.output_dir, ignore_errors=True)  # checkpoints are there to resume
    return policy, log


REFUSED = {  # fields of DPOConfig that cannot be meant here
    "beta": "set it among the method's settings",
    "use_weighting": "its weights need all logits, which are not computed here",
    "ld_alpha": "it needs the reference log-probabilities of single tokens, and sums are kept here",
    "precompute_ref_log_probs": "they are always computed once; see the argument `references`",
    "max_length": "rows are cut or dropped when they are made; see data.training_rows",
}


def _config(model: PreTrainedModel, method: Method, folder: Path, name: str, arguments: dict[str, Any]) -> DPOConfig:
    for key in arguments.keys() & REFUSED.keys():
        raise ValueError(f"training argument {key!r}: {REFUSED[key]}")
    known = {field.name for field in fields(DPOConfig)}
    for key in arguments.keys() - known:
        near = get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"training argument {key!r}: expected a field of trl's DPOConfig{hint}")
    old, new = "gradient_checkpointing", "activation_checkpointing"
    arguments = {key.replace(old, new): value for key, value in arguments.items()}
    device = {"use_cpu": model.device.type == "cpu", "run_name": name, "save_strategy": "steps", "max_length": None}
    return DPOConfig(output_dir=str(folder / "checkpoints"), beta=method.beta, **PAPER | QUIET | device | arguments)


def _run(trainer: C3POTrainer, policy: PeftModel) -> None:
    """Train, from the last valid checkpoint if there is one; leaves the model ready to answer."""
    try:
        with nullcontext() if trainer.args.bf16 or trainer.args.fp16 else fused(policy):  # autocast mixes types
            trainer.train(resume_from_checkpoint=checkpoints.last_valid(trainer.args.output_dir, trainer.identity))
    finally:
        del policy.get_base_model().forward  # back to the class's own
    policy.eval()
    policy.config.use_cache = True


def _ids_only(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the names of its parts: what a step needs."""
    return {key: value for key, value in row.items() if not key.endswith("_id") and key != "id"}
