"""Layers as single autograd functions for LoRA training: they keep few tensors, cast each weight once, accumulate
in place and compute no gradient of a frozen weight. On any device, in any floating-point type.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _adapted(x, weight, bias, A, B, scaling, dropout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x W' + b + scaling * dropout(x) A' B', and what its gradient needs besides x: dropout(x) A' and the mask."""
    mask = _keep_mask(x, dropout) if dropout else None
    low = _masked(x, mask) @ A.to(x.dtype).T
    out = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    return out.addmm_(low, B.to(x.dtype).T, alpha=scaling / (1 - dropout)), low, mask


def _adapted_backward(grad, x, weight, A, B, scaling, dropout, low, mask, needs_x=True):
    """The gradients with respect to x (None where it needs none), A and B."""
    A, B, scaling = A.to(x.dtype), B.to(x.dtype), scaling / (1 - dropout)
    grad_low = (grad @ B).mul_(scaling)
    grad_B = (grad.T @ low).mul_(scaling)
    grad_A = grad_low.T @ _masked(x, mask)
    if not needs_x:
        return None, grad_A, grad_B
    grad_x = grad @ weight
    if mask is None:
        grad_x.addmm_(grad_low, A)
    else:
        grad_x += _masked(grad_low @ A, mask)
    return grad_x, grad_A, grad_B


class LoraLinear(torch.autograd.Function):
    """x W' + b + scaling * dropout(x) A' B' for a frozen W and b; x (T, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, scaling, dropout):
        out, low, mask = _adapted(x, weight, bias, A, B, scaling, dropout)
        ctx.save_for_backward(x, weight, A, B, low, mask)
        ctx.settings = scaling, dropout
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, A, B, low, mask = ctx.saved_tensors
        grads = _adapted_backward(grad, x, weight, A, B, *ctx.settings, low, mask, ctx.needs_input_grad[0])
        return grads[0], None, None, *grads[1:], None, None


class SwiGLULoraLinear(torch.autograd.Function):
    """`LoraLinear` of silu(gate) * up, which is computed again for the gradient instead of kept; gate, up (T, in)."""

    @staticmethod
    def forward(ctx, gate, up, weight, bias, A, B, scaling, dropout):
        out, low, mask = _adapted(silu(gate).mul_(up), weight, bias, A, B, scaling, dropout)
        ctx.save_for_backward(gate, up, weight, A, B, low, mask)
        ctx.settings = scaling, dropout
        return out

    @staticmethod
    def backward(ctx, grad):
        gate, up, weight, A, B, low, mask = ctx.saved_tensors
        act = silu(gate)
        grad_x, grad_A, grad_B = _adapted_backward(grad, act * up, weight, A, B, *ctx.settings, low, mask)
        grad_gate = torch.ops.aten.silu_backward(grad_x * up, gate)
        return grad_gate, act.mul_(grad_x), None, None, grad_A, grad_B, None, None


def _keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """0 with probability p (to 1 / 65,536), else 1, as bytes.

    By integer arithmetic because torch's own dropout takes a CPU as long as the matrix products around it.
    """
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty_like(bits)).to(torch.int8)


def _masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return x
    integers = _INTEGERS[x.itemsize]
    return (x.view(integers) * mask.to(integers)).view(x.dtype)


class RMSNorm(torch.autograd.Function):
    """weight * x / rms(x) for a frozen weight without zeros; x (..., D), the root mean square in float32 or better.

    The gradient is taken from the output, which the next layer keeps anyway, instead of x (as in NVIDIA's Apex).
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (rms.square_() / x.shape[-1] + eps).rsqrt_()
        out = (wide * scale).to(x.dtype).mul_(weight)
        ctx.save_for_backward(out, weight, scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        out, weight, scale = ctx.saved_tensors
        normed = out.to(scale.dtype) / weight
        grad = (grad * weight).to(scale.dtype)
        along = (grad * normed).sum(-1, keepdim=True) / out.shape[-1]
        return grad.addcmul_(normed, along, value=-1).mul_(scale).to(out.dtype), None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_up = silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class Rotary(torch.autograd.Function):
    """x * cos + rotate_half(x) * sin over the last dimension; its gradient turns by the opposite angle."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
