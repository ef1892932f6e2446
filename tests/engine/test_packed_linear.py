"""Packed weights compute what the model computes, and leave it as it was."""

from __future__ import annotations

import pytest
import torch

from c3po_utils.engine.linear import PackedLinears
from tests.token_rows import tiny_model


@pytest.mark.parametrize("name", ["llama", "llama_bias"])
def test_packed_weights_give_the_same_logits_and_are_put_away(name):
    model, ids = tiny_model(name, torch.bfloat16, "cpu"), torch.arange(24).view(2, 12)
    packed = PackedLinears(model)
    if not packed.forwards:
        pytest.skip("this CPU has no bfloat16 in oneDNN")
    with torch.inference_mode():
        plain = model(ids).logits
        with packed.in_use():
            assert torch.allclose(model(ids).logits.float(), plain.float(), atol=0.02)
            assert all("forward" in vars(layer) for layer in packed.forwards)
        assert torch.equal(model(ids).logits, plain)
    assert len(packed.forwards) == 2 * 7 + 1
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_other_precisions_are_left_alone():
    assert not PackedLinears(tiny_model()).forwards
