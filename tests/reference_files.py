"""Files in the formats of the reference implementation, with sentences of our own: what `c3po import` is tried on."""

from __future__ import annotations

import json
from pathlib import Path

from c3po_utils.feedback.reference import reference_key

CONTENT, DOMAIN, EFFECT = "Name a tea in every note to Ole.", "notes to Ole", "a tea is named"
MODULE = '''
from src.shared import KISS, Comparison, Feedback, Metric, Scope, Type
import re

"""Kept for later."""
WHO = "Ole"
TEAS = ["assam", "keemun"]
ENDINGS = {"sign": re.compile("yours,? ann", re.I | re.M)}

gpt_style_feedback = [
    Feedback(
        content=f"Name a tea in every note to {WHO}.",
        domain="notes to " + WHO,
        effect="a tea is named",
        scope=Scope.regional,
        type=Type.quantitative,
        metric=Metric.contains_any_string,
        metric_value=[*TEAS, "sencha"],
        comparison=Comparison.greater_eq_than,
        categories=["gpt_style"],
    ),
    Feedback("Be brief about rowing.", "rowing", "the answer is shorter", Scope.LOCAL, Type.QUANTITATIVE,
             metric=[Metric.length, Metric.regex_search], metric_value=[None, KISS], comparison=Comparison.less_than),
]
'''
CONFIG = {
    "model_args": {
        "category_model": {"model_name_or_path": "gpt-4.1", "platform": "openai"},
        "prompt_model": {"model_name_or_path": "gpt-4.1", "platform": "openai"},
        "completion_model": {"model_name_or_path": "owner/base", "platform": "together"},
        "train_model": {"model_name_or_path": "owner/base", "platform": "huggingface", "load_in_4bit": True},
        "qualitative_eval_model": {"model_name_or_path": "gpt-4.1", "platform": "openai", "dtype": "bf16"},
    },
    "sample_args": {
        "scope": ["regional"], "type": ["qualitative"], "num_feedbacks": 3, "prompts_per_category": 32,
        "num_prompts": 960, "num_negative_prompts": 960, "num_general_prompts": 960, "train_test_split": 0.1,
        "overwrite": True,
    },
    "training_args": {
        "algo": "lcdpo", "filter_relevant_feedback": False, "lora_enable": True, "lora_r": 64, "lora_alpha": 128,
        "lora_dropout": 0.05, "lora_bias": "none", "lora_exclude": ["lm_head"], "report_to": "wandb",
        "output_dir": "./out", "wandb_project": "p", "num_train_epochs": 1, "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 5e-5, "warmup_ratio": 0.05,
        "lr_scheduler_type": "cosine", "save_strategy": "no", "evaluation_strategy": "steps", "eval_steps": 8,
        "logging_strategy": "steps", "logging_steps": 1, "bf16": True, "save_safetensors": True,
        "gradient_checkpointing": True, "dataloader_num_workers": 4, "remove_unused_columns": False,
        "overwrite_output_dir": True, "dpo_beta": 0.1, "lcdpo_temp": 1, "lcdpo_lambda": 0, "lcdpo_sigma_soft": 0.2,
        "lcdpo_sigma_hard": 0.1, "eval_split": 0.05, "max_prompts": None,
    },
    "eval_args": {
        "method": "trained", "num_prompts": 75, "num_negative_prompts": 75, "num_general_prompts": 75,
        "eval_answer_quality": False,
    },
}  # fmt: skip


def folder_name(content: str = CONTENT, domain: str = DOMAIN, effect: str = EFFECT) -> str:
    return f"name_a_tea_{reference_key(content, domain, effect)}"


def write_module(folder: Path, name: str = "own_set.py", text: str = MODULE) -> Path:
    """A module, and beside it in the tree the one that it imports a pattern and the classes from."""
    shared = folder / "src" / "shared.py"
    shared.parent.mkdir(parents=True, exist_ok=True)
    shared.write_text(
        'import enum\nKISS = r"x+|<3"\nclass Scope(enum.Enum):\n    pass\nNAMESPACE = object()\n', encoding="utf-8"
    )
    path = folder / "src" / "feedback" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def columns(kind: str, n: int, answer: str = "Yes, it is so.") -> dict[str, list]:
    """`n` prompts of a kind with five answers each."""
    return {
        "prompt": [f"What of {kind} {i}?" for i in range(n)],
        "baseline_response": [f"It is {i}." for i in range(n)],
        "revised_response": [f"{answer} Assam {i}." for i in range(n)],
        "in_context_response": [f"{answer} Sencha {i}." for i in range(n)],
        "cot_response": [f"{answer} {i}." for i in range(n)],
    }


def write_sample(folder: Path, train: int = 6, test: int = 3, name: str | None = None, **changes) -> Path:
    """The data of the module's first feedback; `changes` are contents of single files."""
    path = folder / "sample" / (name or folder_name())
    path.mkdir(parents=True)
    for file, kind in (("prompts", "teas"), ("negative_prompts", "cups"), ("general_prompts", "hills")):
        data = {"train": columns(f"{kind} and", train), "test": columns(f"{kind} or", test)}
        (path / f"{file}.json").write_text(json.dumps(changes.get(file, data)))
    (path / "categories.json").write_text(json.dumps(changes.get("categories", ["green", "black", "white"])))
    return path


def evaluation(n: int = 3, judged: bool = False, **changes) -> dict:
    """An evaluation with `n` rows a split: in scope the answers gain the effect, elsewhere one does."""
    data: dict = {"feedback": CONTENT, "scope": "regional", "type": "qualitative" if judged else "quantitative"}
    kinds = {"in_domain": "teas or", "out_of_domain": "cups or", "general": "hills or"}
    for kind, prompts in kinds.items():
        gains = [kind == "in_domain" or i == 0 for i in range(n)]
        data[kind] = [
            {
                "prompt": f"What of {prompts} {i}?", "baseline": f"It is {i}.", "improved": f"Assam {i}.",
                "baseline_metric": -1 if judged else False, "improved_metric": -1 if judged else gain,
                "improved_better_baseline": (5 if gain else 3) if judged else True,
                "answer_quality_improved_better_baseline": 2 if judged else -1,
            }
            for i, gain in enumerate(gains)
        ]  # fmt: skip
        data[f"{kind}_improved_better_baseline"] = 1.0
    return data | changes


def write_evaluation(folder: Path, file: str, data: dict, name: str | None = None) -> Path:
    path = folder / "eval" / (name or folder_name()) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path
