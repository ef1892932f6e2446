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
    decoder, recorders = _first_layers(model.get_decoder(), set(places), depth)
    library = decoder is model.get_decoder() and set(places) != {depth}
    more = {"use_cache": False, "output_hidden_states": library}
    shared = attention.enable(model, longest=packing.index_BL.shape[1]) and fast_paths.on("packing", model)
    if shared:
        out = decoder(packing.ids_T[None], position_ids=packing.positions_T[None], packed=packing, **more)
    else:
        out = decoder(packing.ids_T[packing.index_BL], attention_mask=packing.mask_BL, **more)

    def after(place: int) -> torch.Tensor:
        if library:
            return out.hidden_states[place]
        if place == max(places):
            return out.last_hidden_state
        return recorders[place - 1].returned if place else recorders[0].given

    return [states[0] if shared else states.flatten(0, 1)[packing.owner_T] for states in map(after, places)]


class _Recorder(nn.Module):
    """A decoder layer that keeps what it was given and returned; in all else the layer.

    In place of transformers' `output_hidden_states`, whose hooks stay on a layer, once more for each copy of a decoder
    that it is in: later passes then report some layers several times.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.given = self.returned = None

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)

    def forward(self, states: torch.Tensor, *args, **kwargs):
        out = self.layer(states, *args, **kwargs)
        self.given, self.returned = states, out[0] if isinstance(out, tuple) else out
        return out


def _first_layers(decoder: nn.Module, places: set[int], depth: int) -> tuple[nn.Module, dict[int, _Recorder]]:
    """The decoder up to the last layer that is read, with its own weights, and by layer what records the others.

    What is read early needs no pass through the rest. The whole decoder, without a recorder, where it does not name its
    layers and last norm as most do (Falcon): there transformers says what they are.
    """
    top = max(places)
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")) or places == {depth}:
        return decoder, {}
    recorders = {place: _Recorder(decoder.layers[place]) for place in {max(0, place - 1) for place in places - {top}}}
    first = copy.copy(decoder)
    first._modules = dict(decoder._modules)  # a copied module has its original's dictionary
    first.layers = nn.ModuleList(recorders.get(place, decoder.layers[place]) for place in range(top))
    if top < depth:
        first.norm = nn.Identity()  # the norm is the last layer's
    return first, recorders


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
