"""trl's DPOTrainer on packed batches with our objective, and checkpoints that can be trusted after a crash.

transformers writes a checkpoint file by file and raises on the newest one if that is half written; here a marker,
written last, names every file with its hash.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_callback import ProgressCallback
from trl import DPOTrainer

from c3po_utils.engine import log_probs, threads
from c3po_utils.runs import files, progress
from c3po_utils.training.methods import Method
from c3po_utils.training.objective import Batch, collate, completion_states, head_weight, objective

MARKER = "complete.json"


def _hashes(checkpoint: Path) -> dict[str, str]:
    found = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(checkpoint)): files.content_hash(path) for path in sorted(found)}


def _identity(settings: Any) -> str:
    """The hash of settings and data; sets count by their members, other objects by their text."""
    return files.content_hash(
        json.dumps(settings, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    )


def mark_complete(checkpoint: Path | str, identity: Any) -> None:
    """Say that a checkpoint is whole, and to which training (settings and data) it belongs."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():  # rotated away at once, where files have no times to sort checkpoints by
        return
    files.write_json(checkpoint / MARKER, {"identity": _identity(identity), "files": _hashes(checkpoint)})


def last_valid(folder: Path | str, identity: Any) -> Path | None:
    """The newest checkpoint below `folder` that is whole and belongs to this training; None where there is none."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        marker, whole = checkpoint / MARKER, {"identity": _identity(identity), "files": _hashes(checkpoint)}
        if whole["files"] and files.remembered(marker) == whole:
            return checkpoint
    return None


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
                "parts": collate(rows, tokens_per_pass, at_once=self.passes_at_once, reference=bool(method.kl))
            },
            **kwargs,
        )
        self._sums: Counter[str] = Counter()
        self.passes_at_once = self._passes_at_once()
        self.precompute_ref_logps = True
        self.model.delete_adapter("ref")  # trl's copy of the adapter, for references on the fly
        base = self.model.get_base_model()
        # Routed through forward, so that wrappers (DDP, say) see an ordinary forward pass.
        base.forward = lambda batch, reference_ND=None, **_: self._outputs(base, batch, reference_ND)

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
        for name, value in self._sums.items():
            self._metrics["train"][name].append(float(value))
        self._sums.clear()
        return loss

    def _outputs(self, base: PreTrainedModel, batch: Batch, reference_ND: torch.Tensor | None) -> dict:
        """log pi of every completion token, (N,), and where pi_0's states are given its divergence from pi, (N,)."""
        hidden_ND, weight_VD = completion_states(base, batch), head_weight(base)
        outputs = {"logps_N": log_probs.token_logps(hidden_ND, weight_VD, batch.labels_N)}
        if reference_ND is not None:
            pairs = len(hidden_ND) - len(reference_ND)  # the kept segments stand at the end
            kl = log_probs.token_kl(hidden_ND[pairs:], reference_ND, weight_VD, self.method.kl_temperature)
            outputs["kl_N"] = torch.cat([kl.new_zeros(pairs), kl])
        return outputs

    @torch.no_grad()
    def _reference(self, batch: Batch) -> torch.Tensor | None:
        if batch.reference is None:
            return None
        with self.model.disable_adapter():
            return completion_states(self.model.get_base_model(), batch.reference)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, list[Batch]], *_: Any) -> torch.Tensor:
        if self.passes_at_once > 1:
            return self._loss_side_by_side(model, inputs["parts"])
        loss = 0.0
        for batch in inputs["parts"]:
            part, metrics = self._part(model, batch)
            loss = loss + part
            self._sums.update(metrics)
        return loss

    def _part(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What one pass adds to its optimizer batch's loss and curves."""
        outputs = model(batch=batch, reference_ND=self._reference(batch))
        own = None if self._plain else self._trl_preference
        return objective(self.method, batch=batch, preference=own, **outputs)

    def _passes_at_once(self) -> int:
        """How many parts of a batch may pass through the model at one time, each in a thread of its own.

        Only one where a pass draws random numbers, whose order would be left to chance, or changes a state: autocast,
        the adapter switched off for the reference, trl's losses.
        """
        args, config = self.args, self.model.config.get_text_config()
        dropout = any(module.p for module in self.model.modules() if isinstance(module, nn.Dropout))
        chance = dropout or getattr(config, "attention_dropout", 0)
        stateful = args.bf16 or args.fp16 or args.activation_checkpointing or self.method.kl or not self._plain
        return 1 if chance or stateful or args.world_size > 1 else threads.streams(self.model)

    def _loss_side_by_side(self, model: nn.Module, parts: Sequence[Batch]) -> torch.Tensor:
        """The batch's loss, with its gradients; they are added up in the same order every time."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        @torch.enable_grad()
        def part(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor], Sequence[torch.Tensor]]:
            loss, metrics = self._part(model, batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            return loss.detach(), metrics, gradients

        total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
        for loss, metrics, found in threads.side_by_side(part, parts, self.passes_at_once):
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
        logps_SL = logps_N.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], logps_N[tokens_N])
        blank = torch.zeros_like(logps_SL)
        inputs = {
            "input_ids": mask.long(), "attention_mask": mask.long(), "completion_mask": mask.long(),
            "ref_chosen_logps": batch.ref_chosen_logps_B, "ref_rejected_logps": batch.ref_rejected_logps_B,
        }  # fmt: skip
        outputs = SimpleNamespace(log_probs=logps_SL, entropy=blank, mean_logits=blank, is_top1=blank.bool())
        metrics, self._metrics = self._metrics, defaultdict(lambda: defaultdict(list))
        try:
            return super()._compute_loss(lambda **_: outputs, inputs, False)
        finally:
            self._metrics = metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with files.writing(checkpoint, RuntimeError, SafetensorError):
                super(DPOTrainer, self)._save_checkpoint(model, trial)  # without a model card in each checkpoint
            mark_complete(checkpoint, self.identity)
        except OSError:
            shutil.rmtree(checkpoint, ignore_errors=True)  # a full disk needs the room
            raise


class Bar(ProgressCallback):
    """One progress bar over steps, with the loss; the trainer prints nothing else."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = progress.bar(total=state.max_steps, desc=args.run_name, unit="step")
        self.current_step = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)
