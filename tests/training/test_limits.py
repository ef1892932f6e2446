"""Settings that cannot be meant are errors of one line, before a library of models is loaded."""

from __future__ import annotations

import subprocess
import sys
from math import inf, nan

import pytest
from peft import LoraConfig

from c3po_utils.training.adapters import lora_config, refuse_untrainable
from c3po_utils.training.data import DataError
from c3po_utils.training.finetune import train
from c3po_utils.training.methods import Method, get_method
from c3po_utils.training.stage import TrainSettings
from tests.tiny import tiny_tokenizer
from tests.token_rows import tiny_model, token_rows

FINE = {"method": "c3po", "learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "seed": 0}
LAYERS = ["q_proj", "v_proj"]

WRONG = [
    ({"learning_rate": nan}, "'learning_rate': expected a finite number, found nan"),
    ({"learning_rate": 0}, "'learning_rate': expected a number greater than 0, found 0"),
    ({"learning_rate": "1e-4"}, "'learning_rate': expected a valid number, found '1e-4'"),
    ({"epochs": 0.0}, "'epochs': expected a number greater than 0"),
    ({"epochs": -1}, "'epochs': expected a number greater than 0"),
    ({"epochs": inf}, "'epochs': expected a finite number"),
    ({"batch_size": 0}, "'batch_size': expected a number greater than or equal to 1"),
    ({"batch_size": 2.5}, "'batch_size': expected a valid integer, found 2.5"),
    ({"batch_size": True}, "'batch_size': expected a valid integer, found True"),
    ({"seed": -1}, "'seed': expected a number greater than or equal to 0"),
    ({"seed": 2**32}, "'seed': expected a number less than 4294967296"),
    ({"lora": {"r": -1}}, "LoRA setting 'r': expected a number greater than or equal to 1, found -1"),
    ({"lora": {"r": 0}}, "LoRA setting 'r'"),
    ({"lora": {"r": 1.5}}, "LoRA setting 'r': expected a valid integer, found 1.5"),
    ({"lora": {"r": nan}}, "LoRA setting 'r'"),
    ({"lora": {"alpha": nan}}, "LoRA setting 'alpha': expected a finite number"),
    ({"lora": {"dropout": 1}}, "LoRA setting 'dropout': expected a number less than 1"),
    ({"lora": {"drop_out": 0.1}}, "unknown LoRA setting 'drop_out' .did you mean 'dropout'"),
    ({"lora": {"lora_alpha": 3}}, "'lora_alpha': found 3; it is called alpha here"),
    ({"lora": {"init_lora_weights": "pissa"}}, "'init_lora_weights'"),
    ({"lora": {"modules_to_save": ["lm_head"]}}, "'modules_to_save'.*no gradient"),
    ({"lora": {"trainable_token_indices": [1]}}, "'trainable_token_indices'.*no gradient"),
    ({"lora": {"lora_bias": True}}, "'lora_bias': found True; .* cannot be merged"),
    ({"lora": {"bias": "all"}}, "'bias': found 'all'; biases cannot be trained"),
    ({"lora": {"target_modules": [*LAYERS, "model.embed_tokens"]}}, "'model.embed_tokens' cannot be trained.*gradient"),
    ({"lora": {"target_modules": "lm_head"}}, "'lm_head' cannot be trained"),
    ({"method_settings": {"beta": nan}}, "'c3po': method setting 'beta': expected a finite number"),
    ({"method_settings": {"c3po": {"near_weight": -0.5}}}, "'near_weight': expected a number greater than or equal"),
    ({"method_settings": {"c3pp": {"beta": 0.1}}}, "unknown method 'c3pp' .did you mean 'c3po'"),
    ({"method": "scd", "method_settings": {"chosen_sft_weight": 0.0}}, "all terms have the weight 0"),
    ({"training_arguments": {"learning_rate": 1e-3}}, "'learning_rate': set `learning_rate`, a setting of its own"),
    ({"training_arguments": {"beta": 0.2}}, "'beta': set it among the method's settings"),
    ({"training_arguments": {"weight_decay": nan}}, "'weight_decay': expected a finite number"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_what_cannot_be_meant_is_an_error_of_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        TrainSettings(**FINE | given)
    assert "\n" not in str(error.value)


def test_a_methods_unknown_setting_is_found_at_once():
    with pytest.raises(KeyError, match="did you mean 'beta'"):
        TrainSettings(**FINE, method_settings={"bta": 0.1})


def test_what_can_be_meant_is_kept_as_it_was_given():
    """Identities of finished runs are these values."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "use_dora": True, "target_modules": LAYERS}
    settings = TrainSettings(**FINE, lora=lora, method_settings={"c3po": {"beta": 1}, "dpo": {"beta": 2}})
    assert (settings.epochs, settings.lora, settings.method_settings) == (1, lora, {"beta": 1})
    assert get_method("c3po", beta=1) == Method(beta=1.0)


def test_settings_are_checked_without_a_library_of_models():
    script = f"""
import sys
from c3po_utils.training.stage import TrainSettings
try:
    TrainSettings(**{FINE}, lora={{"r": 0}})
except ValueError as error:
    print(error)
assert not {{"torch", "transformers", "peft", "trl"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LoRA setting 'r'")


@pytest.mark.parametrize("name", ["llama", "llama_bias"])  # heads of their own, and tied to the embeddings
@pytest.mark.parametrize("targets", [[*LAYERS, "embed_tokens"], [*LAYERS, "lm_head"], r".*(proj|tokens)"])
def test_trained_embeddings_and_heads_are_refused_before_training(tmp_path, name, targets):
    config = LoraConfig(r=2, target_modules=targets)
    with pytest.raises(ValueError, match=r"it matches '.*(embed_tokens|lm_head)'.*no gradient"):
        train(tiny_model(name), tiny_tokenizer(), token_rows(2), get_method("c3po"), tmp_path / "a", lora=config)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("given", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1]}, {"bias": "all"}])
def test_whole_modules_are_refused_before_training(tmp_path, given):
    config = LoraConfig(r=2, target_modules=LAYERS, **given)
    with pytest.raises(ValueError, match=f"'{next(iter(given))}'"):
        train(tiny_model(), tiny_tokenizer(), token_rows(2), get_method("c3po"), tmp_path, lora=config)


@pytest.mark.parametrize("targets", ["all-linear", LAYERS, r".*layers.*_proj"])
def test_layers_between_the_embeddings_and_the_head_may_be_chosen(targets):
    refuse_untrainable(tiny_model(), lora_config(r=2, target_modules=targets))


def test_a_token_row_beyond_the_context_is_named(tmp_path):
    model, rows = tiny_model(max_position_embeddings=24), token_rows(3)
    rows[1]["near_scope_ids"] = [5] * 30
    with pytest.raises(DataError, match=r"near_scope1: near_scope has 3\d tokens, more than the model's context of 24"):
        train(model, tiny_tokenizer(), rows, get_method("c3po"), tmp_path)
    with pytest.raises(DataError, match="no rows to train on"):
        train(model, tiny_tokenizer(), [], get_method("c3po"), tmp_path)
