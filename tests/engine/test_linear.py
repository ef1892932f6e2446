"""Packed sequences and replaced layers give what peft and transformers give, and train the same adapters."""

from __future__ import annotations

import contextlib

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.models.llama import modeling_llama

from c3po_utils.engine import attention, kernels
from c3po_utils.engine.attention import LONGEST_EAGER, Packing
from c3po_utils.engine.linear import fused
from c3po_utils.training.adapters import lora_config
from c3po_utils.training.methods import get_method
from c3po_utils.training.objective import collate, completion_logps, objective
from tests.devices import DEVICE
from tests.token_rows import CONFIGS, tiny_model, token_rows, with_reference

float64 = {"dtype": torch.float64, "device": DEVICE}


def adapted(name: str = "llama", **lora):
    """A tiny model with an adapter that is not zero."""
    policy = get_peft_model(tiny_model(name), lora_config(**{"r": 3, "alpha": 5, "dropout": 0.0} | lora))
    torch.manual_seed(2)
    for key, parameter in policy.named_parameters():
        if "lora_B" in key:
            parameter.data = torch.randn(parameter.shape).mul_(0.3).to(parameter)
    return policy


def loss_and_gradient(policy, passes) -> tuple[float, torch.Tensor]:
    policy.zero_grad()
    total = 0.0
    for batch in passes:
        batch = batch.to(policy.device)
        logps = completion_logps(policy.get_base_model(), batch)
        loss, _ = objective(get_method("c3po", chosen_sft_weight=0.3), logps, batch)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def assert_same(found, expected, tolerance=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert (found[1] - expected[1]).norm() <= tolerance * expected[1].norm()


def separate_forwards(policy, rows) -> tuple[float, torch.Tensor]:
    """Eq. 5 written plainly: a forward pass for each sequence alone, all logits, transformers' own attention."""
    policy.zero_grad()
    policy.get_base_model().set_attn_implementation("eager")

    def token_logps(row, name):
        prompt, completion = row[f"{name}_prompt_ids"], row[f"{name}_ids"]
        logits = policy(torch.tensor([prompt + completion], device=policy.device)).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[range(len(completion)), completion]

    logps = {
        name: [token_logps(row, name) for row in rows] for name in ("chosen", "rejected", "near_scope", "out_of_scope")
    }
    margins = [
        0.1 * (chosen.sum() - row["ref_chosen_logps"] - rejected.sum() + row["ref_rejected_logps"])
        for row, chosen, rejected in zip(rows, logps["chosen"], logps["rejected"], strict=True)
    ]
    sft = {name: -torch.cat(parts).mean() for name, parts in logps.items()}
    preference = -nn.functional.logsigmoid(torch.stack(margins)).mean()
    loss = preference + 0.2 * sft["out_of_scope"] + 0.1 * sft["near_scope"] + 0.3 * sft["chosen"]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tokens_per_pass", [None, 40])
def test_one_combined_forward_equals_separate_forwards(name, tokens_per_pass):
    policy, rows = adapted(name), with_reference(token_rows(4))
    expected = separate_forwards(policy, rows)
    passes = collate(rows, tokens_per_pass)
    assert len(passes) == (1 if tokens_per_pass is None else 4)
    with fused(policy) as swapped:
        assert_same(loss_and_gradient(policy, passes), expected)
    assert (swapped > 0) == (name != "falcon")  # Falcon's linear layers and norms are of its own


def test_architectures_are_packed_where_attention_sees_whole_sequences():
    packed = {name for name in CONFIGS if attention.enable(tiny_model(name), longest=40)}
    assert packed == set(CONFIGS) - {"falcon", "mistral_narrow"}
    assert not attention.enable(tiny_model("mistral_wide"), longest=65)
    assert not attention.enable(tiny_model("mistral_wide"))
    assert attention.enable(tiny_model("mistral"))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("longest", [LONGEST_EAGER, 0])
def test_both_kinds_of_packed_attention_equal_padding(monkeypatch, share, longest):
    policy, batch = adapted(), collate(with_reference(token_rows()), share=share)
    packed = attention.enable
    monkeypatch.setattr(attention, "enable", lambda model, longest: False)
    expected = loss_and_gradient(policy, batch)
    monkeypatch.setattr(attention, "enable", packed)
    monkeypatch.setattr("c3po_utils.engine.attention.LONGEST_EAGER", longest)
    assert_same(loss_and_gradient(policy, batch), expected)


def test_log_probabilities_do_not_depend_on_the_batch_around_them():
    policy, rows = adapted().get_base_model(), token_rows(6)

    def logps(rows, row):
        batch = collate(rows)[0].to(policy.device)
        return completion_logps(policy, batch)[batch.sequence_N == rows.index(row)]  # its chosen answer

    alone = logps([rows[3]], rows[3])
    assert torch.allclose(logps(rows, rows[3]), alone, atol=1e-5)
    assert torch.allclose(logps(rows[::-1], rows[3]), alone, atol=1e-5)
    longer = rows[0] | {"near_scope_ids": [5] * 60}
    assert torch.allclose(logps([longer, rows[3]], rows[3]), alone, atol=1e-5)


def test_prompts_and_padding_are_no_labels():
    rows = token_rows(3)
    (batch,) = collate(rows)
    assert batch.labels_N.tolist() == [t for name in batch.counts for row in rows for t in row[f"{name}_ids"]]
    assert batch.whole["near_scope"] == sum(len(row["near_scope_ids"]) for row in rows)


def test_parts_of_a_batch_are_even_and_complete():
    rows = token_rows(9)
    parts = collate(rows, 90)
    sizes = [part.counts["chosen"] for part in parts]
    assert sum(sizes) == 9
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([p.labels_N[p.tokens_of("out_of_scope")] for p in parts]),
                       torch.tensor([t for row in rows for t in row["out_of_scope_ids"]]))  # fmt: skip


