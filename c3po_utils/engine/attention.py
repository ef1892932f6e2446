"""Attention for sequences that share a pass without padding it, as a transformers attention implementation.

`enable(model)` selects it. It is plain SDPA until a forward pass brings one of two keyword arguments along:

- `slots` (a `SlotStep`): decoding with a key-value cache in which each row has its own length;
- `packed` (a `Packing`): training on sequences laid into one row, in which tokens that follow the same prefix stand
  once. A chosen and a rejected answer share their prompt, and all prompts share a system message; with causal attention
  such tokens have the same hidden states in every sequence. Attention alone sees the sequences whole, in a rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from c3po_utils.engine import fast_paths

MULTIPLE = 16  # of the rectangle's width: a sequence's sums then do not depend on the lengths of others, bit for bit
LONGEST_EAGER = 512  # tokens; beyond, the attention weights kept for the backward pass cost too much


@dataclass(frozen=True)
class Packing:
    """Where the T distinct tokens of B sequences of at most L tokens stand in a (B, L) rectangle.

    `ids_T`: the tokens; `index_BL`: each sequence's tokens as places in T, 0 where padded; `mask_BL`: 1 for real
    tokens; `owner_T`: the place in the flattened rectangle that computes a token's attention; `positions_T`: the
    token's position in its sequence.
    """

    ids_T: torch.Tensor
    index_BL: torch.Tensor
    mask_BL: torch.Tensor
    owner_T: torch.Tensor
    positions_T: torch.Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], *, share: bool = True) -> Packing:
        """Lay the sequences out, with common prefixes shared unless `share` is false."""
        length = -(-max(map(len, sequences)) // MULTIPLE) * MULTIPLE
        places: dict[tuple, int] = {}  # (place of the token before, token) -> place
        index = torch.zeros(len(sequences), length, dtype=torch.long)
        mask = torch.zeros(len(sequences), length, dtype=torch.long)
        ids, owner, positions = [], [], []
        for row, sequence in enumerate(sequences):
            place, path = -1 if share else -1 - row, []
            for column, token in enumerate(sequence):
                place = places.setdefault((place, token), len(ids))
                if place == len(ids):
                    ids.append(token)
                    owner.append(row * length + column)
                    positions.append(column)
                path.append(place)
            index[row, : len(path)], mask[row, : len(path)] = torch.tensor(path), 1
        return cls(torch.tensor(ids), index, mask, torch.tensor(owner), torch.tensor(positions))

    def to(self, device: torch.device | str) -> Packing:
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class _EagerAttention(torch.autograd.Function):
    """Causal attention over a packing with plain matrix products.

    Several times faster than the CPU's flash attention for short sequences, whose backward pass is slow in bfloat16.
    query (T, heads, dim), key and value (T, groups, dim), as many heads for each group; returns (T, heads, dim).
    """

    @staticmethod
    def forward(ctx, query, key, value, scaling, packing):
        (B, L), heads, groups = packing.index_BL.shape, query.shape[1], key.shape[1]
        q, k, v = (_unpack(x, groups, packing) for x in (query, key, value))
        future = torch.full((L, L), -torch.inf, dtype=q.dtype, device=q.device).triu_(1).repeat(heads // groups, 1)
        weights = torch.baddbmm(future, q, k.mT, alpha=scaling).softmax(-1)
        ctx.save_for_backward(query, key, value, weights)  # the packed ones are fewer
        ctx.scaling, ctx.packing, ctx.groups = scaling, packing, groups
        out = (weights @ v).view(B, groups, -1, L, q.shape[-1]).permute(0, 3, 1, 2, 4).reshape(B * L, heads, -1)
        return out.index_select(0, packing.owner_T)

    @staticmethod
    def backward(ctx, grad):
        *packed, weights = ctx.saved_tensors
        q, k, v = (_unpack(x, ctx.groups, ctx.packing) for x in packed)
        (B, L), T = ctx.packing.index_BL.shape, len(ctx.packing.owner_T)
        whole = grad.new_zeros(B * L, *grad.shape[1:]).index_copy_(0, ctx.packing.owner_T, grad)
        g = _fold(whole, ctx.groups, B, L)
        grad_weights = torch.ops.aten._softmax_backward_data(g @ v.mT, weights, -1, weights.dtype).mul_(ctx.scaling)
        grads = grad_weights @ k, grad_weights.mT @ q, weights.mT @ g

        def pack(x: torch.Tensor) -> torch.Tensor:
            x = x.view(B, ctx.groups, -1, L, x.shape[-1]).permute(0, 3, 1, 2, 4).reshape(B * L, -1, x.shape[-1])
            return x.new_zeros(T, *x.shape[1:]).index_add_(0, ctx.packing.index_BL.flatten(), x)

        return *map(pack, grads), None, None


def _fold(x: torch.Tensor, groups: int, B: int, L: int) -> torch.Tensor:
    """(B * L, heads, dim) -> (B * groups, heads of a group * L, dim)."""
    return x.view(B, L, groups, -1, x.shape[-1]).permute(0, 2, 3, 1, 4).reshape(B * groups, -1, x.shape[-1])


def _unpack(x: torch.Tensor, groups: int, packing: Packing) -> torch.Tensor:
    """(T, heads, dim) -> (B * groups, heads of a group * L, dim)."""
    return _fold(x.index_select(0, packing.index_BL.flatten()), groups, *packing.index_BL.shape)


def packed_attention(query, key, value, scaling: float, packing: Packing, dropout: float) -> torch.Tensor:
    """Causal attention within each sequence; query (1, heads, T, dim), key and value (1, groups, T, dim).

    Returns (1, T, heads, dim).
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    short = packing.index_BL.shape[1] <= LONGEST_EAGER and not dropout
    eager = query.device.type == "cpu" and short and not torch.is_autocast_enabled("cpu")
    if eager and fast_paths.on("eager_attention", query):
        return _EagerAttention.apply(query, key, value, scaling, packing)[None]
    index = packing.index_BL.flatten()
    query, key, value = (
        x.index_select(0, index).view(*packing.index_BL.shape, *x.shape[1:]).transpose(1, 2)
        for x in (query, key, value)
    )
    gqa = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=gqa
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, packing.owner_T)[None]


