"""Log-probabilities and divergences at completion tokens, without logits of the whole vocabulary for all of them.

The head is frozen in LoRA training, so the gradient with respect to the hidden states is all that a backward pass
needs, and it is known as soon as the logits are. Nothing of vocabulary size outlives its chunk of tokens, and nothing
is computed twice. N completion tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from c3po_utils.engine import fast_paths

# Completion tokens whose logits exist at one time: few enough for memory, many enough for a fast product.
CHUNK = {"cpu": 256, "cuda": 2048}
# Of these, the tokens whose probabilities exist in float32 at one time: on a CPU, what its cache has room for.
ROWS = {"cpu": 16, "cuda": 2048}


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Head:
    """The head's products for a chunk of tokens after another.

    They go to the same memory, chunk after chunk: fresh memory of this size comes from the system page by page, which
    takes a CPU longer than what is computed in it.
    """

    def __init__(self, like_ND: torch.Tensor, weight_VD: torch.Tensor):
        device = like_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like_ND.dtype
        self.weight_VD = weight_VD.to(dtype)
        size = CHUNK.get(device, 1024)
        self.chunks, self.tokens = list(_slices(len(like_ND), size)), min(size, len(like_ND))
        self.rows = min(ROWS.get(device, 1024), self.tokens)

    def buffer(self, tokens: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.weight_VD.new_empty(tokens, len(self.weight_VD), dtype=dtype)

    def logits(self, hidden_CD: torch.Tensor, buffer_CV: torch.Tensor) -> torch.Tensor:
        out = buffer_CV[: len(hidden_CD)]
        return torch.mm(hidden_CD.to(self.weight_VD.dtype), self.weight_VD.T, out=out)


class _Logps(torch.autograd.Function):
    """d log p(label) / d hidden = weight[label] - p @ weight."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N):
        head, wide = _Head(hidden_ND, weight_VD), _wide(hidden_ND.dtype)
        logps_N = torch.empty(len(labels_N), dtype=wide, device=hidden_ND.device)
        jacobian_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        logits_CV, probs_RV = head.buffer(head.tokens), head.buffer(head.rows, wide)
        for chunk in head.chunks:
            labels = labels_N[chunk, None]
            logits = head.logits(hidden_ND[chunk], logits_CV)
            # log p = logit - largest logit + log(largest p), as p itself may be too small for its type
            below = logits.gather(-1, labels).to(wide) - logits.amax(-1, keepdim=True)
            for rows in _slices(len(labels), head.rows):
                probs = probs_RV[: rows.stop - rows.start].copy_(logits[rows])
                torch.softmax(probs, -1, out=probs)
                below[rows] += probs.amax(-1, keepdim=True).log()
                if jacobian_ND is not None:
                    logits[rows] = probs
            logps_N[chunk] = below[:, 0]
            if jacobian_ND is not None:
                jacobian_ND[chunk] = head.weight_VD[labels[:, 0]] - logits @ head.weight_VD
        ctx.save_for_backward(jacobian_ND)
        return logps_N

    @staticmethod
    def backward(ctx, grad_N):
        (jacobian_ND,) = ctx.saved_tensors
        return (grad_N[:, None] * jacobian_ND).to(jacobian_ND.dtype), None, None


class _KL(torch.autograd.Function):
    """d KL / d hidden = temperature * (p - p_0) @ weight."""

    @staticmethod
    def forward(ctx, hidden_ND, ref_hidden_ND, weight_VD, temperature):
        head, wide = _Head(hidden_ND, weight_VD), _wide(hidden_ND.dtype)
        kl_N = torch.empty(len(hidden_ND), dtype=wide, device=hidden_ND.device)
        jacobian_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        buffers = head.buffer(head.tokens), head.buffer(head.tokens)
        for chunk in head.chunks:
            states = hidden_ND[chunk], ref_hidden_ND[chunk]
            logits, ref_logits = (head.logits(*pair) for pair in zip(states, buffers, strict=True))
            for rows in _slices(len(logits), head.rows):
                logps, ref_logps = ((x[rows].to(wide) / temperature).log_softmax(-1) for x in (logits, ref_logits))
                ref_probs = ref_logps.exp()
                kl_N[chunk][rows] = temperature**2 * (ref_probs * (ref_logps - logps)).sum(-1)
                if jacobian_ND is not None:
                    logits[rows] = logps.exp_().sub_(ref_probs).mul_(temperature)
            if jacobian_ND is not None:
                jacobian_ND[chunk] = logits @ head.weight_VD
        ctx.save_for_backward(jacobian_ND)
        return kl_N

    @staticmethod
    def backward(ctx, grad_N):
        (jacobian_ND,) = ctx.saved_tensors
        return (grad_N[:, None] * jacobian_ND).to(jacobian_ND.dtype), None, None, None


def token_logps(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N,), float32, of the labels under a frozen, bias-free language-model head.

    Args:
        hidden_ND: the last hidden states at the positions that predict the labels.
        weight_VD: the head's weight; it gets no gradient.
        labels_N: token ids.
    """
    if fast_paths.on("head", hidden_ND):
        return _Logps.apply(hidden_ND, weight_VD, labels_N)
    return _in_chunks(_plain_logps, hidden_ND, labels_N[:, None], weight_VD=weight_VD.detach())


def token_kl(
    hidden_ND: torch.Tensor, ref_hidden_ND: torch.Tensor, weight_VD: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(pi_0 || pi) of the next-token distributions, (N,), float32: the paper's alternative to the SFT terms.

    Both distributions are softened by `temperature`, and the divergence is multiplied by its square, so that the
    size of the gradient does not depend on it (Hinton et al. 2015).

    Args:
        hidden_ND: the last hidden states of the model being trained.
        ref_hidden_ND: those of pi_0 at the same positions; they get no gradient.
    """
    if fast_paths.on("head", hidden_ND):
        return _KL.apply(hidden_ND, ref_hidden_ND, weight_VD, temperature)
    states = hidden_ND, ref_hidden_ND.detach()
    return _in_chunks(_plain_kl, *states, weight_VD=weight_VD.detach(), temperature=temperature)


def _plain_logps(hidden_CD: torch.Tensor, labels_C1: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    return _log_softmax(hidden_CD, weight_VD).gather(-1, labels_C1)[:, 0]


def _plain_kl(
    hidden_CD: torch.Tensor, ref_hidden_CD: torch.Tensor, weight_VD: torch.Tensor, temperature: float
) -> torch.Tensor:
    logps, ref_logps = (_log_softmax(states, weight_VD, temperature) for states in (hidden_CD, ref_hidden_CD))
    return temperature**2 * (ref_logps.exp() * (ref_logps - logps)).sum(-1)


def _log_softmax(hidden_CD: torch.Tensor, weight_VD: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    logits_CV = linear(hidden_CD, weight_VD.to(hidden_CD.dtype))
    return (logits_CV.to(_wide(logits_CV.dtype)) / temperature).log_softmax(-1)


def _in_chunks(plain: Callable[..., torch.Tensor], *parts_N: torch.Tensor, **fixed: Any) -> torch.Tensor:
    """`plain` of the tokens, some at a time; what is of vocabulary size is computed again for the gradient."""
    size = CHUNK.get(parts_N[0].device.type, 1024)
    chunks = zip(*(part.split(size) for part in parts_N), strict=True)
    return torch.cat([checkpoint(plain, *chunk, use_reentrant=False, **fixed) for chunk in chunks])
