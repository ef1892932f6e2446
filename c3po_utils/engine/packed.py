"""Cheaper forward passes of a model's layers, swapped in while it answers: for inference in bfloat16 on a CPU.

Weights are laid out as oneDNN reads them, once: `torch.nn.functional.linear` does so in every call, which is most of a
decoding step's matrix time when it has few rows; torch's compiler packs by the same operators, but needs a C++ compiler
and minutes. Decoder layers of Llama's structure (Mistral, Qwen 2 and others have the same) run in 20 operations
instead of 45, where their output proves to be the same on a sample. The model keeps its parameters and modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

from c3po_utils.engine import attention, fast_paths, kernels
from c3po_utils.engine.linear import agree, sample

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
NORMS = ("input_layernorm", "post_attention_layernorm")
MOST_GIB = 2.0  # of weights, which are in memory twice while they are packed
ROWS = 64  # that the layout is made for; others work, too

Weights = tuple[torch.Tensor, torch.Tensor | None]  # packed, and the bias


class PackedLayers:
    """The forward passes of a model's layers with packed weights; none where there is nothing to gain."""

    def __init__(self, model: PreTrainedModel):
        linears = [module for module in model.modules() if type(module) is nn.Linear]
        size = sum(layer.weight.nbytes for layer in linears) / 2**30
        self.forwards: dict[nn.Module, Callable[..., torch.Tensor]] = {}
        usable = model.device.type == "cpu" and model.dtype == torch.bfloat16 and size <= MOST_GIB
        if not (usable and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            return
        if (decoder := dict(_decoder_layers(model))) and fast_paths.on("decoder_layers", model):
            self.forwards |= decoder
        if fast_paths.on("packed_linears", model):
            inside = {part for layer in self.forwards for part in layer.modules()}
            self.forwards |= {one: partial(product, packed(one)) for one in linears if one not in inside}

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
def packed(*layers: nn.Linear) -> Weights:
    """The weights of linear layers with the same input, one below the other, laid out as oneDNN reads them."""
    weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in layers])
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias


def product(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """x W' + b."""
    return torch.ops.mkldnn._linear_pointwise(x, *weights, "none", [], "")


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embeddings. By multiplying and adding alone, as are residuals: what torch and oneDNN fuse of these gave a
    row's results that depended on the rows beside it."""
    half = x.shape[-1] // 2
    return (x * cos).add_(torch.cat([-x[..., half:], x[..., :half]], -1).mul_(sin))


def _normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return kernels.RMSNorm.apply(x, norm.weight, norm.variance_epsilon)


def _is_llamas(layer: nn.Module) -> bool:
    """Whether a layer has the parts of one of Llama's, and no others with parameters."""
    parts = dict(layer.named_modules())
    if not all(type(parts.get(name)) is nn.Linear for name in LINEAR):
        return False
    if not all(hasattr(parts.get(name), "variance_epsilon") for name in NORMS):
        return False
    named = (hasattr(layer.self_attn, name) for name in ("head_dim", "scaling", "layer_idx"))
    return all(named) and {name.rpartition(".")[0] for name, _ in layer.named_parameters()} == {*LINEAR, *NORMS}


def _forward(layer: nn.Module) -> Callable[..., torch.Tensor]:
    """The layer's forward pass: its own, unless it is given slots."""
    attn, mlp, original = layer.self_attn, layer.mlp, layer.forward
    qkv, out = packed(attn.q_proj, attn.k_proj, attn.v_proj), packed(attn.o_proj)
    gate_up, down = packed(mlp.gate_proj, mlp.up_proj), packed(mlp.down_proj)
    before, after = (partial(_normed, getattr(layer, name)) for name in NORMS)
    heads, groups = (part.out_features // attn.head_dim for part in (attn.q_proj, attn.k_proj))
    inner = mlp.gate_proj.out_features

    def forward(hidden_states, *args, position_embeddings=None, slots=None, **kwargs):
        if slots is None:
            return original(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        x, (cos, sin) = hidden_states, position_embeddings
        heads_NTHD = product(qkv, before(x)).view(*x.shape[:2], -1, attn.head_dim)
        turned = _turned(heads_NTHD[:, :, : heads + groups], cos[:, :, None], sin[:, :, None])
        q, k, v = turned[:, :, :heads], turned[:, :, heads:], heads_NTHD[:, :, heads + groups :]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        seen = attention.slot_attention(attn, q, k, v, attn.scaling, slots)
        x = product(out, seen.reshape(*x.shape[:2], -1)).add_(x)
        wide = product(gate_up, after(x))
        return product(down, silu(wide[..., :inner]).mul_(wide[..., inner:])).add_(x)

    return forward


@torch.inference_mode()
def _proves(layer: nn.Module, forward: Callable[..., torch.Tensor]) -> bool:
    """Whether it gives the layer's own output, and cache, for two slots of different lengths."""
    attn, like = layer.self_attn, layer.self_attn.k_proj.weight
    x = sample(2, 1, attn.q_proj.in_features, like=like)
    angle = sample(2, 1, attn.head_dim // 2, like=like).repeat(1, 1, 2)
    found = []
    for run in (forward, layer.forward):
        caches = [sample(2, len(like) // attn.head_dim, 4, attn.head_dim, like=like) for _ in range(2)]
        step = attention.SlotStep(
            *([cache] * (attn.layer_idx + 1) for cache in caches), None, torch.tensor([[3], [1]]), 4
        )
        try:
            out = run(x, attention_mask=None, position_embeddings=(angle.cos(), angle.sin()), slots=step)
        except (RuntimeError, TypeError, ValueError):  # it wants other arguments, or shapes: another kind of layer
            return False
        found.append([out, *caches])
    return all(agree(ours, theirs) for ours, theirs in zip(*found, strict=True))


def _decoder_layers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, Callable[..., torch.Tensor]]]:
    """Every decoder layer that is of Llama's kind, with its forward pass in few operations."""
    for layer in getattr(model.get_decoder(), "layers", ()):
        if _is_llamas(layer) and _proves(layer, forward := _forward(layer)):
            yield layer, forward
