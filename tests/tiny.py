"""Tiny random chat models with a real tokenizer, made in a moment: the pipeline's tests run on them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from c3po_utils.feedback.records import load_general_prompts

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_tokenizer(size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the bundled general prompts, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt.text for prompt in load_general_prompts()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|start|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
    )


def tiny_config(vocabulary: int, **changes) -> LlamaConfig:
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**settings | changes)


def save_tiny(folder: Path, config=None, seed: int = 0, steps: int = 0) -> Path:
    """A tiny random model and its tokenizer in `folder`, as transformers loads them.

    After some `steps` on a few short answers it ends its own, too.
    """
    tokenizer = tiny_tokenizer()
    config = config or tiny_config(len(tokenizer))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger than the usual start, so that the model prefers some tokens to others
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    _teach_to_end(model, tokenizer, steps)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach_to_end(model, tokenizer, steps: int) -> None:
    answers = ["Yes, it is.", "No, not now.", "It is fine so.", "Try it and see.", "A day or two."]
    texts = [f"<|start|>user\n{prompt.text}<|end|>\n<|start|>assistant\n" for prompt in load_general_prompts()[:40]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = [texts[(step * 8 + i) % 40] + answers[(step + i) % 5] + "<|end|>" for i in range(8)]
        ids = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left").input_ids
        labels = ids[:, -8:].clone()
        logits = model(ids, attention_mask=(ids != 0).long(), logits_to_keep=9).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
