"""The objective's pure functions, on values worked out by hand and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from c3po_utils.engine import log_probs
from c3po_utils.engine.log_probs import token_kl, token_logps
from c3po_utils.training.loss import c3po_loss, dpo_loss, kl_loss, sequence_logps, sft_loss
from tests.devices import DEVICE

float64 = {"dtype": torch.float64}


def test_sequence_logps_sum_each_sequences_tokens():
    logps = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    assert sequence_logps(logps, torch.tensor([2, 0, 2, 0, 0]), 4).tolist() == [-26.0, 0.0, -5.0, 0.0]


def test_dpo_by_hand_on_three_pairs():
    chosen, rejected = torch.tensor([-10.0, -20.0, -7.0], **float64), torch.tensor([-12.0, -15.0, -7.0], **float64)
    ref_chosen, ref_rejected = (
        torch.tensor([-11.0, -26.0, -3.0], **float64),
        torch.tensor([-9.0, -15.0, -8.0], **float64),
    )
    losses, chosen_rewards, rejected_rewards = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    assert chosen_rewards.tolist() == [0.5, 3.0, -2.0]
    assert rejected_rewards.tolist() == [-1.5, 0.0, 0.5]
    # margins 2, 3, -2.5: log(1 + exp(-margin))
    assert losses.tolist() == pytest.approx([0.126928011, 0.048587352, 2.578889734], abs=1e-8)


def test_dpo_starts_at_ln_2_whatever_the_numbers():
    chosen, rejected = torch.randn(7) * 100, torch.randn(7) * 100
    losses, *rewards = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    assert losses.tolist() == pytest.approx([math.log(2)] * 7)
    assert all(not reward.any() for reward in rewards)


def test_dpo_stays_finite_at_extreme_margins():
    losses, *_ = dpo_loss(torch.tensor([1e4, -1e4]), torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=1.0)
    assert losses.tolist() == [0.0, 1e4]


def test_dpo_gradient_moves_chosen_up_and_rejected_down_by_beta_sigma():
    values = [torch.tensor([v], requires_grad=True, **float64) for v in (-3.0, -5.0)]
    dpo_loss(*values, torch.tensor([-4.0], **float64), torch.tensor([-5.5], **float64), beta=0.25)[0].sum().backward()
    weight = 0.25 / (1 + math.exp(0.25 * 0.5))  # beta * sigmoid(-margin), margin 0.25 * (1 - 0.5)
    assert [value.grad.item() for value in values] == pytest.approx([-weight, weight])


def test_sft_is_a_mean_over_tokens_and_zero_for_none():
    assert sft_loss(torch.tensor([-1.0, -2.0, -6.0])).item() == 3.0
    assert sft_loss(torch.zeros(0)).item() == 0.0


def test_c3po_adds_the_terms_with_their_own_weights():
    terms = torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)
    assert c3po_loss(*terms, lambda_1=0.2, lambda_2=0.1).item() == pytest.approx(1 + 2 + 10)
    assert c3po_loss(*terms, lambda_1=0.0, lambda_2=1.0).item() == pytest.approx(101)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [3.0, 4.0]), ({"summed": True}, [6.0, 4.0]), ({"squared": True}, [9.0, 16.0]),
     ({"summed": True, "squared": True}, [36.0, 16.0])],
)  # fmt: skip
def test_kl_constraint_of_sequences_averaged_summed_squared(options, expected):
    kl, sequence = torch.tensor([1.0, 4.0, 5.0]), torch.tensor([0, 1, 0])
    assert kl_loss(kl, sequence, 2, **options).tolist() == expected


@pytest.fixture
def states():
    """Hidden states of 7 tokens with 5 dimensions, those of a reference, a head of 11 words, and labels."""
    draw = torch.Generator().manual_seed(3)
    hidden, reference = (torch.randn(7, 5, generator=draw, **float64) for _ in range(2))
    rest = torch.randn(11, 5, generator=draw, **float64), torch.randint(11, (7,), generator=draw)
    return tuple(tensor.to(DEVICE) for tensor in (hidden, reference, *rest))


@pytest.fixture(params=[3, 7, 100])
def chunk(request, monkeypatch):
    """Chunks that divide the tokens unevenly, exactly, and not at all."""
    monkeypatch.setitem(log_probs.CHUNK, DEVICE, request.param)
    monkeypatch.setitem(log_probs.ROWS, DEVICE, 2)


def test_token_logps_equal_full_cross_entropy(states, chunk):
    hidden, _, weight, labels = states
    expected = -cross_entropy(hidden @ weight.T, labels, reduction="none")
    assert torch.allclose(token_logps(hidden, weight, labels), expected, atol=1e-12)


def test_token_logps_by_hand():
    hidden, weight = torch.tensor([[math.log(2.0)], [0.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # logits 0, ln 2, 2 ln 2: probabilities 1/7, 2/7, 4/7; then three alike
    found = token_logps(hidden, weight, torch.tensor([1, 2])).exp()
    assert found.tolist() == pytest.approx([2 / 7, 1 / 3])


def test_token_logps_under_autocast_are_those_of_its_type(states):
    hidden, _, weight, labels = (t.float() if t.is_floating_point() else t for t in states)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = token_logps(hidden, weight, labels)
    low = token_logps(hidden.bfloat16(), weight.bfloat16(), labels)
    assert torch.equal(found, low)
    assert not torch.equal(found, token_logps(hidden, weight, labels))


def test_token_logps_gradient_by_finite_differences(states, chunk):
    hidden, _, weight, labels = states
    assert torch.autograd.gradcheck(lambda h: token_logps(h, weight, labels), hidden.requires_grad_())


def test_token_logps_of_an_impossible_word_stay_finite():
    logits = torch.tensor([[1.0]]), torch.tensor([[300.0], [0.0]])
    assert token_logps(*logits, torch.tensor([1])).item() == -300.0


def test_token_kl_equals_torchs_and_vanishes_for_the_reference(states, chunk):
    hidden, reference, weight, _ = states
    ours = token_kl(hidden, reference, weight, 2.0)
    logps, ref_logps = ((h @ weight.T / 2).log_softmax(-1) for h in (hidden, reference))
    assert torch.allclose(ours, 4 * kl_div(logps, ref_logps, reduction="none", log_target=True).sum(-1), atol=1e-12)
    assert not token_kl(hidden, hidden, weight, 0.7).any()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_token_kl_gradient_by_finite_differences(states, chunk, temperature):
    hidden, reference, weight, _ = states
    assert torch.autograd.gradcheck(lambda h: token_kl(h, reference, weight, temperature), hidden.requires_grad_())


def test_a_frozen_head_and_the_reference_get_no_gradient(states):
    hidden, reference, weight, labels = (t.requires_grad_() if t.is_floating_point() else t for t in states)
    (token_logps(hidden, weight, labels).sum() + token_kl(hidden, reference, weight).sum()).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert reference.grad is None
