"""Cheaper forward passes of a model's layers, swapped in for a while, to train LoRA.

peft's and transformers' modules keep their parameters, names and files; only forward methods are replaced. `fused`
takes the kernels of kernels.py where a module's structure is known and its output proves to be the same on a sample;
all others (DoRA, quantized layers, other activations) run as they are.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.nn.functional import silu

from c3po_utils.engine import fast_paths, kernels


def _lora_arguments(module: nn.Module) -> Callable | None:
    """For a plain LoRA on a frozen nn.Linear with one active adapter: what the kernels need besides the input.

    The function that is returned gives None where the module is to run as it is.
    """
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear:
        return None
    if len(module.active_adapters) != 1:
        return None
    base, name = module.base_layer, module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.merged or module.disable_adapters:
        return None
    if module.lora_B[name].bias is not None or _trained(base.weight):
        return None
    A, B, scaling = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    dropout = getattr(module.lora_dropout[name], "p", 0.0)

    def arguments(x: torch.Tensor) -> tuple | None:
        if module.disable_adapters or x.dtype != base.weight.dtype:
            return None
        return base.weight, base.bias, A, B, scaling, dropout if module.training else 0.0

    return arguments


def _lora(module: nn.Module) -> tuple[Callable, int] | None:
    """For a LoRA that `_lora_arguments` knows: forward pass and input width."""
    arguments, original = _lora_arguments(module), module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        adapter = arguments(x)
        if adapter is None:
            return original(x)
        return kernels.LoraLinear.apply(x.reshape(-1, x.shape[-1]), *adapter).view(*x.shape[:-1], -1)

    return (forward, module.in_features) if arguments else None


def _norm(module: nn.Module) -> tuple[Callable, int] | None:
    """For an RMS norm as transformers writes it, frozen and without zeros."""
    parameters = dict(module.named_parameters())
    if not hasattr(module, "variance_epsilon") or parameters.keys() != {"weight"} or _trained(module.weight):
        return None
    if not module.weight.all():
        return None
    return lambda x: kernels.RMSNorm.apply(x, module.weight, module.variance_epsilon), len(module.weight)


def _mlp(module: nn.Module) -> tuple[Callable, int] | None:
    """For down_proj(silu(gate_proj(x)) * up_proj(x))."""
    if not all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return None
    x = sample(64, like=next(module.parameters()))
    if not agree(silu(x), module.act_fn(x)):
        return None
    arguments = _lora_arguments(module.down_proj)

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        adapter = arguments(gate) if arguments else None
        if adapter is None:
            return module.down_proj(kernels.SwiGLU.apply(gate, up))
        flat = (part.reshape(-1, part.shape[-1]) for part in (gate, up))
        return kernels.SwiGLULoraLinear.apply(*flat, *adapter).view(*gate.shape[:-1], -1)

    return forward, module.gate_proj.in_features


def _rotary(original: Callable, like: torch.Tensor) -> Callable | None:
    """For apply_rotary_pos_emb of the common kind, which turns the halves of a head against each other."""

    def rotary(q, k, cos, sin, unsqueeze_dim=1):
        if cos.shape[-1] != q.shape[-1]:
            return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return kernels.Rotary.apply(q, cos, sin), kernels.Rotary.apply(k, cos, sin)

    q, k = sample(1, 2, 3, 8, like=like), sample(1, 1, 3, 8, like=like)
    angle = sample(1, 3, 4, like=like).repeat(1, 1, 2)
    try:
        theirs = original(q, k, angle.cos(), angle.sin())
    except (TypeError, RuntimeError):  # another signature or layout: another rotary embedding
        return None
    same = all(agree(a, b) for a, b in zip(rotary(q, k, angle.cos(), angle.sin()), theirs, strict=True))
    return rotary if same else None


def _trained(weight: torch.Tensor) -> bool:
    return weight.requires_grad and torch.is_grad_enabled()


def sample(*shape: int, like: torch.Tensor) -> torch.Tensor:
    """Numbers between -2 and 2 that leave the random state alone."""
    count = torch.arange(torch.Size(shape).numel(), device=like.device, dtype=torch.float32)
    return (2 * torch.sin(count * 1.7)).view(shape).to(like.dtype)


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two results are the same up to the rounding of 16-bit numbers."""
    tolerance = 0.02 * theirs.abs().max().item()
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0.02, atol=tolerance)


KINDS = {"lora_kernel": _lora, "norm_kernel": _norm, "swiglu_kernel": _mlp}


def _known(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable, int]]:
    """(fast path, module, forward pass, input width) of every module whose structure a kernel is made for."""
    for module in model.modules():
        found = next(((path, swap) for path, kind in KINDS.items() if (swap := kind(module))), None)
        if found:
            path, (forward, width) = found
            yield path, module, forward, width


@torch.no_grad()
def _proves(module: nn.Module, forward: Callable, width: int) -> bool:
    x = sample(3, width, like=next(module.parameters()))
    return agree(forward(x), module(x))


@contextlib.contextmanager
def fused(model: nn.Module) -> Iterator[int]:
    """Swap what can be swapped, and swap it back; yields how many modules. Trained weights are left alone."""
    training = model.training
    model.eval()
    known = list(_known(model))
    swaps = [(module, forward) for path, module, forward, width in known
             if fast_paths.on(path, model) and _proves(module, forward, width)]  # fmt: skip
    with torch.no_grad():
        namespaces = {type(module).__module__: next(module.parameters()) for _, module, *_ in known}
        rotary = {
            sys.modules[name]: _rotary(sys.modules[name].apply_rotary_pos_emb, weight)
            for name, weight in namespaces.items()
            if hasattr(sys.modules[name], "apply_rotary_pos_emb") and fast_paths.on("rotary_kernel", model)
        }
    model.train(training)
    originals = {namespace: namespace.apply_rotary_pos_emb for namespace, swap in rotary.items() if swap}
    try:
        for module, forward in swaps:
            module.forward = forward
        for namespace in originals:
            namespace.apply_rotary_pos_emb = rotary[namespace]
        yield len(swaps)
    finally:
        for module, _ in swaps:
            del module.forward
        for namespace, original in originals.items():
            namespace.apply_rotary_pos_emb = original
