"""The C3PO objective (eq. 5) as pure functions of log-probabilities.

Names carry their shapes: B preference pairs, N completion tokens, D hidden size, V vocabulary, S sequences.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

# Completion tokens whose logits exist at one time: few enough for a CPU's cache, many enough to fill a GPU.
CHUNK = {"cpu": 128, "cuda": 2048}


class _HeadLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[label], with logits for one chunk of tokens at a time.

    The head is frozen in LoRA training, so the gradient with respect to the hidden states is all that the
    backward pass needs, and it is known as soon as the logits are:
    d logp / d hidden = weight[label] - p @ weight. Nothing of vocabulary size outlives its chunk, nothing is computed
    twice.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N):
        needs_gradient = ctx.needs_input_grad[0]
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logps_N = torch.empty(len(labels_N), dtype=wide, device=hidden_ND.device)
        jacobian_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        chunk = CHUNK.get(hidden_ND.device.type, 1024)
        for start in range(0, len(labels_N), chunk):
            part, labels = slice(start, start + chunk), labels_N[start : start + chunk, None]
            logits = hidden_ND[part] @ weight_VD.T
            probs = logits.softmax(-1, dtype=wide)
            # log p = logit - largest logit + log(largest p), as p itself may be too small for its type
            below = logits.gather(-1, labels).to(wide) - logits.amax(-1, keepdim=True)
            logps_N[part] = (below + probs.amax(-1, keepdim=True).log())[:, 0]
            if needs_gradient:
                expected = probs.to(weight_VD.dtype) @ weight_VD
                jacobian_ND[part] = weight_VD[labels[:, 0]] - expected
        if needs_gradient:
            ctx.save_for_backward(jacobian_ND)
        return logps_N

    @staticmethod
    def backward(ctx, grad_N):
        (jacobian_ND,) = ctx.saved_tensors
        return (grad_N[:, None] * jacobian_ND).to(jacobian_ND.dtype), None, None


def token_logps(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N,), float32, of the labels under a frozen, bias-free language-model head.

    Args:
        hidden_ND: the last hidden states at the positions that predict the labels.
        weight_VD: the head's weight; it gets no gradient.
        labels_N: token ids.
    """
    return _HeadLogps.apply(hidden_ND, weight_VD, labels_N)


def sequence_logps(logps_N: torch.Tensor, sequence_N: torch.Tensor, sequences: int) -> torch.Tensor:
    """log pi(y|x) of each sequence, (S,): its completion tokens' log-probabilities, summed.

    Args:
        logps_N: log-probabilities of completion tokens.
        sequence_N: the sequence to which each token belongs.
        sequences: S, how many there are.
    """
    return logps_N.new_zeros(sequences).index_add(0, sequence_N, logps_N)


def dpo_loss(
    chosen_logps_B: torch.Tensor,
    rejected_logps_B: torch.Tensor,
    ref_chosen_logps_B: torch.Tensor,
    ref_rejected_logps_B: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L_DPO of each pair (Rafailov et al. 2023, eq. 7), and the implicit rewards of both answers, all (B,).

    -log sigmoid( beta [ log pi(y+|x)/pi_0(y+|x) - log pi(y-|x)/pi_0(y-|x) ] ); ln 2 where pi = pi_0.
    """
    chosen_rewards_B = beta * (chosen_logps_B - ref_chosen_logps_B)
    rejected_rewards_B = beta * (rejected_logps_B - ref_rejected_logps_B)
    return -logsigmoid(chosen_rewards_B - rejected_rewards_B), chosen_rewards_B, rejected_rewards_B


def sft_loss(logps_N: torch.Tensor) -> torch.Tensor:
    """L_SFT: the mean negative log-probability of completion tokens, a scalar (0 for none at all).

    Averaged over tokens, as language models are commonly fine-tuned, so that lambda_1 and lambda_2 weigh
    answers of any length alike.
    """
    return -logps_N.mean() if len(logps_N) else logps_N.sum()


def c3po_loss(
    preference: torch.Tensor,
    out_of_scope: torch.Tensor,
    near_scope: torch.Tensor,
    lambda_1: float = 0.2,
    lambda_2: float = 0.1,
) -> torch.Tensor:
    """Eq. 5: L_DPO(D_in) + lambda_1 L_SFT(D_out) + lambda_2 L_SFT(D_near), from the three scalar terms."""
    return preference + lambda_1 * out_of_scope + lambda_2 * near_scope
