"""Linear layers with weights laid out as oneDNN reads them: bfloat16 on a CPU, half the time for a few rows.

`torch.nn.functional.linear` brings a weight into that layout again in every call, which is most of a decoding step's
matrix time when it has few rows. torch's compiler packs weights once, by the same operators as here; it needs a C++
compiler and minutes, this a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

MOST_GIB = 2.0  # of weights, which are in memory twice while they are packed
ROWS = 64  # that the layout is made for; others work, too


class PackedLinears:
    """The packed weights of a model's linear layers; none where there is nothing to gain."""

    def __init__(self, model: PreTrainedModel):
        layers = [module for module in model.modules() if type(module) is nn.Linear]
        size = sum(layer.weight.nbytes for layer in layers) / 2**30
        usable = model.device.type == "cpu" and model.dtype == torch.bfloat16 and size <= MOST_GIB
        usable = usable and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.forwards = {layer: partial(_forward, _packed(layer.weight), layer.bias) for layer in layers * usable}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with them, for the length of a `with`; no gradients."""
        for layer, forward in self.forwards.items():
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self.forwards:
                del layer.forward


@torch.no_grad()
def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


def _forward(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
