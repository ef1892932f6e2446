"""Training arguments of the reference implementation as a method, its settings, and parameters of 02_train."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from c3po_utils.feedback import foreign
from c3po_utils.runs import nearest
from c3po_utils.training import limits
from c3po_utils.training.methods import METHODS, Method

# What the reference, and transformers below it, takes where a file says nothing.
DEFAULTS: dict[str, Any] = {
    "algo": "dpo", "max_prompts": None, "negative_prompt_ratio": 0.2, "general_prompt_ratio": 0.2,
    "filter_relevant_feedback": False, "lora_enable": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    "lora_bias": "none", "lora_exclude": [], "dpo_beta": 0.1, "lcdpo_temp": 5.0, "lcdpo_lambda": 0.5,
    "lcdpo_sigma_soft": 0.3, "lcdpo_sigma_hard": 0.3, "lcdpo_avg_kl": False, "lcdpo_l2": False,
    "multi_feedback_training": False, "use_base_prefix": None, "learning_rate": 5e-5, "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "seed": 42, "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
}  # fmt: skip
KINDS = {
    type(None): "null or a value", float: "a number", int: "a whole number", bool: "true or false", str: "a text",
    list: "a list of texts",
}  # fmt: skip
ALGOS = ("dpo", "sft", "sft_weighted", "lcdpo")
PREFIX_RATIOS = {"hard": 0.2, "soft": 0.1}  # of near and general prompts, where the name of a training leaves them out
MAPPED = {  # key: where it goes; `+` joins several
    "algo": "the method",
    "negative_prompt_ratio": "near_ratio, with sft and dpo",
    "general_prompt_ratio": "out_ratio, with sft and dpo",
    "dpo_beta": "beta",
    "lcdpo_sigma_soft": "out_weight (lambda_1)",
    "lcdpo_sigma_hard": "near_weight (lambda_2)",
    "lcdpo_lambda": "kl",
    "lcdpo_temp": "kl_temperature",
    "lcdpo_avg_kl": "not kl_summed",
    "lcdpo_l2": "kl_squared",
    "max_prompts": "max_prompts",
    "filter_relevant_feedback": "only_passing",
    "use_base_prefix": "start",
    "lora_enable": "must be true",
    "lora_r": "lora: r",
    "lora_alpha": "lora: alpha",
    "lora_dropout": "lora: dropout",
    "lora_bias": "must be none",
    "lora_exclude": "lora: exclude_modules",
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size, times gradient_accumulation_steps",
    "gradient_accumulation_steps": "batch_size",
    "seed": "seed",
    "warmup_ratio": "training_arguments: warmup_steps",
    "multi_feedback_training": "two_feedbacks_how: [joint]",
}
FOLDERS, LOGS = "the run's folders are named by run, feedback and method", "every step is logged, to log.json"
CHECKPOINTS, WATCHED = "checkpoints are kept to resume, and no longer", "there is no validation while it trains"
NOT_APPLICABLE = {
    **dict.fromkeys(("output_dir", "overwrite_output_dir", "run_name"), FOLDERS),
    **dict.fromkeys(("report_to", "wandb_project", "logging_dir", "logging_strategy", "logging_steps"), LOGS),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_safetensors"), CHECKPOINTS),
    **dict.fromkeys(("evaluation_strategy", "eval_strategy", "eval_steps", "eval_split"), WATCHED),
    "per_device_eval_batch_size": WATCHED,
    "remove_unused_columns": "rows have the columns that are used",
    "lcdpo_custom_sft_loss": "the loss of an answer is always the mean over its own tokens",
}
PASSED = "training_arguments, under its own name"  # every other field of transformers.TrainingArguments


def method_of(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered method nearest to what the arguments ask for, and the settings in which it differs.

    Raises:
        ValueError: an unknown algorithm, or a value that no method can have.
    """
    given = _given(arguments)
    if given["algo"] not in ALGOS:
        raise ValueError(f"algo: expected a known algorithm ({nearest(given['algo'], ALGOS)}), found {given['algo']!r}")
    wanted = replace(
        Method(**_objective(given)),
        max_prompts=given["max_prompts"] or 0,
        only_passing=given["filter_relevant_feedback"],
        start=_start(given["use_base_prefix"])[0],
    )
    name = min(METHODS, key=lambda name: _distance(METHODS[name], wanted))
    registered = asdict(METHODS[name])
    return name, {key: value for key, value in asdict(wanted).items() if value != registered[key]}


