"""The two-policy bandit of figure 9: what preferring one policy's answers to another's teaches.

Everything here is one prompt with A possible answers ("actions"), no model. Policies, rewards and counts are
NumPy arrays: `pos_A` is pi+ (the chosen answers' policy), `neg_A` is pi- (the rejected answers'), and
`counts_AA[i, j]` is how often i was chosen over j. Source: C3PO, arXiv 2402.10893, appendix C and figure 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch.nn.functional import logsigmoid

from c3po_utils.figure_style import TEXT, style

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


OPTIMA = [
    ("#D55E00", (0, (5, 1.5)), "s"),
    ("#000000", (0, (1, 1.2)), "o"),
    ("#009E73", (0, (5, 1.5, 1, 1.5)), "^"),
]


@style()
def figure_bandit(pos_A: Array, neg_A: Array, learned_A: Array, betas: Sequence[float], pairs: int) -> dict[str, Axes]:
    """Figure 9 at page width: `policies`, `reward`, and (ours) `error`, the learned reward less the true one.

    Lines in `policies` are eq. 7, markers the optimum of the reward learned from `pairs` pairs; the band in
    `error` is two standard errors each side. Colours are Okabe and Ito's; line styles carry them in grey.
    """
    figure, axes = plt.subplot_mosaic(
        [["policies", "reward"], ["policies", "error"]],
        figsize=(TEXT, 2.9), width_ratios=[1.35, 1], height_ratios=[1.8, 1],
    )  # fmt: skip
    figure.get_layout_engine().set(wspace=0.04)
    _draw_policies(axes["policies"], pos_A, neg_A, learned_A, betas)
    _draw_rewards(axes["reward"], axes["error"], pos_A, neg_A, learned_A, pairs)
    plt.close(figure)
    return axes


def _draw_policies(ax: Axes, pos_A: Array, neg_A: Array, learned_A: Array, betas: Sequence[float]) -> None:
    actions = np.arange(len(pos_A))
    for policy_A, colour, name, at in ((neg_A, "#E69F00", "-", 0.17), (pos_A, "#56B4E9", "+", 0.83)):
        ax.fill_between(actions, policy_A, color=colour, alpha=0.3, linewidth=0)
        ax.plot(actions, policy_A, color=colour, linewidth=2.5)
        quantile = np.searchsorted(policy_A.cumsum(), at)
        ax.text(quantile, 0.72 * policy_A[quantile], rf"$\pi^{name}$", ha="center", va="center", fontsize=11)
    for beta, (colour, dashes, marker) in zip(betas, cycle(OPTIMA), strict=False):
        line, dots = {"ls": dashes, "lw": 1.2, "color": colour}, {"marker": marker, "ms": 3, "color": colour}
        ax.plot(actions, contrast_policy(pos_A, neg_A, beta), **line)
        ax.plot(actions[::6], optimal_policy(neg_A, learned_A, beta)[::6], ls="none", **dots)
        ax.plot([], [], **line | dots, label=rf"$\pi^*$, $\beta$ = {beta:g}")
    ax.set(xlabel="action i", ylabel="probability", xlim=(0, len(pos_A) - 1), ylim=(0, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=3)


def _draw_rewards(ax: Axes, below: Axes, pos_A: Array, neg_A: Array, learned_A: Array, pairs: int) -> None:
    actions, mass_A = np.arange(len(pos_A)), pos_A + neg_A
    true_A, learned_A = centred(log_ratio(pos_A, neg_A), mass_A), centred(learned_A, mass_A)
    band_A = 2 * reward_standard_error(pos_A, neg_A, pairs)
    ax.plot(actions, true_A, color="#56B4E9", linewidth=3, label=r"true: log $\pi^+/\pi^-$")
    ax.plot(actions, learned_A, "k", linestyle=(0, (1, 1.5)), linewidth=1.5, label="learned")
    ax.set(ylabel="reward", xlim=(0, len(pos_A) - 1))
    ax.tick_params(labelbottom=False)
    ax.legend(loc="upper left")
    below.fill_between(actions, -band_A, band_A, color="0.85", linewidth=0)
    below.plot(actions, learned_A - true_A, "k.", markersize=2.5)
    below.set_title("band: ± 2 standard errors", y=0.78, fontsize=7)
    below.set(xlabel="action i", ylabel="learned − true", xlim=(0, len(pos_A) - 1))
    below.set_ylim(-1.3 * band_A.max(), 1.3 * band_A.max())
