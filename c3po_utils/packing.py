"""Sequences laid into one row without padding, in which tokens that follow the same prefix stand only once.

A chosen and a rejected answer share their prompt, and all prompts share a system message; with causal attention
such tokens have the same hidden states in every sequence, so one copy of them passes through the model. Attention
alone sees the sequences whole, padded to a rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

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
    if query.device.type == "cpu" and short and not torch.is_autocast_enabled("cpu"):
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
