"""Packed layers compute what the model computes, and leave it as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from c3po_utils.engine import attention
from c3po_utils.engine.packed import PackedLayers
from tests.token_rows import GATED, tiny_model

LINEARS = 2 * 7 + 1  # of the tiny models' two layers, and the head


def packed_layers(model) -> PackedLayers:
    packed = PackedLayers(model)
    if not packed.forwards:
        pytest.skip("this CPU has no bfloat16 in oneDNN")
    return packed


@pytest.mark.parametrize("name", ["llama", "llama_bias"])
def test_packed_weights_give_the_same_logits_and_are_put_away(name):
    model, ids = tiny_model(name, torch.bfloat16, "cpu"), torch.arange(24).view(2, 12)
    packed = packed_layers(model)
    with torch.inference_mode():
        plain = model(ids).logits
        with packed.in_use():
            assert torch.allclose(model(ids).logits.float(), plain.float(), atol=0.02)
            assert all("forward" in vars(layer) for layer in packed.forwards)
        assert torch.equal(model(ids).logits, plain)
    assert len(packed.forwards) == LINEARS
    assert not any("forward" in vars(layer) for layer in model.modules())


def answer_logits(model, packed: PackedLayers | None) -> torch.Tensor:
    """Of a prefill of two prompts of three tokens, and of two steps at different places after them."""
    decoder, groups, dim = model.get_decoder(), model.config.num_key_value_heads, model.config.head_dim
    caches = [[torch.zeros(2, groups, 6, dim, dtype=model.dtype) for _ in decoder.layers] for _ in range(2)]
    logits = []
    with torch.inference_mode(), (packed or PackedLayers(tiny_model())).in_use():
        for ids, positions in (
            ([[3, 4, 5], [6, 7, 8]], [[0, 1, 2]] * 2),
            ([[9], [10]], [[3], [2]]),
            ([[1], [2]], [[4], [3]]),
        ):
            positions = torch.tensor(positions)
            step = attention.SlotStep(*caches, None, positions, 6)
            out = model(torch.tensor(ids), position_ids=positions, use_cache=False, slots=step)
            logits.append(out.logits[:, -1].float())
    return torch.stack(logits)


@pytest.mark.parametrize("name", ["llama", "llama_bias", "mistral", "qwen2"])
def test_layers_of_llamas_kind_answer_from_slots_as_their_own_do(name):
    model = tiny_model(name, torch.bfloat16, "cpu")
    attention.enable(model)
    packed = packed_layers(model)
    assert list(packed.forwards) == [*model.get_decoder().layers, model.lm_head]
    plain = answer_logits(model, None)
    exact = answer_logits(model.float(), None)
    model.to(torch.bfloat16)
    assert (answer_logits(model, packed) - exact).abs().max() <= 1.5 * (plain - exact).abs().max()
    assert torch.equal(answer_logits(model, None), plain)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "gemma3"])
def test_layers_of_another_kind_are_packed_one_linear_layer_at_a_time(name):
    model = tiny_model(name, torch.bfloat16, "cpu")
    attention.enable(model, longest=8)
    assert len(packed_layers(model).forwards) == LINEARS


def test_layers_that_only_look_like_llamas_are_known_by_their_output():
    config = GraniteConfig(**{key: value for key, value in GATED.items() if key != "head_dim"}, residual_multiplier=0.5)
    model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    attention.enable(model)
    assert len(packed_layers(model).forwards) == LINEARS
    config.residual_multiplier = 1.0
    model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    attention.enable(model)
    assert len(packed_layers(model).forwards) == 3


def test_other_precisions_are_left_alone():
    assert not PackedLayers(tiny_model()).forwards