def _distance(one: Method, other: Method) -> tuple[int, int]:
    """In how many settings only one of them is zero or empty; in how many they differ."""
    pairs = [(getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(Method)]
    return sum(bool(a) != bool(b) for a, b in pairs), sum(a != b for a, b in pairs)


def _objective(given: Mapping[str, Any]) -> dict[str, Any]:
    """Weights and ratios of the algorithm: what it does not use stays at the default."""
    mixed = {"near_ratio": given["negative_prompt_ratio"], "out_ratio": given["general_prompt_ratio"]}
    weights = {"near_weight": given["lcdpo_sigma_hard"], "out_weight": given["lcdpo_sigma_soft"]}
    alone, sft = {"near_weight": 0.0, "out_weight": 0.0}, {"preference": 0.0, "chosen_sft_weight": 1.0}
    if given["algo"] == "sft":
        return sft | alone | mixed
    if given["algo"] == "sft_weighted":
        return sft | weights
    beta = {"beta": given["dpo_beta"]}
    if given["algo"] == "dpo":
        return alone | mixed | beta
    share = {"kl": given["lcdpo_lambda"]}
    if share["kl"]:  # without it the divergence and its settings do not matter
        share |= {"kl_temperature": given["lcdpo_temp"]}
        share |= {"kl_summed": not given["lcdpo_avg_kl"], "kl_squared": given["lcdpo_l2"]}
    return weights | beta | share


def _start(prefix: Any) -> tuple[str, dict[str, Any]]:
    """The method whose adapter training starts from, and its settings, from how the name of that training begins."""
    if prefix is None:
        return "", {}
    match = re.match(r"(sft_weighted|sft|lcdpo|dpo)(?=-|$)", str(prefix))
    if not match or match[1] in ("dpo", "lcdpo"):
        raise ValueError(f"use_base_prefix: expected the name of a training with sft or sft_weighted, found {prefix!r}")
    if match[1] == "sft_weighted":
        return "scd_negatives", {}
    told = {key: float(value) for value, key in re.findall(r"-([\d.]+)-(hard|soft)\b", str(prefix))}
    ratios = PREFIX_RATIOS | told
    name, settings = method_of(
        {"algo": "sft", "negative_prompt_ratio": ratios["hard"], "general_prompt_ratio": ratios["soft"]}
    )
    return name, settings


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments over the defaults. Raises ValueError, with all of them, for values of another kind."""
    wrong = [
        f"{key}: expected {KINDS[type(default)]}, found {foreign.short(arguments[key])}"
        for key, default in DEFAULTS.items()
        if key in arguments and not _of_kind(arguments[key], default)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    numbers = {key: float(value) for key, value in arguments.items() if isinstance(DEFAULTS.get(key), float)}
    return DEFAULTS | dict(arguments) | numbers


def _of_kind(value: Any, default: Any) -> bool:
    match default:
        case None:
            return value is None or isinstance(value, str | int)
        case float():
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case list():
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is type(default)


def train_parameters(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Parameters of 02_train besides the method and its settings; and what is not understood, by key.

    The field names of transformers.TrainingArguments are looked up only where a key is in no table here.
    """
    given, problems = _given(arguments), []
    if not given["lora_enable"]:
        problems.append("lora_enable: expected true, as only adapters are trained here; found false, or nothing")
    lora = {"r": given["lora_r"], "alpha": given["lora_alpha"], "dropout": given["lora_dropout"]}
    if given["lora_bias"] != "none":
        problems.append(f"lora_bias: expected none, as {limits.REFUSED_LORA['bias']}; found {given['lora_bias']!r}")
    if excluded := [name for name in given["lora_exclude"] if name != "lm_head"]:  # the head is left out anyway
        lora["exclude_modules"] = excluded
    others = {"lr_scheduler_type": given["lr_scheduler_type"], "warmup_steps": given["warmup_ratio"]}
    for key in arguments.keys() - MAPPED.keys() - NOT_APPLICABLE.keys() - others.keys():
        others[key] = arguments[key]
    unknown = others.keys() - {"lr_scheduler_type", "warmup_steps"}
    if unknown:
        from transformers import TrainingArguments  # takes seconds

        known = {entry.name for entry in fields(TrainingArguments)}
        problems += [foreign.unknown(key, {*known, *DEFAULTS, *NOT_APPLICABLE}) for key in sorted(unknown - known)]
        others = {key: value for key, value in others.items() if key not in unknown or key in known}
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    train = {
        "learning_rate": given["learning_rate"], "epochs": given["num_train_epochs"], "batch_size": batch,
        "seed": given["seed"], "lora": lora, "training_arguments": dict(sorted(others.items())),
    }  # fmt: skip
    return train, problems


def starting_from(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method that is to be trained before, with its settings; "" where training starts from pi_0."""
    return _start(arguments.get("use_base_prefix"))
