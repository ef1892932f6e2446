"""The reference implementation's training arguments: which method and settings they come to."""

from __future__ import annotations

import pytest

from c3po_utils.training.limits import REFUSED_ARGUMENTS
from c3po_utils.training.methods import get_method
from c3po_utils.training.reference import DEFAULTS, MAPPED, NOT_APPLICABLE, method_of, starting_from, train_parameters

EQ_5 = {
    "algo": "lcdpo", "lcdpo_temp": 1, "lcdpo_lambda": 0, "lcdpo_sigma_soft": 0.2, "lcdpo_sigma_hard": 0.1,
    "max_prompts": None,
}  # fmt: skip
ALONE = {"negative_prompt_ratio": 0, "general_prompt_ratio": 0}


@pytest.mark.parametrize(
    ("arguments", "method", "settings"),
    [
        (EQ_5, "c3po", {}),
        (EQ_5 | {"dpo_beta": 0.05, "max_prompts": 9}, "c3po", {"beta": 0.05, "max_prompts": 9}),
        (EQ_5 | {"lcdpo_sigma_hard": 0}, "c3po_no_near", {}),
        (EQ_5 | {"lcdpo_sigma_soft": 0}, "c3po_no_out", {}),
        (EQ_5 | {"lcdpo_lambda": 1}, "c3po_kl", {"kl_summed": True}),
        (EQ_5 | {"lcdpo_lambda": 0.5, "lcdpo_avg_kl": True, "lcdpo_temp": 5, "lcdpo_l2": True}, "c3po_kl",
         {"kl": 0.5, "kl_temperature": 5.0, "kl_squared": True}),
        (EQ_5 | {"use_base_prefix": "sft_weighted-0.5"}, "c3po_after_scd_negatives", {}),
        ({"algo": "dpo", "filter_relevant_feedback": True, **ALONE}, "dpo", {"only_passing": True}),
        ({"algo": "dpo"}, "dpo_negatives", {"near_ratio": 0.2, "out_ratio": 0.2}),
        ({"algo": "dpo", "use_base_prefix": "sft-0-hard-0-soft", **ALONE}, "dpo_after_scd", {}),
        ({"algo": "sft", **ALONE}, "scd", {}),
        ({"algo": "sft", "negative_prompt_ratio": 0.5, "general_prompt_ratio": 0.5}, "scd_mixed", {}),
        ({"algo": "sft_weighted", "lcdpo_sigma_soft": 0.5, "lcdpo_sigma_hard": 0.5}, "scd_negatives", {}),
    ],
)  # fmt: skip
def test_arguments_come_to_the_nearest_method(arguments, method, settings):
    assert method_of(arguments) == (method, settings)
    get_method(method, **settings)  # raises for what it cannot have


def test_a_training_that_starts_from_another_names_it():
    assert starting_from({"use_base_prefix": "sft-0.5-hard-0.5-soft"}) == ("scd_mixed", {})
    assert starting_from({"use_base_prefix": "sft"}) == ("scd_mixed", {"near_ratio": 0.2, "out_ratio": 0.1})
    assert starting_from({}) == ("", {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"algo": "lcpdo"}, "algo: expected a known algorithm (did you mean 'lcdpo'?), found 'lcpdo'"),
        ({"algo": ["dpo"]}, "algo: expected a text, found ['dpo']"),
        ({"dpo_beta": float("nan")}, "dpo_beta: expected a number, found nan"),
        ({"dpo_beta": True, "lora_r": "64"}, "lora_r: expected a whole number, found '64'; dpo_beta: expected"),
        ({"lora_exclude": "lm_head"}, "lora_exclude: expected a list of texts, found 'lm_head'"),
        ({"use_base_prefix": "dpo-0.1"}, "use_base_prefix: expected the name of a training with sft"),
        (EQ_5 | {"lcdpo_lambda": 2}, "setting 'kl': expected a number less than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(arguments, says):
    with pytest.raises(ValueError) as told:
        method_of(arguments)
    assert says in str(told.value)


def test_parameters_of_the_notebook():
    given = {
        "lora_enable": True, "lora_r": 64, "lora_alpha": 128, "lora_exclude": ["lm_head", "gate"], "bf16": True,
        "num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "optim": "adafactor",
        "warmup_ratio": 0.05, "lr_scheduler_type": "cosine", "report_to": "wandb",
    }  # fmt: skip
    assert train_parameters(given) == (
        {
            "learning_rate": 5e-5, "epochs": 1.0, "batch_size": 16, "seed": 42,
            "lora": {"r": 64, "alpha": 128, "dropout": 0.05, "exclude_modules": ["gate"]},
            "training_arguments": {
                "bf16": True, "lr_scheduler_type": "cosine", "optim": "adafactor", "warmup_steps": 0.05
            },
        },
        [],
    )  # fmt: skip
    _, problems = train_parameters({"bf17": True, "warmup_stepz": 3, "lora_bias": "all"})
    assert problems == [
        "lora_enable: expected true, as only adapters are trained here; found false, or nothing",
        "lora_bias: expected none, as biases cannot be trained: only the adapter's own tensors are stored and proved;"
        " found 'all'",
        "bf17: expected a known key (did you mean 'bf16'?)",
        "warmup_stepz: expected a known key (did you mean 'warmup_steps'?)",
    ]


def test_every_key_is_in_one_table():
    assert not MAPPED.keys() & NOT_APPLICABLE.keys()
    assert DEFAULTS.keys() <= MAPPED.keys() | {"lr_scheduler_type"}
    assert not (MAPPED.keys() | NOT_APPLICABLE.keys()) & REFUSED_ARGUMENTS.keys()
