"""From rows of token ids to the objective's value: batches, their forward pass, and the sum of the terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from c3po_utils import attention
from c3po_utils.data import SEGMENTS
from c3po_utils.loss import c3po_loss, dpo_loss, sequence_logps, sft_loss, token_logps
from c3po_utils.methods import Method
from c3po_utils.packing import Packing


@dataclass(frozen=True)
class Batch:
    """The sequences of one forward pass, segment after segment: S of them, with N completion tokens.

    `counts`: sequences of each segment, in the order in which they stand; `whole`: completion tokens of each
    segment, and rows, of the whole optimizer batch that this pass is a part of.
    """

    packing: Packing
    source_N: torch.Tensor  # position in the packing that predicts the token
    labels_N: torch.Tensor
    sequence_N: torch.Tensor
    counts: dict[str, int]
    whole: dict[str, int]
    ref_chosen_logps_B: torch.Tensor | None = None
    ref_rejected_logps_B: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return max(self.counts.values())

    def to(self, device: torch.device | str) -> Batch:
        parts = {key: value for key, value in vars(self).items() if isinstance(value, torch.Tensor | Packing)}
        return replace(self, **{key: value.to(device) for key, value in parts.items()})

    def of(self, segment: str) -> slice:
        """Where a segment's sequences stand among the S."""
        start = sum(count for name, count in self.counts.items() if SEGMENTS.index(name) < SEGMENTS.index(segment))
        return slice(start, start + self.counts[segment])

    def tokens_of(self, segment: str) -> torch.Tensor:
        """Which of the N completion tokens are a segment's, (N,) of booleans."""
        part = self.of(segment)
        return (self.sequence_N >= part.start) & (self.sequence_N < part.stop)


def _groups(rows: Sequence[dict[str, Any]], names: Sequence[str], tokens: int | None) -> list[list[dict]]:
    """Rows in order, in as few groups of about equal size as have some `tokens` tokens each; one row at least."""
    lengths = [sum(len(row[f"{name}_prompt_ids"]) + len(row[f"{name}_ids"]) for name in names) for row in rows]
    count = min(len(rows), -(-sum(lengths) // tokens)) if tokens else 1
    groups: list[list[dict]] = [[] for _ in range(count)]
    before = 0
    for row, length in zip(rows, lengths, strict=True):
        groups[min(count - 1, count * (before + length // 2) // sum(lengths))].append(row)
        before += length
    return [group for group in groups if group]


def collate(rows: Sequence[dict[str, Any]], tokens_per_pass: int | None = None, *, share: bool = True) -> list[Batch]:
    """The forward passes of one optimizer batch; their losses add up to that of a single pass.

    Args:
        rows: token rows (see data.py), all with the same segments.
        tokens_per_pass: how many tokens a pass may have; None for one pass.
        share: let sequences share their common prefixes (see packing.py).
    """
    names = [name for name in SEGMENTS if f"{name}_ids" in rows[0]]
    whole = {name: sum(len(row[f"{name}_ids"]) for row in rows) for name in names} | {"rows": len(rows)}
    return [_collate(group, names, whole, share) for group in _groups(rows, names, tokens_per_pass)]


def _collate(rows: Sequence[dict[str, Any]], names: Sequence[str], whole: dict[str, int], share: bool) -> Batch:
    parts = [(row[f"{name}_prompt_ids"], row[f"{name}_ids"]) for name in names for row in rows]
    packing = Packing.of([prompt + completion for prompt, completion in parts], share=share)
    source = [
        packing.index_BL[place, len(prompt) - 1 : len(prompt) - 1 + len(completion)]
        for place, (prompt, completion) in enumerate(parts)
    ]
    references = {
        f"{key}_B": torch.tensor([row[key] for row in rows])
        for key in ("ref_chosen_logps", "ref_rejected_logps")
        if key in rows[0]
    }
    return Batch(
        packing,
        torch.cat(source),
        torch.tensor([token for _, completion in parts for token in completion]),
        torch.repeat_interleave(torch.tensor([len(completion) for _, completion in parts])),
        dict.fromkeys(names, len(rows)),
        whole,
        **references,
    )


def completion_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The last hidden states (N, D) that predict the completion tokens, from one forward pass over all segments.

    Where the architecture allows, the sequences share one unpadded row (see packing.py); otherwise they are padded
    on the right.
    """
    packing, decoder = batch.packing, model.get_decoder()
    if attention.enable(model):
        out = decoder(packing.ids_T[None], position_ids=packing.positions_T[None], use_cache=False, packed=packing)
        return out.last_hidden_state[0].index_select(0, batch.source_N)
    out = decoder(packing.ids_T[packing.index_BL], attention_mask=packing.mask_BL, use_cache=False)
    return out.last_hidden_state.flatten(0, 1).index_select(0, packing.owner_T[batch.source_N])


def head_weight(model: PreTrainedModel) -> torch.Tensor:
    """The language-model head as one matrix (V, D).

    Raises:
        NotImplementedError: the head does more than multiply by a matrix.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    extras = [name for name in names if getattr(config, name, None) not in (None, 1.0)]
    if extras or getattr(head, "bias", None) is not None:
        raise NotImplementedError(
            f"{config.model_type}: its head uses {extras or 'a bias'}, which the chunked log-probs do not know"
        )
    return head.weight


def completion_logps(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi of every completion token, (N,), float32; the head sees completion positions only."""
    weight = head_weight(model)
    return token_logps(completion_states(model, batch).to(weight.dtype), weight, batch.labels_N)


def objective(method: Method, logps_N: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What one pass adds to its optimizer batch's loss, and to that batch's terms and rewards for the curves."""
    metrics = {}
    for segment in batch.counts:
        if segment != "rejected":
            part_N = logps_N[batch.tokens_of(segment)]
            metrics[f"sft/{segment}"] = sft_loss(part_N) * (len(part_N) / batch.whole[segment])
    preference = logps_N.new_zeros(())
    if method.preference:
        logps_S = sequence_logps(logps_N, batch.sequence_N, sum(batch.counts.values()))
        losses_B, chosen_rewards_B, rejected_rewards_B = dpo_loss(
            logps_S[batch.of("chosen")], logps_S[batch.of("rejected")],
            batch.ref_chosen_logps_B, batch.ref_rejected_logps_B, method.beta,
        )  # fmt: skip
        rows = batch.whole["rows"]
        preference = losses_B.sum() / rows
        margins_B = (chosen_rewards_B - rejected_rewards_B).detach()
        metrics |= {
            "dpo": preference, "rewards/chosen": chosen_rewards_B.sum() / rows,
            "rewards/rejected": rejected_rewards_B.sum() / rows, "rewards/margins": margins_B.sum() / rows,
            "rewards/accuracies": (margins_B > 0).sum() / rows,
        }  # fmt: skip
    loss = c3po_loss(
        method.preference * preference, metrics.get("sft/out", 0.0), metrics.get("sft/near", 0.0),
        method.out_weight, method.near_weight,
    )  # fmt: skip
    if "sft/chosen" in metrics:
        loss = loss + method.chosen_sft_weight * metrics["sft/chosen"]
    return loss, {name: value.detach() for name, value in metrics.items()}
