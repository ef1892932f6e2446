"""The bandit of figure 9: on numbers worked out by hand, and at its full size of 1e8 pairs."""

import json
import math
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch

from c3po_utils.figures.curves import figure_bandit
from c3po_utils.training import bandit

ROOT = Path(__file__).parents[2]
PAIRS = 100_000_000
BETAS = [0.75, 1.0, 2.0]
TOY_POS, TOY_NEG = np.array([1 / 2, 1 / 4, 1 / 4]), np.array([1 / 4, 1 / 4, 1 / 2])


@pytest.fixture(scope="module")
def policies():
    return bandit.bump_policy(bandit.POSITIVE_CENTRE), bandit.bump_policy(bandit.NEGATIVE_CENTRE)


@pytest.fixture(scope="module")
def learned(policies):
    return bandit.fit_reward(bandit.draw_pairs(*policies, PAIRS, seed=0))[0]


def reward_error(reward, pos, neg):
    return bandit.centred(reward, pos + neg) - bandit.centred(bandit.log_ratio(pos, neg), pos + neg)


def test_the_policies_are_those_of_figure_9(policies):
    pos, neg = policies
    assert pos.shape == neg.shape == (100,)
    assert (pos.argmax(), neg.argmax()) == (70, 40)
    assert pos[80] / pos[70] == pytest.approx(math.exp(-0.1))
    assert pos.sum() == pytest.approx(1)


def test_toy_reward_and_preferences_by_hand():
    reward = bandit.log_ratio(TOY_POS, TOY_NEG)
    assert reward == pytest.approx([math.log(2), 0, -math.log(2)])
    chosen = bandit.preference(reward)
    assert chosen[0, 2] == pytest.approx(4 / 5)
    assert chosen[2, 0] == pytest.approx(1 / 5)
    assert chosen[0, 1] == pytest.approx(2 / 3)


def test_pairs_of_two_policies_satisfy_bradley_terry(policies):
    drawn = np.outer(*policies)
    bayes = drawn / (drawn + drawn.T)
    assert np.abs(bayes - bandit.preference(bandit.log_ratio(*policies))).max() < 1e-12


def test_pairs_are_counts_with_chosen_in_rows():
    counts = bandit.draw_pairs(np.array([0.9, 0.1, 0.0]), np.array([0.5, 0.5]), 10**6, seed=1)
    assert counts.shape == (3, 2)
    assert counts.sum() == 10**6
    assert counts.sum(1) / 10**6 == pytest.approx([0.9, 0.1, 0.0], abs=2e-3)
    assert (counts == bandit.draw_pairs(np.array([0.9, 0.1, 0.0]), np.array([0.5, 0.5]), 10**6, seed=1)).all()


def test_loss_by_hand():
    weight = torch.tensor([[0.0, 0.75], [0.25, 0.0]])
    assert bandit.bradley_terry_loss(torch.zeros(2), weight).item() == pytest.approx(math.log(2))
    loss = bandit.bradley_terry_loss(torch.tensor([math.log(3), 0.0]), weight).item()
    assert loss == pytest.approx(-0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4))


def test_fit_recovers_a_reward_of_known_sign_and_size():
    reward, losses = bandit.fit_reward(np.array([[0, 3], [1, 0]]))
    assert reward[0] - reward[1] == pytest.approx(math.log(3), abs=1e-6)
    assert len(losses) == 400
    assert losses[0] == pytest.approx(math.log(2))


def test_adam_converges_on_exact_probabilities(policies):
    reward, _ = bandit.fit_reward(np.outer(*policies))
    assert np.abs(reward_error(reward, *policies)).max() < 1e-6


def test_learned_reward_reaches_the_aim_on_every_action(policies, learned):
    assert (sum(policies) >= 1e-3).all()
    assert np.abs(reward_error(learned, *policies)).max() < 0.02


def test_reward_error_is_what_the_standard_error_says(policies, learned):
    z = reward_error(learned, *policies) / bandit.reward_standard_error(*policies, PAIRS)
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("beta", BETAS)
def test_optimum_of_the_learned_reward_is_eq_7(policies, learned, beta):
    pos, neg = policies
    optimum = bandit.optimal_policy(neg, learned, beta)
    assert bandit.total_variation(optimum, bandit.contrast_policy(pos, neg, beta)) < 0.002


