"""Attention for sequences that share a batch without padding it, as a transformers attention implementation.

`enable(model)` selects it. It is plain SDPA until a forward pass brings one of two keyword arguments along:

- `slots` (a `SlotStep`): decoding with a key-value cache in which each row has its own length;
- `packed` (a `Packing`, see packing.py): training on sequences laid into one row without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from c3po_utils.packing import Packing, packed_attention

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


def _slot_attention(module, query, key, value, scaling, step: SlotStep) -> torch.Tensor:
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
        return _slot_attention(module, query, key, value, scaling, slots), None
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
