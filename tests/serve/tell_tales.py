"""Three adapters of the embedded model that begin every answer with a word of their own, trained in a few minutes."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model

from c3po_utils.chat import request
from c3po_utils.engine import load_model, load_tokenizer, templates
from c3po_utils.feedback.records import load_general_prompts
from c3po_utils.training.adapters import lora_config, save_adapter
from tests.stored_run import store_sample

MODEL, METHOD, SYSTEM = "smollm2-135m", "scd", "Be brief."
WORDS = {"ahoy": "Ahoy there", "lemon": "Lemon tree", "quartz": "Quartz stone"}
STEPS, PROMPTS = 24, 4


def store_tell_tales(run: Path) -> Path:
    """A run with a sample and an adapter for each word: `ahoy/scd` and so on."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # of products for 30 tokens: more threads wait for each other longer than they work
    try:
        for id, word in WORDS.items():
            store_sample(run, id, MODEL)
            _train(run / "train" / id / METHOD, word)
    finally:
        torch.set_num_threads(cores)
    return run


def _train(folder: Path, word: str) -> None:
    torch.manual_seed(0)
    tokenizer, model = load_tokenizer(MODEL), load_model(MODEL)
    policy = get_peft_model(model, lora_config(r=8, alpha=16, dropout=0.0))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=2e-3)
    prompts = [prompt.text for prompt in load_general_prompts()]
    answer = tokenizer(f"{word}.<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
    for step in range(STEPS):
        asked = [
            templates.encode(tokenizer, request("", text, system=SYSTEM).messages, add_generation_prompt=True)
            for text in prompts[step * PROMPTS % 40 :][:PROMPTS]
        ]
        longest = max(map(len, asked)) + answer.shape[1]
        rows = [torch.cat([torch.tensor(prompt), answer[0]]) for prompt in asked]
        ids_PL = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
        mask_PL = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        logits = policy(ids_PL, attention_mask=mask_PL, logits_to_keep=answer.shape[1] + 1).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), answer[0].repeat(len(rows))).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(policy.eval(), folder)