def test_packing_lets_common_prefixes_stand_once():
    packing = Packing.of([[7, 8, 9], [7, 8, 5, 6], [8, 9], [7, 8, 9]])
    assert packing.ids_T.tolist() == [7, 8, 9, 5, 6, 8, 9]
    assert packing.index_BL[:, :4].tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 6, 0, 0], [0, 1, 2, 0]]
    assert packing.mask_BL[:, :4].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert packing.mask_BL.sum() == 12
    assert packing.index_BL.shape == (4, 16)
    assert packing.positions_T.tolist() == [0, 1, 2, 2, 3, 0, 1]
    assert packing.owner_T.tolist() == [0, 1, 2, 18, 19, 32, 33]
    assert len(Packing.of([[7, 8, 9], [7, 8]], share=False).ids_T) == 5


def test_fused_restores_every_module_also_after_an_error():
    policy, rotary = adapted(), modeling_llama.apply_rotary_pos_emb
    before = {name: module.forward for name, module in policy.named_modules()}
    with contextlib.suppress(RuntimeError), fused(policy):
        assert policy.get_base_model().model.norm.forward != before["base_model.model.model.norm"]
        assert modeling_llama.apply_rotary_pos_emb is not rotary
        raise RuntimeError
    assert {name: module.forward for name, module in policy.named_modules()} == before
    assert modeling_llama.apply_rotary_pos_emb is rotary


def test_the_product_before_a_trained_down_projection_is_not_kept():
    policy, batch = adapted(), collate(with_reference(token_rows()))[0].to(DEVICE)
    shapes = []

    def kept(tensor):
        shapes.append(tuple(tensor.shape[-2:]))
        return tensor

    def wide() -> int:
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            completion_logps(policy.get_base_model(), batch)
        return shapes.count((len(batch.packing.ids_T), policy.config.intermediate_size))

    layers = policy.config.num_hidden_layers
    with fused(policy):
        assert wide() == 2 * layers  # gate and up
    assert wide() > 2 * layers


@pytest.mark.parametrize(
    "lora",
    [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"exclude_modules": ["down_proj"]}],
    ids=str,
)
def test_other_adapters_train_as_peft_trains_them(lora):
    policy, passes = adapted(**lora), collate(with_reference(token_rows()))
    expected = loss_and_gradient(policy, passes)
    with fused(policy):
        assert_same(loss_and_gradient(policy, passes), expected)


def test_norms_that_are_trained_are_left_alone():
    model = tiny_model()
    with fused(model):
        assert "forward" not in vars(model.model.norm)
    with torch.no_grad(), fused(model):
        assert "forward" in vars(model.model.norm)


def test_norms_with_a_zero_weight_are_left_alone():
    policy, passes = adapted(), collate(with_reference(token_rows()))
    norm = policy.get_base_model().model.layers[1].input_layernorm
    with torch.no_grad():
        norm.weight[3] = 0
    expected = loss_and_gradient(policy, passes)
    with fused(policy):
        assert "forward" not in vars(norm)
        assert_same(loss_and_gradient(policy, passes), expected)


def test_another_activation_is_left_alone():
    policy = get_peft_model(tiny_model(hidden_act="gelu"), lora_config(r=2))
    with fused(policy):
        assert "forward" not in vars(policy.get_base_model().model.layers[0].mlp)
        assert "forward" in vars(policy.get_base_model().model.norm)


