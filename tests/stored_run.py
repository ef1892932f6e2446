"""Run folders made in a moment: sampled rows and random adapters, as notebooks 01 and 02 would have left them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model

from c3po_utils import engine
from c3po_utils.engine.hidden_states import Reading
from c3po_utils.engine.models import load_model
from c3po_utils.feedback import Feedback
from c3po_utils.runs.files import read_json, write_json, write_jsonl
from c3po_utils.sampling import load_rows, stored_settings
from c3po_utils.sampling.settings import SampleSettings
from c3po_utils.training import gate, probe
from c3po_utils.training.adapters import lora_config, save_adapter

GENERAL_TESTS = {"general/0", "general/1"}
RECORD = {
    "content": "Be short about tea.", "domain": "tea", "effect": "the answer is short", "source": "human",
    "kind": "style", "metric": {"name": "words_at_most", "value": 3},
    "demonstrations": [{"prompt": "Is tea hot?", "answer": "Yes."}],
}  # fmt: skip


def store_sample(run: Path, id: str, model: str, general_tests=GENERAL_TESTS, **changes) -> list[dict]:
    """Two categories of two prompts for training, one for testing, and four general prompts."""
    settings = {
        "model": model, "strategy": "demonstrate", "best_of": 1, "categories": 3, "prompts_per_category": 2,
        "system_prompt": "Be brief.", "max_new_tokens": 6, "seed": 0,
    }  # fmt: skip
    rows = [
        _row(f"{id}/{split}/{name}/{n}", id, split, name, "test" if name == "price" else "train")
        for split in ("in_scope", "near_scope")
        for name in ("colour", "taste", "price")
        for n in range(2)
    ]
    for n in range(4):
        name = f"general/{n}"
        rows.append(_row(name, id, "out_of_scope", "chat", "test" if name in general_tests else "train"))
    folder = run / "sample" / id
    write_jsonl(folder / "rows.jsonl", rows)
    identity = {"settings": asdict(SampleSettings(**settings | changes)), "feedback": RECORD | {"id": id}}
    write_json(folder / "manifest.json", {"status": "done", "identity": identity})
    return rows


def sampled_for(run: Path, feedback: Feedback, **changes) -> Feedback:
    """Let the run's sample have been made for this record, and with other settings."""
    path = run / "sample" / feedback.id / "manifest.json"
    manifest = read_json(path)
    manifest["identity"]["feedback"] = feedback.model_dump(mode="json", exclude={"examples"})
    manifest["identity"]["settings"] |= changes
    write_json(path, manifest)
    return feedback


def _row(name: str, feedback: str, split: str, category: str, fold: str) -> dict:
    row = {
        "id": name, "feedback": feedback, "split": split, "category": category, "fold": fold,
        "prompt": f"What about {name}?", "baseline": f"It is {category}.", "baseline_status": "ok",
    }  # fmt: skip
    return row | ({"revised": "Yes, it is.", "revised_status": "ok"} if split == "in_scope" else {})


def random_adapter(model: str, name: str = "default", seed: int = 0, policy=None, std: float = 0.2, **lora):
    """A model with a LoRA adapter that changes every layer; on top of those that `policy` has, if given."""
    torch.manual_seed(seed)
    config = lora_config(**{"r": 3, "alpha": 6, "dropout": 0.0} | lora)
    if policy is None:
        policy = get_peft_model(load_model(model, dtype=torch.float32), config, adapter_name=name)
    else:
        policy.add_adapter(name, config)
    for key, parameter in policy.named_parameters():
        if "lora_" in key and f".{name}." in key:
            parameter.data.normal_(std=std)
    return policy.eval()


def store_trained(run: Path, id: str, method: str, model: str, std: float = 0.2, **settings) -> Path:
    """A random adapter of a finished training; `settings` are those of TrainSettings."""
    folder = store_adapter(run, id, method, model, std=std)
    settings = {"learning_rate": 1e-3, "epochs": 1.0, "batch_size": 3, "seed": 0, "lora": {"r": 3}} | settings
    write_json(folder / "manifest.json", {"status": "done", "identity": {"settings": {"method": method} | settings}})
    return folder


def store_adapter(run: Path, id: str, method: str, model: str, seed: int = 0, **lora) -> Path:
    folder = run / "train" / id / method
    save_adapter(random_adapter(model, seed=seed, **lora), folder)
    return folder


def store_playground(run: Path, model: str) -> Path:
    """A run with two sampled feedbacks, `short` and `shouted`; two adapters of the first, one of the second."""
    for id in ("short", "shouted"):
        store_sample(run, id, model)
    for seed, (id, method) in enumerate((("short", "c3po"), ("short", "scd"), ("shouted", "c3po"))):
        store_adapter(run, id, method, model, seed)
    return run


def store_gate(run: Path, id: str, opens: Callable[[dict], bool]) -> None:
    """A gate for the adapter of SCD that opens at the prompts of the run whose rows `opens` accepts."""
    settings = stored_settings(run, id)
    model, tokenizer = engine.shared_model(settings.model), engine.load_tokenizer(settings.model)
    rows = [row for sample in sorted((run / "sample").iterdir()) for row in load_rows(run, sample.name)]
    wanted = [bool(opens(row)) for row in rows]
    if len(set(wanted)) == 1:
        width = model.config.hidden_size
        own = probe.Probe(np.zeros(width), np.zeros(width), np.ones(width), 1.0 if wanted[0] else -1.0)
    else:
        prompts = [gate.prompt_ids(tokenizer, row["prompt"], settings.system_prompt) for row in rows]
        read = gate.features(model, prompts, [Reading()])[0]
        own = probe.fit_probe(read, ["in_scope" if yes else "near_scope" for yes in wanted], 1e-6)
        assert ((own(read) > 0) == wanted).all()
    card = {"gated": "scd", "base": settings.model}
    gate.save_gate(gate.Gate(own, (Reading(),), 0.0), run / "train" / id / "scd_gated", model, card)
