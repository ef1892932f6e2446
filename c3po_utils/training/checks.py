"""Checks on the actual device: log-probabilities, gradients, an adapter's way to disk and back, and a step's cost.

The reference is the plainest computation there is: each sequence alone through transformers' model in float32, all
logits, autograd. A fast path may be twice as far from it as the same plain computation is in the model's own type,
as two ways of rounding differ; and as far as LEAST in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch.nn.functional import kl_div, linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.engine import fast_paths, fused, log_probs, threads
from c3po_utils.feedback import records
from c3po_utils.runs import findings
from c3po_utils.training.adapters import load_adapter, lora_config
from c3po_utils.training.data import encode
from c3po_utils.training.finetune import train
from c3po_utils.training.methods import SEGMENTS, Method
from c3po_utils.training.objective import Batch, collate, completion_logps, completion_states, head_weight, objective

# Each fast path of training with those that it needs.
TRIED = {
    "packing": (), "eager_attention": ("packing",), "lora_kernel": (), "norm_kernel": (), "swiglu_kernel": (),
    "rotary_kernel": (), "head": (), "streams": (),
}  # fmt: skip
PLAIN, TOGETHER = "plain", "together"  # no fast path, and all of them
WAYS = (PLAIN, *TRIED, TOGETHER)
TIMES = 2.0
# Root mean square error in nats, and of the gradient relative to its norm, that is never held against a path:
# some thousand roundings of 2^-24, two of 2^-8, and in half precision two of 2^-11.
LEAST = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-3}
# Of the first step's loss from ln 2: beta times what rounds differently in pi_0's pass and in training's, 0.3 nats a
# log-probability in bfloat16 (0.011 was seen on a processor with AMX, less than 0.01 on one without).
START = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}
ALONE = 0.1  # instead, where the reference is in the model's own type: two ways of rounding of a deep model apart


def sample_rows(tokenizer: PreTrainedTokenizerBase, pairs: int, texts_per_answer: int = 1) -> list[dict]:
    """Token rows of unequal lengths, made of the bundled general prompts; in each answer so many of their texts."""
    texts = [prompt.text for prompt in records.load_general_prompts()]

    def answer(place: int) -> str:
        return " ".join(texts[(place + step) % len(texts)] for step in range(texts_per_answer))

    rows = []
    for place in range(pairs):
        row = {"id": f"row {place}"}
        for number, name in enumerate(SEGMENTS):
            prompt = texts[(place if name in ("chosen", "rejected") else place + 7 * number) % len(texts)]
            example = encode(tokenizer, row["id"], prompt, answer(3 * place + 11 * number))
            row |= {f"{name}_prompt_ids": example.prompt_ids, f"{name}_ids": example.completion_ids}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Passes:
    """What came of some passes: log pi of N tokens, a KL divergence of each, and the adapter's gradient."""

    logps_N: torch.Tensor
    kl_N: torch.Tensor
    gradient: torch.Tensor

    def error(self, reference: Passes) -> tuple[float, float]:
        """Root mean square error of log-probabilities and divergences, in nats, and relative error of the gradient."""
        pairs = ((self.logps_N, reference.logps_N), (self.kl_N, reference.kl_N))
        nats = max(float((own - other).square().mean().sqrt()) for own, other in pairs)
        return nats, float((self.gradient - reference.gradient).norm() / reference.gradient.norm())


Compute = Callable[[PreTrainedModel, Batch], tuple[torch.Tensor, torch.Tensor]]


def with_adapter(model: PreTrainedModel) -> PeftModel:
    """The model with an adapter that is not zero, the same one every time."""
    policy = get_peft_model(model, lora_config(r=8, alpha=16, dropout=0.0))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=draw) / math.sqrt(parameter.shape[-1])
            parameter.data = (values * (0.2 if "lora_B" in name else 1.0)).to(parameter)
    return policy


def put_away(policy: PeftModel) -> PreTrainedModel:
    """The model without the adapter, as if there had been none."""
    base = policy.unload()
    if hasattr(base, "peft_config"):  # peft leaves it, and warns of it
        del base.peft_config
    return base


