"""The C3PO objective (eq. 5) as pure functions of log-probabilities.

Names carry their shapes: B preference pairs, N completion tokens, D hidden size, V vocabulary, S sequences.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


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


def kl_loss(
    kl_N: torch.Tensor, sequence_N: torch.Tensor, sequences: int, *, summed: bool = False, squared: bool = False
) -> torch.Tensor:
    """The constraint of each sequence, (S,): its tokens' divergences from pi_0, averaged or summed, perhaps squared.

    Args:
        kl_N: KL(pi_0 || pi) at each completion token.
        sequence_N: the sequence to which each token belongs.
        sequences: S, how many there are.
    """
    kl_S = sequence_logps(kl_N, sequence_N, sequences)
    if not summed:
        kl_S = kl_S / torch.bincount(sequence_N, minlength=sequences).clamp(min=1)
    return kl_S**2 if squared else kl_S


def c3po_loss(
    preference: torch.Tensor,
    out_of_scope: torch.Tensor,
    near_scope: torch.Tensor,
    lambda_1: float = 0.2,
    lambda_2: float = 0.1,
) -> torch.Tensor:
    """Eq. 5: L_DPO(D_in) + lambda_1 L_SFT(D_out) + lambda_2 L_SFT(D_near), from the three scalar terms."""
    return preference + lambda_1 * out_of_scope + lambda_2 * near_scope