NAME = "c3po"


@dataclass
class SlotStep:
    """One forward pass over some slots of a key-value cache.

    `keys`, `values`: per layer (slots, kv heads, length, head dim); `rows_N`: the slots that take part, None
    for all; `positions_NT`: where the pass's tokens go; `span`: how many cached positions they may look at.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    rows_N: torch.Tensor | None
    positions_NT: torch.Tensor
    span: int

    def __post_init__(self) -> None:
        rows = torch.arange(len(self.positions_NT), device=self.positions_NT.device)
        self._rows_N11 = (rows if self.rows_N is None else self.rows_N)[:, None, None]
        cache, device = self.keys[0], self.positions_NT.device
        self._heads_1K1 = torch.arange(cache.shape[1], device=device)[None, :, None]
        self.mask_N1TS = (torch.arange(self.span, device=device) <= self.positions_NT[..., None])[:, None]
        bias_NS = torch.zeros((), dtype=cache.dtype, device=device).where(self.mask_N1TS[:, 0, 0], -torch.inf)
        self.bias_R1S = bias_NS.repeat_interleave(cache.shape[1], 0)[:, None]  # R: slots x kv heads; first token's

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values (N, kv heads, T, head dim); returns all that the rows may see, likewise."""
        seen = []
        for cache, new in ((self.keys[layer], key), (self.values[layer], value)):
            cache[self._rows_N11, self._heads_1K1, self.positions_NT[:, None]] = new
            seen.append((cache[: len(new)] if self.rows_N is None else cache[self.rows_N])[:, :, : self.span])
        return seen[0], seen[1]


def slot_attention(module, query, key, value, scaling, step: SlotStep) -> torch.Tensor:
    key, value = step.store(module.layer_idx, key, value)
    n, heads, t, dim = query.shape
    group = heads // key.shape[1]
    if t == 1:
        # The heads that share keys become rows of one query, and two matrix products over (slot, kv head) do it:
        # on a CPU six times faster than SDPA, whose rows of one token are too small for its tiles.
        key, value = key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.baddbmm(step.bias_R1S, query.reshape(-1, group, dim), key.transpose(1, 2), alpha=scaling)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return torch.bmm(weights, value).view(n, 1, heads, dim)
    out = scaled_dot_product_attention(query, key, value, step.mask_N1TS, scale=scaling, enable_gqa=group > 1)
    return out.transpose(1, 2)


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0,
    slots: SlotStep | None = None, packed: Packing | None = None, **kwargs,
):  # fmt: skip
    """transformers' attention interface: query (B, heads, T, dim), key and value (B, kv heads, T, dim)."""
    if slots is not None:
        return slot_attention(module, query, key, value, scaling, slots), None
    if packed is not None:
        return packed_attention(query, key, value, scaling, packed, dropout), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable(model: PreTrainedModel, longest: int | None = None) -> bool:
    """Select this attention where the architecture allows it: full causal, through transformers' interface.

    A sliding window is full attention to sequences of at most `longest` tokens, if that is no more than the window.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    seen_whole = not window or (longest is not None and longest <= window)
    known = {"full_attention", "sliding_attention"} if seen_whole else {"full_attention"}
    layers = set(getattr(config, "layer_types", None) or [])
    plain = layers <= known and (seen_whole or bool(layers)) and not getattr(config, "attn_logit_softcapping", None)
    usable = bool(getattr(model, "_supports_attention_backend", False)) and plain
    if usable and config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    return usable