def plainly(base: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quickly`, with nothing of this kit's engine: a sequence at a time, all logits."""
    packing, states = batch.packing, []
    for row, count in enumerate(batch.sequence_N.bincount().tolist()):
        ids = packing.ids_T[packing.index_BL[row, : int(packing.mask_BL[row].sum())]]
        states.append(base.get_decoder()(ids[None], use_cache=False).last_hidden_state[0, -count - 1 : -1])
    logps_NV = linear(torch.cat(states), head_weight(base)).float().log_softmax(-1)
    other_NV = logps_NV.detach().roll(1, 0)
    kl_N = kl_div(logps_NV, other_NV, reduction="none", log_target=True).sum(-1)
    return logps_NV.gather(-1, batch.labels_N[:, None])[:, 0], kl_N


def quickly(base: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi of the N completion tokens, and the divergence of each from the token before it, by the engine."""
    hidden_ND, weight_VD = completion_states(base, batch), head_weight(base)
    kl_N = log_probs.token_kl(hidden_ND, hidden_ND.detach().roll(1, 0), weight_VD)
    return log_probs.token_logps(hidden_ND, weight_VD, batch.labels_N), kl_N


def run_passes(policy: PeftModel, rows: Sequence[dict], compute: Compute) -> Passes:
    """Two passes of the rows, side by side where that is done, and their gradients' sum."""
    base = policy.get_base_model()
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    references = {"ref_chosen_logps": -50.0, "ref_rejected_logps": -50.0}
    parts = [part.to(base.device) for part in collate([row | references for row in rows], at_once=2)]

    @torch.enable_grad()
    def run(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
        logps_N, kl_N = compute(base, batch)
        loss = objective(Method(), logps_N, batch)[0] + 0.01 * kl_N.mean()
        return logps_N.detach(), kl_N.detach(), torch.autograd.grad(loss, parameters)

    logps, kl, gradients = zip(*threads.side_by_side(run, parts, threads.streams(base)), strict=True)
    flat = sum(torch.cat([gradient.flatten().float() for gradient in found]) for found in gradients)
    return Passes(torch.cat(logps).double().cpu(), torch.cat(kl).double().cpu(), flat.cpu())


def reference_passes(model: PreTrainedModel, rows: Sequence[dict]) -> Passes:
    """What the plainest computation gives; the model is left as it was."""
    policy = with_adapter(model)
    try:
        with fast_paths.only():
            return run_passes(policy, rows, plainly)
    finally:
        put_away(policy)


def passes_findings(
    model: PreTrainedModel,
    rows: Sequence[dict],
    reference: Passes,
    ways: Sequence[str] = WAYS,
    least: float | None = None,
) -> Iterator[findings.Finding]:
    """Log-probabilities and gradients of no fast path, of each, and of all together, against the reference.

    `least` as in LEAST, which it replaces.
    """
    exact = model.dtype == torch.float32
    own = (0.0, 0.0) if exact else reference_passes(model, rows).error(reference)
    least = least or LEAST.get(model.dtype, LEAST[torch.bfloat16])
    most = tuple(max(TIMES * error, least) for error in own)
    policy = with_adapter(model)
    try:
        for name in ways:
            names = tuple(TRIED) if name == TOGETHER else (name, *TRIED[name]) if name != PLAIN else ()
            if found := _tried(policy, rows, reference, name, names, most):
                yield found
    finally:
        put_away(policy)


def _tried(
    policy: PeftModel, rows: Sequence[dict], reference: Passes, name: str, names: tuple[str, ...],
    most: tuple[float, float],
) -> findings.Finding | None:  # fmt: skip
    """One way's finding; None for a path that this model does not take on this device."""
    fast_path = name if name in TRIED else ""
    do = (
        findings.SWITCHED_OFF if fast_path else "do not trust results of this machine in this type: try --dtype float32"
    )
    with fast_paths.only(*names) as taken:
        try:
            with fused(policy):
                nats, gradient = run_passes(policy, rows, quickly).error(reference)
        except Exception as error:  # whatever a kernel raises here, it is of no use here
            return findings.Finding(name, False, f"{type(error).__name__}: {error}", do, fast_path)
    if fast_path and fast_path not in taken:
        return None
    what = f"log-probs off by {nats:.2g} nats (at most {most[0]:.2g}), gradients by {gradient:.2g} ({most[1]:.2g})"
    return findings.Finding(name, nats <= most[0] and gradient <= most[1], what, do, fast_path)


def adapter_finding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], folder: Path
) -> findings.Finding:
    """Two real steps of training, which start at ln 2; the stored adapter, loaded, gives the same log-probabilities."""
    do = "if the disk is full or the folder read-only, set C3PO_CACHE to another place"
    try:
        policy, log = train(model, tokenizer, rows, Method(), folder, lora=lora_config(r=8, alpha=16), max_steps=2,
                            per_device_train_batch_size=len(rows), save_strategy="no", learning_rate=1e-3,
                            warmup_steps=0, lr_scheduler_type="constant")  # fmt: skip
        trained = _logps(policy, rows)
        again = load_adapter(put_away(policy), folder)
        loaded = _logps(again, rows)
        put_away(again)
    except Exception as error:
        return findings.Finding("adapter", False, f"{type(error).__name__}: {error}", do)
    off = float((loaded - trained).abs().max())
    start = float(log[0]["dpo"])
    what = f"DPO starts at {start:.4f} (ln 2 = 0.6931); stored and loaded, log-probs differ by {off:.2g} nats"
    least, most = (of.get(model.dtype, of[torch.bfloat16]) for of in (LEAST, START))
    do = "do not trust trainings of this machine in this type: try --dtype float32"
    return findings.Finding("adapter", abs(start - math.log(2)) <= most and off <= least, what, do)


@torch.no_grad()
def _logps(policy: PeftModel, rows: Sequence[dict]) -> torch.Tensor:
    (batch,) = collate(rows)
    return completion_logps(policy.get_base_model(), batch.to(policy.device)).double().cpu()


def step(policy: PeftModel, optimizer: torch.optim.Optimizer, parts: Sequence[Batch]) -> None:
    """One optimizer step over the passes of a batch, in turn."""
    for part in parts:
        batch = part.to(policy.device)
        logps_N = completion_logps(policy.get_base_model(), batch)
        objective(Method(), logps_N, batch)[0].backward()
    optimizer.step()
    optimizer.zero_grad()


def batch_of(tokenizer: PreTrainedTokenizerBase, tokens: int) -> tuple[list[Batch], int]:
    """One pass of about so many tokens, of answers of some 100, and how many it has."""
    rows = [row | {"ref_chosen_logps": -50.0, "ref_rejected_logps": -50.0} for row in sample_rows(tokenizer, 64, 6)]
    lengths = [sum(len(ids) for key, ids in row.items() if key.endswith("_ids")) for row in rows]
    count = max(1, sum(1 for end in range(len(rows)) if sum(lengths[: end + 1]) <= tokens))
    return collate(list(islice(rows, count))), sum(lengths[:count])
