"""Decoding: how a token is drawn, and the loops that fill slots of a key-value cache, or batches, with rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor

from c3po_utils.chat.types import Outcome, Request, Sampling
from c3po_utils.engine import attention, models
from c3po_utils.runs import files

if TYPE_CHECKING:
    from c3po_utils.chat.local import LocalChat

TIES = 64  # candidates beyond top_k that are looked at, so that ties with the k-th logit stay in, as in transformers
PREFILL_TOKENS = 4096  # at most this many padded prompt tokens in one prefill pass
MIN_SHARED_PREFIX = 8
NO_NUMBERS = "the model's logits are not finite numbers"
GROWTH = 32  # positions by which the cache grows: steps use all that it has, as parts of it would have to be copied


def filter_logits(logits_BV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature, then top-k, then top-p, in one pass over the few candidates that top-k leaves.

    Returns probabilities and token ids, both (B, candidates), most probable first. Same distribution as
    transformers' warpers in that order: ties with the k-th logit are kept; at least one token survives.
    """
    vocabulary = logits_BV.shape[-1]
    wanted = min(sampling.top_k or vocabulary, vocabulary)
    top_BC, ids_BC = logits_BV.topk(min(wanted + TIES, vocabulary), dim=-1)
    top_BC = top_BC.float() / sampling.temperature
    top_BC = top_BC.masked_fill(top_BC < top_BC[:, wanted - 1 : wanted], -torch.inf)
    probs_BC = top_BC.softmax(-1)
    before_BC = probs_BC.cumsum(-1) - probs_BC
    probs_BC = probs_BC.masked_fill(before_BC >= sampling.top_p, 0.0)
    return probs_BC / probs_BC.sum(-1, keepdim=True), ids_BC


