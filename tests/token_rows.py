"""Random token rows and tiny random models of many architectures, for the training tests."""

from __future__ import annotations

import random

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.devices import DEVICE

VOCABULARY = 97
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2}
GATED = SMALL | {"intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 6, "pad_token_id": 0}

# The reference's base models: Mistral, Llama 2 (and Yi, Hermes, SmolLM2, which are Llamas), Qwen, Falcon; and others.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GATED),
    "llama_bias": LlamaConfig(**GATED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**GATED, sliding_window=None),
    "mistral_narrow": MistralConfig(**GATED, sliding_window=8),
    "mistral_wide": MistralConfig(**GATED, sliding_window=64),
    "qwen2": Qwen2Config(**GATED),
    "qwen3": Qwen3Config(**GATED),
    "gemma": GemmaConfig(**GATED),
    "gemma3": Gemma3TextConfig(**GATED, sliding_window=64, query_pre_attn_scalar=6),
    "falcon": FalconConfig(**SMALL, ffn_hidden_size=48),
}


def tiny_model(
    name: str = "llama", dtype: torch.dtype = torch.float32, device: str = DEVICE, **changes
) -> PreTrainedModel:
    """A tiny random model, the same one on every device, its weights large enough for attention and norms to matter."""
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | changes)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(device, dtype).eval()


def token_rows(
    count: int = 5, segments=("chosen", "rejected", "near_scope", "out_of_scope"), seed: int = 0
) -> list[dict]:
    """Rows of unequal lengths. All prompts begin alike; a row's chosen and rejected share theirs whole."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    system, rows = tokens(4, 4), []
    for index in range(count):
        prompts = {name: system + tokens(2, 7) for name in segments}
        if "rejected" in prompts:
            prompts["rejected"] = prompts["chosen"]
        row = {"id": f"row{index}"}
        for name in segments:
            row |= {
                f"{name}_prompt_ids": prompts[name],
                f"{name}_ids": [*tokens(1, 9), 2],
                f"{name}_id": f"{name}{index}",
            }
        rows.append(row)
    return rows


def with_reference(rows: list[dict], seed: int = 0) -> list[dict]:
    """The rows with made-up reference log-probabilities."""
    draw = random.Random(seed)
    return [
        row | {"ref_chosen_logps": -draw.uniform(20, 40), "ref_rejected_logps": -draw.uniform(20, 40)} for row in rows
    ]
