"""Log-probabilities and divergences at completion tokens, without logits of the whole vocabulary for all of them.

The head is frozen in LoRA training, so the gradient with respect to the hidden states is all that a backward pass
needs, and it is known as soon as the logits are. Nothing of vocabulary size outlives its chunk of tokens, and nothing
is computed twice. N completion tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Completion tokens whose logits exist at one time: few enough for a CPU's cache, many enough to fill a GPU.
CHUNK = {"cpu": 128, "cuda": 2048}


def _parts(hidden_ND: torch.Tensor) -> Iterator[slice]:
    chunk = CHUNK.get(hidden_ND.device.type, 1024)
    return (slice(start, start + chunk) for start in range(0, len(hidden_ND), chunk))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Logps(torch.autograd.Function):
    """d log p(label) / d hidden = weight[label] - p @ weight."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N):
        wide = _wide(hidden_ND.dtype)
        logps_N = torch.empty(len(labels_N), dtype=wide, device=hidden_ND.device)
        jacobian_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for part in _parts(hidden_ND):
            labels = labels_N[part, None]
            logits = hidden_ND[part] @ weight_VD.T
            probs = logits.softmax(-1, dtype=wide)
            # log p = logit - largest logit + log(largest p), as p itself may be too small for its type
            below = logits.gather(-1, labels).to(wide) - logits.amax(-1, keepdim=True)
            logps_N[part] = (below + probs.amax(-1, keepdim=True).log())[:, 0]
            if jacobian_ND is not None:
                jacobian_ND[part] = weight_VD[labels[:, 0]] - probs.to(weight_VD.dtype) @ weight_VD
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
        wide = _wide(hidden_ND.dtype)
        kl_N = torch.empty(len(hidden_ND), dtype=wide, device=hidden_ND.device)
        jacobian_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for part in _parts(hidden_ND):
            states = hidden_ND[part], ref_hidden_ND[part]
            logps, ref_logps = (((h @ weight_VD.T).to(wide) / temperature).log_softmax(-1) for h in states)
            ref_probs = ref_logps.exp()
            kl_N[part] = temperature**2 * (ref_probs * (ref_logps - logps)).sum(-1)
            if jacobian_ND is not None:
                difference = logps.exp_().sub_(ref_probs).mul_(temperature)
                jacobian_ND[part] = difference.to(weight_VD.dtype) @ weight_VD
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
    return _Logps.apply(hidden_ND, weight_VD, labels_N)


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
    return _KL.apply(hidden_ND, ref_hidden_ND, weight_VD, temperature)