def finite(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits with zeros in the rows that hold some that are no finite numbers, and which rows these are, (B,)."""
    bad_B = ~logits_BV.amax(-1).isfinite()  # nan wherever one of a row is
    return (logits_BV.masked_fill(bad_B[:, None], 0.0) if bad_B.any() else logits_BV), bad_B


def pick(logits_BV: torch.Tensor, sampling: Sampling, uniform_B: torch.Tensor) -> torch.Tensor:
    """One token a row, (B,): the arg max at temperature 0, else by inverting the distribution at `uniform_B`."""
    if sampling.temperature == 0:
        return logits_BV.max(-1).indices  # the first of equal ones, as argmax, which takes a CPU 4 times as long
    probs_BC, ids_BC = filter_logits(logits_BV, sampling)
    choice_B1 = (probs_BC.cumsum(-1) <= uniform_B[:, None]).sum(-1, keepdim=True)
    last_B1 = (probs_BC > 0).sum(-1, keepdim=True) - 1
    return ids_BC.gather(-1, choice_B1.minimum(last_B1))[:, 0]


def uniforms(request: Request, sampling: Sampling) -> np.ndarray:
    """The request's own random numbers, one a token: they depend on seed, id and replicate, never on neighbours."""
    key = int(files.content_hash([sampling.seed, request.id, request.replicate])[:16], 16)
    return np.random.Generator(np.random.Philox(key=key)).random(sampling.max_new_tokens, dtype=np.float32)


Follow = Callable[[str, str], None]  # told a request's id and its answer so far


@dataclass
class Row:
    """One request on its way: its prompt's tokens, and the answer's as they come, which `follow` is told."""

    request: Request
    prompt: list[int]
    uniform: np.ndarray
    follow: Follow | None = None
    answer: list[int] = field(default_factory=list)


class SlotLoop:
    """The decoding loop over a key-value cache of S slots."""

    def __init__(self, chat: LocalChat, rows: list[Row], sampling: Sampling, slots: int):
        self.chat, self.sampling, self.device, self.slots = chat, sampling, chat.model.device, slots
        # Same-length prompts waste no padding in prefill; equal prompts stand together and are computed once.
        self.pending = sorted(rows, key=lambda row: (len(row.prompt), row.prompt), reverse=True)
        self.length = chat.length(rows, sampling)
        self.rows: list[Row | None] = [None] * self.slots
        self.lengths_S = torch.zeros(self.slots, dtype=torch.long)
        self.inputs_S = torch.zeros(self.slots, dtype=torch.long)
        self.keys, self.values = ([self._zeros(0)] * chat.cache_shape()[0] for _ in range(2))
        self.prefix = self._shared_prefix(rows)

    def _zeros(self, length: int) -> torch.Tensor:
        _, heads, dim = self.chat.cache_shape()
        return torch.zeros(self.slots, heads, length, dim, dtype=self.chat.model.dtype, device=self.device)

    def _room_for(self, length: int) -> int:
        """Let the cache have `length` positions or some more; returns how many."""
        room = self.keys[0].shape[2]
        if length > room:
            room, old = min(self.length, -(-length // GROWTH) * GROWTH), room
            for caches in (self.keys, self.values):
                for layer, cache in enumerate(caches):  # one by one: no second copy of the whole
                    caches[layer] = self._zeros(room)
                    caches[layer][:, :, :old] = cache[: self.slots]
        return room

    def _shared_prefix(self, rows: list[Row]) -> int:
        """Length of the prefix common to all prompts; the last token of a prompt never belongs to it."""
        if len(rows) < 2:
            return 0
        first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
        longest = min(min(len(row.prompt) for row in rows) - 1, len(first), len(last))
        common = next((i for i in range(longest) if first[i] != last[i]), longest)
        return common if common >= MIN_SHARED_PREFIX else 0

    @torch.inference_mode()
    def run(self) -> Iterator[Outcome]:
        self._store_prefix()
        while self.pending or any(self.rows):
            free = [slot for slot, row in enumerate(self.rows) if row is None]
            if self.pending and len(free) >= min(len(self.pending), max(1, self.slots // 16)):
                self._admit(free)
            elif not self.pending and len(free) >= max(1, self.slots // 16):
                self._compact()
            yield from self._step()

    def _forward(self, rows_N: torch.Tensor | None, ids_NT: torch.Tensor, starts_N: torch.Tensor, head: bool):
        positions_NT = starts_N[:, None] + torch.arange(ids_NT.shape[1])
        span = int(positions_NT.max()) + 1
        room = self._room_for(span)
        positions_NT = positions_NT.to(self.device)
        rows_N = None if rows_N is None else rows_N.to(self.device)
        step = attention.SlotStep(self.keys, self.values, rows_N, positions_NT, room if rows_N is None else span)
        model = self.chat.model if head else self.chat.model.get_decoder()
        return model(input_ids=ids_NT.to(self.device), position_ids=positions_NT, use_cache=False, slots=step)

    def _store_prefix(self) -> None:
        if self.prefix:
            ids = torch.tensor([self.pending[0].prompt[: self.prefix]])
            self._forward(torch.tensor([0]), ids, torch.tensor([0]), head=False)
            self.prefix_kv = [cache[0, :, : self.prefix].clone() for cache in (*self.keys, *self.values)]

    def _admit(self, free: list[int]) -> None:
        """Fill free slots with waiting prompts; each distinct prompt is computed once, but for its last token."""
        batch = [self.pending.pop() for _ in range(min(len(free), len(self.pending)))]
        admitted = list(zip(free, batch, strict=False))
        groups = [list(group) for _, group in groupby(admitted, key=lambda pair: pair[1].prompt)]
        for slot, row in admitted:
            self.rows[slot] = row
            self.lengths_S[slot] = len(row.prompt) - 1
            self.inputs_S[slot] = row.prompt[-1]
        width = max(len(row.prompt) for row in batch)
        share = max(1, PREFILL_TOKENS // width)
        for start in range(0, len(groups), share):
            self._prefill([group[0] for group in groups[start : start + share]])
        for (source, row), *copies in groups:
            for cache in (*self.keys, *self.values) if copies else ():
                # A list on the right, too: it copies, where torch would refuse a view that fills the cache's length.
                cache[[slot for slot, _ in copies], :, : len(row.prompt)] = cache[[source], :, : len(row.prompt)]

    def _prefill(self, admitted: list[tuple[int, Row]]) -> None:
        slots_N = torch.tensor([slot for slot, _ in admitted])
        if self.prefix:
            for cache, kv in zip((*self.keys, *self.values), self.prefix_kv, strict=True):
                cache[slots_N, :, : self.prefix] = kv
        bodies = [row.prompt[self.prefix : -1] for _, row in admitted]
        width = max(map(len, bodies))
        if width:
            # Right padding is harmless: no real token looks at it, and decoding overwrites it.
            ids_NT = torch.tensor([body + [0] * (width - len(body)) for body in bodies])
            self._forward(slots_N, ids_NT, torch.full((len(bodies),), self.prefix), head=False)

    def _step(self) -> Iterator[Outcome]:
        logits_SV = self._forward(None, self.inputs_S[:, None], self.lengths_S, head=True).logits[:, -1]
        uniform_S = torch.tensor([row.uniform[len(row.answer)] if row else 0.0 for row in self.rows])
        logits_SV, bad_S = finite(logits_SV)
        tokens_S = pick(logits_SV, self.sampling, uniform_S.to(self.device)).cpu()
        self.inputs_S = tokens_S
        for slot, (row, token, bad) in enumerate(zip(self.rows, tokens_S.tolist(), bad_S.tolist(), strict=True)):
            if row is None:
                self.lengths_S[slot] = 0
                continue
            self.lengths_S[slot] += 1
            row.answer.append(token)
            outcome = self.chat.outcome(row, "failed", "", NO_NUMBERS) if bad else self.chat.finish(row, self.sampling)
            if outcome:
                self.rows[slot] = None
                yield outcome

    def _compact(self) -> None:
        """Near the end, move the rows still at work together, so that passes shrink with them."""
        keep = torch.tensor([slot for slot, row in enumerate(self.rows) if row is not None])
        self.rows = [self.rows[slot] for slot in keep.tolist()]
        self.slots = len(keep)
        self.lengths_S, self.inputs_S = self.lengths_S[keep], self.inputs_S[keep]
        span = int(self.lengths_S.max()) + 1
        for cache in (*self.keys, *self.values):
            cache[: self.slots, :, :span] = cache[keep.to(self.device), :, :span]


class OwnDraws(LogitsProcessor):
    """Has `generate`, told to be greedy, take the tokens that `pick` draws by each row's own uniforms.

    `bad_at`: by row, the first step whose logits were no finite numbers; None where all were.
    """

    def __init__(self, rows: list[Row], sampling: Sampling, width: int):
        self.sampling, self.width = sampling, width
        self.uniform_BT = torch.tensor(np.stack([row.uniform for row in rows]))
        self.bad_at: list[int | None] = [None] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        logits_BV, bad_B = finite(scores)
        for place in bad_B.nonzero()[:, 0].tolist():
            self.bad_at[place] = step if self.bad_at[place] is None else self.bad_at[place]
        tokens_B = pick(logits_BV, self.sampling, self.uniform_BT[:, step].to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_B[:, None], 0.0)


class BatchLoop:
    """transformers' `generate` in batches, for architectures that the slots do not serve (Falcon, sliding windows)."""

    def __init__(self, chat: LocalChat, rows: list[Row], sampling: Sampling, size: int = 32):
        self.chat, self.sampling = chat, sampling
        ordered = sorted(rows, key=lambda row: len(row.prompt))
        # A prompt that leaves less room than an answer may take would cut its neighbours' answers, too.
        whole = [row for row in ordered if len(row.prompt) + sampling.max_new_tokens <= chat.context]
        self.batches = [whole[start : start + size] for start in range(0, len(whole), size)]
        self.batches += [[row] for row in ordered[len(whole) :]]

    @torch.inference_mode()
    def run(self) -> Iterator[Outcome]:
        for batch in self.batches:
            for row, answer, bad_at in zip(batch, *self._generate(batch), strict=True):
                yield self._replay(row, answer, bad_at)

    def _generate(self, batch: list[Row]) -> tuple[list[list[int]], list[int | None]]:
        """The rows' answers, and at which token each met logits that are no numbers."""
        chat, width = self.chat, max(len(row.prompt) for row in batch)
        pad = chat.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in batch])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch])
        draws = OwnDraws(batch, self.sampling, width)
        with models.plain_generation(chat.model):
            out = chat.model.generate(
                ids.to(chat.model.device), attention_mask=mask.to(chat.model.device), pad_token_id=pad,
                max_new_tokens=min(self.sampling.max_new_tokens, chat.context - width), use_cache=True,
                do_sample=False, logits_processor=[draws],
            )  # fmt: skip
        return out[:, width:].tolist(), draws.bad_at

    def _replay(self, row: Row, answer: list[int], bad_at: int | None) -> Outcome:
        for step, token in enumerate(answer):
            row.answer.append(token)
            if step == bad_at:
                return self.chat.outcome(row, "failed", "", NO_NUMBERS)
            outcome = self.chat.finish(row, self.sampling)
            if outcome:
                return outcome
        return self.chat.outcome(row, "truncated", self.chat.decode(row.answer))