@pytest.mark.parametrize("beta", [0.1, *BETAS, 10.0])
def test_eq_7_is_the_optimum_with_the_rejected_policy_as_reference(policies, beta):
    pos, neg = policies
    optimum = bandit.optimal_policy(neg, bandit.log_ratio(pos, neg), beta)
    assert np.abs(optimum - bandit.contrast_policy(pos, neg, beta)).max() < 1e-12


def test_eq_7_by_hand():
    assert bandit.contrast_policy(TOY_POS, TOY_NEG, 0.5) == pytest.approx([8 / 11, 2 / 11, 1 / 11], abs=1e-12)
    uneven = bandit.contrast_policy(np.array([0.8, 0.2]), np.array([0.5, 0.5]), 0.5)
    assert uneven == pytest.approx([16 / 17, 1 / 17], abs=1e-12)


def test_eq_7_is_the_chosen_policy_at_1_and_the_geometric_mean_at_2(policies):
    pos, neg = policies
    mean = np.sqrt(pos * neg)
    assert np.abs(bandit.contrast_policy(pos, neg, 1.0) - pos).max() < 1e-12
    assert np.abs(bandit.contrast_policy(pos, neg, 2.0) - mean / mean.sum()).max() < 1e-12


def test_optimal_policy_maximises_its_objective(policies):
    pos, neg = policies
    reward = bandit.log_ratio(pos, neg)

    def objective(policy):
        return policy @ reward - 0.75 * policy @ np.log(policy / neg)

    best = objective(bandit.optimal_policy(neg, reward, 0.75))
    rivals = [pos, neg, bandit.optimal_policy(neg, reward, 0.74), bandit.optimal_policy(neg, reward, 0.76)]
    assert all(objective(rival) < best - 1e-6 for rival in rivals)


def test_total_variation_by_hand():
    assert bandit.total_variation(TOY_POS, TOY_NEG) == pytest.approx(1 / 4)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(beta):
    with pytest.raises(ValueError, match="beta: expected a positive number"):
        bandit.contrast_policy(TOY_POS, TOY_NEG, beta)
    with pytest.raises(ValueError, match="beta: expected a positive number"):
        bandit.optimal_policy(TOY_NEG, TOY_POS, beta)


@pytest.mark.parametrize("counts", [np.ones((3, 2)), np.array([[0, -1], [1, 0]]), np.zeros((2, 2)), np.ones(4)])
def test_counts_must_be_a_square_table(counts):
    with pytest.raises(ValueError, match="counts: expected a square matrix"):
        bandit.fit_reward(counts)


def test_figure_draws_eq_7_and_the_learned_reward(policies, learned):
    axes = figure_bandit(*policies, learned, BETAS, PAIRS)
    drawn = [line.get_ydata() for line in axes["policies"].lines]
    for beta in BETAS:
        expected = bandit.contrast_policy(*policies, beta)
        assert any(len(y) == 100 and np.allclose(y, expected) for y in drawn)
    assert axes["error"].lines[0].get_ydata() == pytest.approx(reward_error(learned, *policies))


def test_notebook_runs_and_writes_its_results(tmp_path):
    papermill.execute_notebook(
        ROOT / "notebooks/06_theory.ipynb",
        tmp_path / "run.ipynb",
        parameters={"pairs": 1_000_000, "results_folder": str(tmp_path / "theory")},
        progress_bar=False,
    )
    numbers = json.loads((tmp_path / "theory/theory.json").read_text())
    assert numbers["pairs"] == 1_000_000
    assert numbers["max_reward_error"] < 5 * numbers["max_standard_error"]
    assert (tmp_path / "theory/figure9.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "theory/figure9.pdf").read_bytes().startswith(b"%PDF")


def test_committed_numbers_are_what_the_code_gives_and_the_readme_says(policies, learned):
    numbers = json.loads((ROOT / "results/theory/theory.json").read_text())
    readme = (ROOT / "results/theory/README.md").read_text()
    error = np.abs(reward_error(learned, *policies)).max()
    assert numbers["max_reward_error"] == pytest.approx(error, rel=1e-2)
    said = [numbers["max_reward_error"], numbers["max_standard_error"], *numbers["total_variation"].values()]
    assert [f"{number:.3g}" for number in said if f"{number:.3g}" not in readme] == []
