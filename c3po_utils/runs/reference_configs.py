"""JSON configs of the reference implementation as a run's YAML: each key is mapped, or named with why it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from c3po_utils.evaluation.reference import PROMPTED
from c3po_utils.feedback import foreign
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import nearest
from c3po_utils.sampling.reference import MAX_NEW_TOKENS
from c3po_utils.training import TrainSettings
from c3po_utils.training import reference as trained

TOGETHER = "https://api.together.xyz/v1"
ROLES = {
    "category_model": "sample.category_model",
    "prompt_model": "sample.prompt_model",
    "completion_model": "sample.completion_model",
    "train_model": "sample.model",
    "qualitative_eval_model": "evaluate.judge_model",
}
NAMED = "feedbacks are chosen by name, in `feedbacks`"
SECTIONS = ("model_args", "sample_args", "training_args", "eval_args")
MAPPED = {
    "sample_args.prompts_per_category": "sample.prompts_per_category",
    "sample_args.num_prompts": "sample.categories, times prompts_per_category",
    "sample_args.num_negative_prompts": "sample.categories: as many as in scope",
    "sample_args.num_general_prompts": "sample.categories: as many as in scope",
    "eval_args.method": "methods",
    "eval_args.eval_answer_quality": "evaluate.judge_helpfulness",
}
EVERY = "every test prompt is scored"
NOT_APPLICABLE = {
    **dict.fromkeys(("sample_args.scope", "sample_args.type", "sample_args.num_feedbacks"), NAMED),
    "sample_args.train_test_split": "whole categories are tested on, three of ten",
    "sample_args.overwrite": "a finished stage is kept while its inputs are the same",
    **dict.fromkeys((f"eval_args.num_{kind}prompts" for kind in ("", "negative_", "general_")), EVERY),
}
FIXED = {  # what the reference does whatever the file says
    "strategy": "revise", "best_of": 0, "system_prompt": "", "max_new_tokens": MAX_NEW_TOKENS, "allow_short": True,
}  # fmt: skip


def is_config(data: Any) -> bool:
    """Whether a JSON file's content is a config."""
    return isinstance(data, dict) and bool({"model_args", "training_args", "sample_args"} & data.keys())


@dataclass
class Converted:
    """A run's settings, where each key of the config went, which are not applicable and why, and what is wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_yaml(self, name: str) -> str:
        lines = [f"# From {name!r}, by `c3po import`: {len(self.mapped)} keys are mapped,"]
        lines.append(f"# and {len(self.not_applicable)} are not applicable:")
        lines += [f"#   {key}: {reason}" for key, reason in sorted(self.not_applicable.items())]
        lines += ["# The others:", *(f"#   {key}: {where}" for key, where in sorted(self.mapped.items()))]
        return "\n".join(lines) + "\n" + yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=110)


def convert(data: Mapping[str, Any], run: str, feedback_sets: Sequence[str] = ()) -> Converted:
    """The settings of a run from a config. Nothing is raised: see `problems`."""
    made = Converted()
    made.problems += [foreign.unknown(key, SECTIONS) for key in data.keys() - set(SECTIONS)]
    sections = {}
    for name in SECTIONS:
        sections[name] = data.get(name, {})
        if not isinstance(sections[name], dict):
            made.problems.append(f"{name}: expected a mapping, found {foreign.short(sections[name])}")
            sections[name] = {}
    sample, evaluate = _models(sections["model_args"], made)
    sample |= _amounts(sections["sample_args"], made)
    named = feedback_sets[0] if len(feedback_sets) == 1 else list(feedback_sets)
    made.values = {"run": run, **({"feedback_set": named} if named else {})}
    training = _training(sections["training_args"], made)
    evaluate |= _evaluation(sections["eval_args"], training, made)
    made.values |= {"sample": {**sample, "options": dict(FIXED)}, **training, "evaluate": evaluate}
    if not made.problems:
        RunConfig.model_validate(made.values)
    return made


def _models(given: Mapping[str, Any], made: Converted) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of 01_sample and of 03_evaluate that name models."""
    made.problems += [foreign.unknown(f"model_args.{key}", ROLES) for key in given.keys() - ROLES.keys()]
    names = {role: _model(role, given[role], made) for role in ROLES if role in given}
    if names.get("completion_model") == names.get("train_model"):
        names.pop("completion_model", None)  # pi_0 answers here
    sample = {ROLES[role].partition(".")[2]: name for role, name in names.items() if role != "qualitative_eval_model"}
    judge = names.get("qualitative_eval_model")
    return sample, {"judge_model": judge} if judge else {}


def _model(role: str, given: Any, made: Converted) -> str:
    place = f"model_args.{role}"
    known = {
        "model_name_or_path": "",
        "platform": "huggingface",
        "dtype": "bf16",
        "load_in_4bit": False,
        "load_in_8bit": False,
    }
    if not isinstance(given, dict):
        made.problems.append(f"{place}: expected a mapping, found {foreign.short(given)}")
        return ""
    made.problems += [foreign.unknown(f"{place}.{key}", known) for key in given.keys() - known.keys()]
    made.mapped |= {f"{place}.{key}": ROLES[role] for key in given.keys() & known.keys()}
    values = known | given
    name, platform = values["model_name_or_path"], values["platform"]
    if not isinstance(name, str) or not name:
        made.problems.append(f"{place}.model_name_or_path: expected a model's name, found {foreign.short(name)}")
        return ""
    if values["dtype"] != "bf16":
        made.mapped.pop(f"{place}.dtype")
        made.not_applicable[f"{place}.dtype"] = "weights are loaded in bfloat16"
    if values["load_in_4bit"] and values["load_in_8bit"]:
        made.problems.append(f"{place}: expected 4 or 8 bits, found both")
    if role == "train_model" and platform == "together":  # as one config of the authors' has it
        made.mapped.pop(f"{place}.platform")
        made.not_applicable[f"{place}.platform"] = "training needs the weights: the name is taken for a Hugging Face id"
        platform = "huggingface"
    bits = "@4bit" if values["load_in_4bit"] else "@8bit" if values["load_in_8bit"] else ""
    platforms = {"openai": f"openai:{name}", "together": f"openai:{name}@{TOGETHER}", "huggingface": f"{name}{bits}"}
    valid = list(platforms) if role != "train_model" else ["huggingface"]
    if platform not in valid:
        made.problems.append(f"{place}.platform: expected a known one ({nearest(platform, valid)}), found {platform!r}")
        return ""
    return platforms[platform]