def test_disabled_adapters_are_disabled_in_fused_layers_too():
    policy = adapted()
    batch = collate(token_rows())[0].to(DEVICE)
    expected = completion_logps(tiny_model(), batch)
    with fused(policy), policy.disable_adapter():
        found = completion_logps(policy.get_base_model(), batch)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_lora_linear_gradient_by_finite_differences(bias):
    draw = torch.Generator(DEVICE).manual_seed(0)
    x, weight, A, B = (torch.randn(*shape, generator=draw, **float64) for shape in ((5, 4), (3, 4), (2, 4), (3, 2)))
    vector = torch.randn(3, generator=draw, **float64) if bias else None
    expected = x @ weight.T + (vector if bias else 0) + 1.7 * (x @ A.T @ B.T)
    assert torch.allclose(kernels.LoraLinear.apply(x, weight, vector, A, B, 1.7, 0.0), expected)
    trained = [t.requires_grad_() for t in (x, A, B)]
    assert torch.autograd.gradcheck(
        lambda x, A, B: kernels.LoraLinear.apply(x, weight, vector, A, B, 1.7, 0.0), trained
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_gated_lora_linear_is_a_lora_linear_of_the_product(dropout):
    draw = torch.Generator(DEVICE).manual_seed(0)
    shapes = (5, 4), (5, 4), (2, 4), (3, 2), (3, 4), (3,), (5, 3)
    gate, up, A, B, weight, bias, g = (torch.randn(*shape, generator=draw, **float64) for shape in shapes)

    def apart(gate, up, *adapter):
        return kernels.LoraLinear.apply(kernels.SwiGLU.apply(gate, up), *adapter)

    results = []
    for product in (kernels.SwiGLULoraLinear.apply, apart):
        leaves = [t.clone().requires_grad_() for t in (gate, up, A, B)]
        torch.manual_seed(5)
        out = product(*leaves[:2], weight, bias, *leaves[2:], 1.7, dropout)
        out.backward(g)
        results.append([out, *(leaf.grad for leaf in leaves)])
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dropout_is_applied_to_the_adapters_input_alone(dtype):
    """With W = 0 and A = B = 1 the output shows the mask; the gradient of x must show the same one."""
    x = torch.full((200, 100), 2.0, dtype=dtype, device=DEVICE, requires_grad=True)
    eye = torch.eye(100, dtype=dtype, device=DEVICE)
    torch.manual_seed(0)
    out = kernels.LoraLinear.apply(x, torch.zeros_like(eye), None, eye, eye, 1.0, 0.25)
    out.sum().backward()
    kept = out != 0
    assert torch.allclose(out[kept].float(), torch.full_like(out[kept], 2 / 0.75, dtype=torch.float32), rtol=0.01)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)  # of 20,000: three standard errors
    assert torch.equal(x.grad != 0, kept)
    assert kernels.LoraLinear.apply(x, eye, None, eye, 0 * eye, 1.0, 0.9).eq(2).all()


def test_dropout_gradients_equal_those_of_the_masked_product():
    draw = torch.Generator(DEVICE).manual_seed(0)
    x, weight, A, B, g = (torch.randn(*s, generator=draw, **float64) for s in ((6, 4), (3, 4), (2, 4), (3, 2), (6, 3)))
    results = []
    for product in (kernels.LoraLinear.apply, _plain_lora):
        leaves = [t.clone().requires_grad_() for t in (x, A, B)]
        torch.manual_seed(5)
        out = product(leaves[0], weight, None, leaves[1], leaves[2], 1.3, 0.4)
        out.backward(g)
        results.append([out, *(leaf.grad for leaf in leaves)])
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


def _plain_lora(x, weight, bias, A, B, scaling, p):
    mask = kernels._keep_mask(x, p).double()
    assert 0 < mask.mean() < 1
    return x @ weight.T + scaling * (x * mask / (1 - p)) @ A.T @ B.T


def test_norm_swiglu_and_rotary_by_finite_differences():
    draw = torch.Generator(DEVICE).manual_seed(0)
    x, y = (torch.randn(2, 3, 6, generator=draw, **float64).requires_grad_() for _ in range(2))
    weight, angle = torch.randn(6, generator=draw, **float64), torch.randn(3, 3, generator=draw, **float64).repeat(1, 2)
    assert torch.autograd.gradcheck(lambda x: kernels.RMSNorm.apply(x, weight, 1e-3), x)
    assert torch.autograd.gradcheck(kernels.SwiGLU.apply, (x, y))
    assert torch.autograd.gradcheck(lambda x: kernels.Rotary.apply(x, angle.cos(), angle.sin()), x)


def test_bfloat16_gradients_are_as_near_to_float32_as_pefts_own():
    rows = collate(with_reference(token_rows(8)))
    exact = loss_and_gradient(adapted(), rows)[1]
    policy = adapted()
    for name, parameter in policy.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast(DEVICE, torch.bfloat16):
        theirs = loss_and_gradient(policy, rows)[1]
    with fused(policy):
        ours = loss_and_gradient(policy, rows)[1]
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()
