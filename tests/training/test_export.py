"""Exported adapters and merged models: stock libraries get the same logits from them; what their card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_utils.engine import load_model
from c3po_utils.runs.files import write_json
from c3po_utils.training import adapters, model_card
from c3po_utils.training.export import Trained, export_adapter, export_merged
from tests.stored_run import store_sample, store_trained

IDS = torch.tensor([[5, 9, 200, 31, 7]])
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    run = tmp_path_factory.mktemp("run")
    store_sample(run, "tea", str(tiny_folder))
    store_trained(run, "tea", "c3po", str(tiny_folder), method_settings={"beta": 0.03})
    return run


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS.to(model.device)).logits.cpu()


def test_peft_loads_the_adapter_from_its_folder(run, tiny_folder, tmp_path):
    out = export_adapter(Trained.find(run), tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    plain = logits(base)
    loaded = logits(PeftModel.from_pretrained(base, out))
    wanted = logits(adapters.load_adapter(load_model(str(tiny_folder), dtype=torch.float32), run / "train/tea/c3po"))
    assert torch.equal(loaded, wanted)
    assert not torch.allclose(loaded, plain, atol=0.1)


def test_the_card_says_what_was_learned_from_what_and_how(run, tmp_path):
    text = (export_adapter(Trained.find(run), tmp_path / "out", scores="S_in 0.65") / "README.md").read_text()
    for said in (
        "> Be short about tea.", "**Where**: tea", "the answer is short", "(`in_scope`) | 4 | 2 |",
        "(`out_of_scope`) | 2 | 2 |",
        r"\beta=0.03", "- learning_rate: 0.001", "- r: 3", "- lora_alpha: 6", 'system prompt: "Be brief."', "S_in 0.65",
        "**Licence of the base**: not known", 'PeftModel.from_pretrained(model, "out")',
    ):  # fmt: skip
        assert said in text, said
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.library_name, data.base_model, data.license) == ("peft", None, None)
    assert "Not evaluated" in Trained.find(run).card("peft", "")
    assert model_card.CITATION in (ROOT / "README.md").read_text()


def test_the_base_is_called_what_others_call_it(tmp_path, monkeypatch):
    assert model_card.base_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model_card.licence("smollm2-135m") == "apache-2.0"
    assert model_card.base_name("some/model@4bit") == "some/model"
    (tmp_path / "config.json").write_text("{}")
    assert model_card.licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine")
    assert model_card.licence(str(tmp_path)) == "mit"
    assert "base_model: some/model\n" in model_card.head("some/model", "mit", "peft")


def test_a_merged_model_has_the_weights_that_answered(run, tiny_folder, tmp_path):
    out = export_merged(Trained.find(run), tmp_path / "out", gguf=tmp_path / "out" / "tea.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    with adapters.merged(load_model(str(tiny_folder)), run / "train/tea/c3po") as answered:
        assert torch.equal(logits(loaded), logits(answered))
    chat = [{"role": "user", "content": "Is tea hot?"}]
    spelled = [AutoTokenizer.from_pretrained(f).apply_chat_template(chat, tokenize=False) for f in (out, tiny_folder)]
    assert spelled[0] == spelled[1] != ""
    assert "library_name: transformers" in (out / "README.md").read_text()
    assert (out / "tea.gguf").stat().st_size > 10_000


def test_what_is_not_there_is_named(run, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"no trained feedback 'tee' \(did you mean 'tea'\?\)"):
        Trained.find(run, "tee")
    with pytest.raises(ValueError, match=r"no trained method 'c3p' \(did you mean 'c3po'\?\)"):
        Trained.find(run, "tea", "c3p")
    store_sample(tmp_path, "tea", str(tiny_folder))
    (store_trained(tmp_path, "tea", "dpo", str(tiny_folder)) / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter: run notebooks/02_train.ipynb"):
        Trained.find(tmp_path)


def test_of_a_gated_method_the_adapter_that_can_be_exported_is_named(run):
    folder = run / "train" / "tea" / "c3po_gated"
    write_json(folder / "gate.json", {"gated": "c3po"})
    write_json(folder / "manifest.json", {"status": "done", "identity": {}})
    with pytest.raises(ValueError, match=r"tea/c3po_gated: a gate decides at each prompt.*export .* 'c3po'"):
        Trained.find(run, "tea", "c3po_gated")