def _listed(section: str, given: Mapping[str, Any], made: Converted) -> Iterator[str]:
    """The keys of a section that are mapped; the others are noted."""
    valid = {key.partition(".")[2] for key in (*MAPPED, *NOT_APPLICABLE) if key.startswith(f"{section}.")}
    for name in given:
        key = f"{section}.{name}"
        if key in MAPPED:
            made.mapped[key] = MAPPED[key]
            yield name
        elif key in NOT_APPLICABLE:
            made.not_applicable[key] = NOT_APPLICABLE[key]
        else:
            made.problems.append(foreign.unknown(key, valid))


def _amounts(given: Mapping[str, Any], made: Converted) -> dict[str, Any]:
    """Categories and prompts of each kind in each; the reference's own defaults where the file says nothing."""
    known = {"prompts_per_category": 16, "num_prompts": 32, "num_negative_prompts": 32, "num_general_prompts": 32}
    values = known | {name: given[name] for name in _listed("sample_args", given, made)}
    for name, value in values.items():
        if type(value) is not int or value < 1:
            made.problems.append(f"sample_args.{name}: expected 1 or more, found {foreign.short(value)}")
            return {}
    each, wanted = values.pop("prompts_per_category"), values["num_prompts"]
    made.problems += [
        f"sample_args.{name}: expected as many as num_prompts, {wanted}, found {value}"
        for name, value in values.items()
        if value != wanted
    ]
    return {"categories": max(2, math.ceil(wanted / each)), "prompts_per_category": each}


def _training(given: Mapping[str, Any], made: Converted) -> dict[str, Any]:
    """`methods`, `train`, `train_methods`, `two_feedbacks_how`."""
    for key in given:
        if key in trained.NOT_APPLICABLE:
            made.not_applicable[f"training_args.{key}"] = trained.NOT_APPLICABLE[key]
        else:
            made.mapped[f"training_args.{key}"] = f"train, {trained.MAPPED.get(key, trained.PASSED)}"
    try:
        train, problems = trained.train_parameters(given)
        method, settings = trained.method_of(given)
        start, start_settings = trained.starting_from(given)
    except ValueError as error:
        made.problems += [f"training_args.{problem}" for problem in str(error).split("; ")]
        return {}
    made.problems += [f"training_args.{problem}" for problem in problems]
    try:
        TrainSettings(method, **train, method_settings=settings)
    except ValueError as error:
        made.problems.append(f"training_args: {error}")
    for problem in problems:
        made.mapped.pop(f"training_args.{problem.partition(':')[0]}", None)
    own = {name: {"method_settings": each} for name, each in ((start, start_settings), (method, settings)) if each}
    joint = {"two_feedbacks_how": ["joint"]} if given.get("multi_feedback_training") else {}
    return {"methods": [name for name in (start, method) if name], "train": train, "train_methods": own, **joint}


def _evaluation(given: Mapping[str, Any], training: dict[str, Any], made: Converted) -> dict[str, Any]:
    """Parameters of 03_evaluate; a prompted method takes the trained one's place."""
    values = {name: given[name] for name in _listed("eval_args", given, made)}
    method = values.get("method", "trained")
    if method in PROMPTED:
        training["methods"] = [PROMPTED[method]]
        reason = f"nothing is trained, as eval_args.method is {method}"
        made.not_applicable |= {key: reason for key in made.mapped if key == "training_args.algo"}
        made.mapped.pop("training_args.algo", None)
    elif method != "trained":
        valid = ("trained", *PROMPTED)
        made.problems.append(f"eval_args.method: expected a known method ({nearest(method, valid)}), found {method!r}")
    helpful = values.get("eval_answer_quality", True)
    if not isinstance(helpful, bool):
        made.problems.append(f"eval_args.eval_answer_quality: expected true or false, found {foreign.short(helpful)}")
    return {"judge_helpfulness": helpful}


def keys_table() -> str:
    """Where each key goes as a Markdown table; feedback/README.md shows it."""
    rows = {f"model_args.{role}": where for role, where in ROLES.items()} | MAPPED
    rows |= {f"training_args.{key}": where for key, where in trained.MAPPED.items()}
    rows["training_args.*"] = trained.PASSED
    lines = ["| there | here |", "|---|---|", *(f"| `{key}` | {where} |" for key, where in rows.items())]
    reasons: dict[str, list[str]] = {}
    others = {f"training_args.{key}": reason for key, reason in trained.NOT_APPLICABLE.items()}
    for key, reason in (NOT_APPLICABLE | others).items():
        reasons.setdefault(reason, []).append(f"`{key}`")
    return "\n".join([*lines, *(f"| {', '.join(keys)} | – {reason} |" for reason, keys in reasons.items()), ""])
