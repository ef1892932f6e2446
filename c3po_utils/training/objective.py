"""From rows of token ids to the objective's value: batches, their forward pass, and the sum of the terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from c3po_utils.engine import Packing, hidden_states, log_probs
from c3po_utils.training.loss import c3po_loss, dpo_loss, kl_loss, sequence_logps, sft_loss
from c3po_utils.training.methods import SEGMENTS, Method

KEPT = ("near_scope", "out_of_scope")  # the segments on which the model is to stay what it was


@dataclass(frozen=True)
class Batch:
    """The sequences of one forward pass, segment after segment: S of them, with N completion tokens.

    `counts`: sequences of each segment, in the order in which they stand; `whole`: completion tokens of each segment,
    and rows, of the whole optimizer batch that this pass is a part of.
    """

    packing: Packing
    source_N: torch.Tensor  # position in the packing that predicts the token
    labels_N: torch.Tensor
    sequence_N: torch.Tensor
    counts: dict[str, int]
    whole: dict[str, int]
    ref_chosen_logps_B: torch.Tensor | None = None
    ref_rejected_logps_B: torch.Tensor | None = None
    reference: Batch | None = None  # the kept segments alone, for pi_0's pass

    def to(self, device: torch.device | str) -> Batch:
        movable = (torch.Tensor, Packing, Batch)
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, movable)}
        return replace(self, **moved)

    def of(self, segment: str) -> slice:
        """Where a segment's sequences stand among the S."""
        names = list(self.counts)
        start = sum(self.counts[name] for name in names[: names.index(segment)])
        return slice(start, start + self.counts[segment])

    def tokens_of(self, segment: str) -> torch.Tensor:
        """Which of the N completion tokens are a segment's, (N,) of booleans."""
        part = self.of(segment)
        return (self.sequence_N >= part.start) & (self.sequence_N < part.stop)


def collate(
    rows: Sequence[dict[str, Any]],
    tokens_per_pass: int | None = None,
    *,
    at_once: int = 1,
    share: bool = True,
    reference: bool = False,
) -> list[Batch]:
    """The forward passes of one optimizer batch; their losses add up to that of a single pass.

    Args:
        rows: token rows (see data.py), all with the same segments.
        tokens_per_pass: about how many tokens may be in the model at one time; None for any number.
        at_once: passes that run at one time, and share these tokens.
        share: let sequences share their common prefixes (see attention.Packing).
        reference: also lay out the kept segments alone.
    """
    names = [name for name in SEGMENTS if f"{name}_ids" in rows[0]]
    kept = [name for name in names if name in KEPT]
    whole = {name: sum(len(row[f"{name}_ids"]) for row in rows) for name in names} | {"rows": len(rows)}
    return [
        replace(
            _lay_out(group, names, whole, share),
            reference=_lay_out(group, kept, whole, share) if reference and kept else None,
        )
        for group in _groups(rows, names, tokens_per_pass, at_once)
    ]


def _groups(rows: Sequence[dict[str, Any]], names: Sequence[str], tokens: int | None, at_once: int) -> list[list[dict]]:
    """Rows in order, in groups of one or more and about equal size, `at_once` of which have some `tokens` tokens."""
    lengths = [sum(len(row[f"{name}_prompt_ids"]) + len(row[f"{name}_ids"]) for name in names) for row in rows]
    rounds = -(-sum(lengths) // tokens) if tokens else 1
    count = min(len(rows), rounds * at_once)
    groups: list[list[dict]] = [[] for _ in range(count)]
    before = 0
    for row, length in zip(rows, lengths, strict=True):
        groups[min(count - 1, count * (before + length // 2) // sum(lengths))].append(row)
        before += length
    return [group for group in groups if group]


def _lay_out(rows: Sequence[dict[str, Any]], names: Sequence[str], whole: dict[str, int], share: bool) -> Batch:
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
    """The last hidden states (N, D) that predict the completion tokens, from one forward pass over all segments."""
    hidden_ND = hidden_states.token_states(model, batch.packing)[0].index_select(0, batch.source_N)
    return hidden_ND.to(head_weight(model).dtype)


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
            f"{config.model_type}: its head uses {extras or 'a bias'}, which the log-probabilities here do not know"
        )
    return head.weight


def completion_logps(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi of every completion token, (N,), float32; the head sees completion positions only."""
    return log_probs.token_logps(completion_states(model, batch), head_weight(model), batch.labels_N)


def objective(
    method: Method,
    logps_N: torch.Tensor,
    batch: Batch,
    *,
    kl_N: torch.Tensor | None = None,
    preference: Callable[[torch.Tensor, Batch], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What one pass adds to its optimizer batch's loss, and to that batch's terms and rewards for the curves.

    Args:
        logps_N: log pi of every completion token.
        kl_N: KL(pi_0 || pi) at every completion token of the kept segments (0 elsewhere), where the method asks for it.
        preference: another loss of preference than DPO's, as the mean over the pass's pairs, from `logps_N`.
    """
    S, rows = sum(batch.counts.values()), batch.whole["rows"]
    metrics, kept = {}, dict.fromkeys(KEPT, 0.0)
    for segment in batch.counts:
        tokens_N = batch.tokens_of(segment)
        if segment != "rejected":
            share = tokens_N.sum() / batch.whole[segment]
            metrics[f"sft/{segment}"] = kept[segment] = sft_loss(logps_N[tokens_N]) * share
        if kl_N is not None and segment in KEPT:
            kl_S = kl_loss(kl_N, batch.sequence_N, S, summed=method.kl_summed, squared=method.kl_squared)
            metrics[f"kl/{segment}"] = kl_S[batch.of(segment)].sum() / rows
            kept[segment] = (1 - method.kl) * kept[segment] + method.kl * metrics[f"kl/{segment}"]
    pairs = logps_N.new_zeros(())
    if method.preference:
        logps_S = sequence_logps(logps_N, batch.sequence_N, S)
        losses_B, chosen_B, rejected_B = dpo_loss(
            logps_S[batch.of("chosen")], logps_S[batch.of("rejected")],
            batch.ref_chosen_logps_B, batch.ref_rejected_logps_B, method.beta,
        )  # fmt: skip
        pairs = losses_B.sum() / rows if preference is None else preference(logps_N, batch) * len(losses_B) / rows
        metrics |= {
            "dpo" if preference is None else "preference": pairs,
            "rewards/chosen": chosen_B.sum() / rows,
            "rewards/rejected": rejected_B.sum() / rows,
            "rewards/margins": (chosen_B - rejected_B).sum() / rows,
            "rewards/accuracies": (chosen_B > rejected_B).sum() / rows,
        }
    loss = c3po_loss(
        method.preference * pairs, kept["out_of_scope"], kept["near_scope"], method.out_weight, method.near_weight
    )
    if method.chosen_sft_weight:
        loss = loss + method.chosen_sft_weight * metrics["sft/chosen"]
    return loss, {name: value.detach() for name, value in metrics.items()}
