"""The two-policy bandit of figure 9: what preferring one policy's answers to another's teaches.

Everything here is one prompt with A possible answers ("actions"), no model. Policies, rewards and counts are
NumPy arrays: `pos_A` is pi+ (the chosen answers' policy), `neg_A` is pi- (the rejected answers'), and
`counts_AA[i, j]` is how often i was chosen over j. Source: C3PO, arXiv 2402.10893, appendix C and figure 9.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch.nn.functional import logsigmoid

Array = NDArray[np.float64]

ACTIONS, WIDTH = 100, 1000.0  # figure 9: i = 0..99, exp(-(i - centre)^2 / 1000)
POSITIVE_CENTRE, NEGATIVE_CENTRE = 70.0, 40.0


def bump_policy(centre: float, actions: int = ACTIONS, width: float = WIDTH) -> Array:
    """Probabilities (A,) proportional to exp(-(i - centre)^2 / width) (figure 9)."""
    return softmax(-((np.arange(actions) - centre) ** 2) / width)


def log_ratio(pos_A: Array, neg_A: Array) -> Array:
    """The reward log pi+/pi- (A,), in nats, that preference pairs imply up to a constant (appendix C)."""
    return np.log(pos_A) - np.log(neg_A)


def centred(reward_A: Array, weight_A: Array) -> Array:
    """The reward less its weighted mean: preferences never see a constant, so compare rewards like this."""
    return reward_A - np.average(reward_A, weights=weight_A)


def preference(reward_A: Array) -> Array:
    """Bradley-Terry: [i, j] of the result (A, A) is sigmoid(r_i - r_j), how likely i is chosen over j."""
    return expit(reward_A[:, None] - reward_A[None, :])


def draw_pairs(pos_A: Array, neg_A: Array, pairs: int, seed: int) -> NDArray[np.int64]:
    """How often each (chosen, rejected) pair comes up (A, A) among `pairs` draws of y+ ~ pi+ and y- ~ pi-.

    One multinomial draw over the A x A cells: memory does not grow with the number of pairs.
    """
    cells = np.outer(pos_A, neg_A)
    return np.random.default_rng(seed).multinomial(pairs, cells.ravel()).reshape(cells.shape)


def bradley_terry_loss(reward_A: torch.Tensor, weight_AA: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid(r_chosen - r_rejected), a scalar in nats.

    `weight_AA` [chosen, rejected] is each pair's share of the data and sums to 1. With reward
    beta * log pi/pi_ref this is the DPO loss; equal rewards give ln 2.
    """
    return -(weight_AA * logsigmoid(reward_A[:, None] - reward_A[None, :])).sum()


def fit_reward(counts_AA: NDArray, steps: int = 400, lr: float = 1.0) -> tuple[Array, Array]:
    """Full-batch Adam on the Bradley-Terry loss from zero, in float64 (figure 9's optimizer settings).

    Returns the reward (A,), whose constant is arbitrary (compare it `centred`), and the loss before each step
    (S,). `counts_AA` [chosen, rejected] may be counts or probabilities. Raises ValueError unless it is a
    square matrix, non-negative and not all zero.
    """
    if counts_AA.ndim != 2 or len(set(counts_AA.shape)) != 1 or (counts_AA < 0).any() or not counts_AA.any():
        raise ValueError(f"counts: expected a square matrix, non-negative, not all zero; found shape {counts_AA.shape}")
    weight_AA = torch.as_tensor(counts_AA / counts_AA.sum())
    reward_A = torch.zeros(len(weight_AA), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([reward_A], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = bradley_terry_loss(reward_A, weight_AA)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return reward_A.detach().numpy(), np.array(losses)


def reward_standard_error(pos_A: Array, neg_A: Array, pairs: int) -> Array:
    """Standard error (A,) of the best-fitting reward, centred with weights pi+ + pi-, after `pairs` pairs.

    The inverse Fisher information of the Bradley-Terry model; its null direction is the unseen constant.
    """
    chosen_AA = preference(log_ratio(pos_A, neg_A))
    cells_AA = np.outer(pos_A, neg_A)
    noise_AA = (cells_AA + cells_AA.T) * chosen_AA * (1 - chosen_AA)
    information_AA = np.diag(noise_AA.sum(1)) - noise_AA
    centring_AA = np.eye(len(pos_A)) - (pos_A + neg_A)[None, :] / 2
    covariance_AA = centring_AA @ np.linalg.pinv(information_AA, rcond=1e-10, hermitian=True) @ centring_AA.T
    return np.sqrt(np.diag(covariance_AA) / pairs)


def optimal_policy(reference_A: Array, reward_A: Array, beta: float) -> Array:
    """The policy (A,) that maximises E[r] - beta KL(pi || reference): ∝ reference * exp(r / beta)."""
    _check_beta(beta)
    return softmax(np.log(reference_A) + reward_A / beta)


def contrast_policy(pos_A: Array, neg_A: Array, beta: float) -> Array:
    """Eq. 7, the optimum with pi- as reference: pi* (A,) ∝ pi+^(1/beta) / pi-^((1 - beta)/beta)."""
    _check_beta(beta)
    return softmax(np.log(pos_A) / beta - (1 - beta) / beta * np.log(neg_A))


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta: expected a positive number, found {beta}")


def total_variation(p_A: Array, q_A: Array) -> float:
    """Half the L1 distance: the most that two policies can differ on any event."""
    return float(np.abs(p_A - q_A).sum() / 2)
