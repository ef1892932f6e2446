"""Hidden states: what a model has made of its tokens, without logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from c3po_utils.engine import attention, fast_paths, threads

Pooling = Literal["last", "mean"]
PROMPTS_AT_ONCE = 32


class Reading(NamedTuple):
    """Where a prompt's states are read: after which layer (0: the embeddings, -1: the last, normed), at its last token
    or as the mean over its tokens."""

    layer: int = -1
    pooling: Pooling = "last"


def token_states(
    model: PreTrainedModel, packing: attention.Packing, layers: Sequence[int] = (-1,)
) -> list[torch.Tensor]:
    """The hidden states (T, D) of a packing's tokens after each of the layers, from one forward pass.

    Where the architecture allows, the sequences share one unpadded row (see `attention`); otherwise they are padded
    on the right.
    """
    depth = model.config.get_text_config().num_hidden_layers
    places = [layer % (depth + 1) for layer in layers]
    decoder = _first_layers(model.get_decoder(), max(places))
    inner = len(set(places)) > 1 or (max(places) < depth and decoder is model.get_decoder())
    more = {"use_cache": False, "output_hidden_states": inner}
    shared = attention.enable(model, longest=packing.index_BL.shape[1]) and fast_paths.on("packing", model)
    if shared:
        out = decoder(packing.ids_T[None], position_ids=packing.positions_T[None], packed=packing, **more)
    else:
        out = decoder(packing.ids_T[packing.index_BL], attention_mask=packing.mask_BL, **more)
    found = [out.hidden_states[place] if inner else out.last_hidden_state for place in places]
    return [states[0] if shared else states.flatten(0, 1)[packing.owner_T] for states in found]


def _first_layers(decoder: nn.Module, count: int) -> nn.Module:
    """The decoder up to its `count`-th layer, with its own weights: what is read there needs no pass through the rest.

    The whole decoder where it does not name its layers and last norm as most do (Falcon).
    """
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")) or count == len(decoder.layers):
        return decoder
    first = copy.copy(decoder)
    first._modules = dict(decoder._modules)  # a copied module has its original's dictionary
    first.layers, first.norm = decoder.layers[:count], nn.Identity()  # the norm is the last layer's
    return first


def prompt_states(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], readings: Sequence[Reading] = (Reading(),)
) -> torch.Tensor:
    """The states (readings, N, D), float32 on the CPU, of N prompts given as token ids; the head is not computed.

    A prefix that prompts have in common, such as a system message, is computed once for each group of them.

    Raises:
        IndexError: a layer that the model does not have.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for reading in readings:
        if not -depth - 1 <= reading.layer <= depth:
            raise IndexError(f"layer {reading.layer}: expected one from {-depth - 1} to {depth} of this model's")
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    lanes = threads.streams(model)
    size = max(1, min(PROMPTS_AT_ONCE, -(-len(order) // lanes)))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    layers = list(dict.fromkeys(reading.layer for reading in readings))

    @torch.no_grad()
    def read(group: Sequence[int]) -> torch.Tensor:
        packing = attention.Packing.of([prompts[place] for place in group]).to(model.device)
        states = dict(zip(layers, token_states(model, packing, layers), strict=True))
        return torch.stack([_pooled(states[layer], packing, pooling) for layer, pooling in readings]).float().cpu()

    found = torch.cat(list(threads.side_by_side(read, groups, lanes)), dim=1)
    return found[:, torch.tensor(order).argsort()]


def _pooled(states_TD: torch.Tensor, packing: attention.Packing, pooling: Pooling) -> torch.Tensor:
    """(B, D): each sequence's states at its last token, or their mean."""
    lengths_B = packing.mask_BL.sum(1)
    if pooling == "last":
        return states_TD[packing.index_BL.gather(1, lengths_B[:, None] - 1)[:, 0]]
    weights_BL = packing.mask_BL / lengths_B[:, None]
    return (states_TD[packing.index_BL].float() * weights_BL[..., None]).sum(1)
