"""GGUF files: llama.cpp's own server answers from them as the model does here, and refusals of what is not known."""

from __future__ import annotations

import json

import gguf
import httpx2
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from c3po_utils.chat import Sampling, ask, request
from c3po_utils.chat.local import LocalChat
from c3po_utils.engine import load_model, load_tokenizer
from c3po_utils.engine.models import embedded_gguf
from c3po_utils.training.export import Trained, export_merged
from c3po_utils.training.gguf_file import pre_tokenizer, write_gguf
from tests.servers import LlamaServer
from tests.stored_run import store_sample, store_trained
from tests.tiny import save_tiny, tiny_config, tiny_tokenizer

LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
CLOSE = {"f16": 0.002, "bf16": 0.03, "q8_0": 0.1}
TEXT = "<|start|>user\nIs 1984's tea hot?\n\n  We'll see, naïvely 🙂.<|end|>\n<|start|>assistant\n"


def completed(url: str, text: str, n: int) -> dict:
    body = {"prompt": text, "n_predict": n, "temperature": 0, "n_probs": 5, "return_tokens": True, "ignore_eos": True}
    return httpx2.post(url.replace("/v1", "/completion"), json=body, timeout=60).raise_for_status().json()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("changes", [{}, {"rope_parameters": LLAMA_3_ROPE, "head_dim": 16, "attention_bias": True}])
def test_llama_cpp_computes_what_the_model_computes(tmp_path, kind, changes):
    """The next token's log-probabilities after some 60 tokens: order of heads, rotation, tokenizer all have a say."""
    folder = save_tiny(tmp_path / "tiny", tiny_config(400, **changes))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter.data)
    server = LlamaServer(write_gguf(model, tokenizer, tmp_path / "tiny.gguf", kind))
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    found = completed(server.url, TEXT, 1)
    assert found["tokens_evaluated"] == ids.shape[1]
    with torch.no_grad():
        wanted = model(ids).logits[0, -1].log_softmax(-1)
    for one in found["completion_probabilities"][0]["top_logprobs"]:
        assert one["logprob"] == pytest.approx(wanted[one["id"]].item(), abs=CLOSE[kind])


def test_transformers_reads_back_the_same_weights(tmp_path, tiny_folder):
    model = load_model(str(tiny_folder), device="cpu")
    write_gguf(model, load_tokenizer(str(tiny_folder)), tmp_path / "tiny.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16).state_dict()
    for key, values in model.state_dict().items():
        assert torch.equal(read[key], values), key


def test_what_is_not_known_is_refused(tmp_path, tiny_folder):
    model, tokenizer = load_model(str(tiny_folder), device="cpu"), tiny_tokenizer()
    with pytest.raises(ValueError, match=r"weights as 'q8' \(did you mean 'q8_0'\?\)"):
        write_gguf(model, tokenizer, tmp_path / "x.gguf", "q8")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    other = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=400, num_key_value_heads=2, **small))
    with pytest.raises(ValueError, match=r"expected a Llama model, found 'qwen2'.*convert_hf_to_gguf.py"):
        write_gguf(other, tokenizer, tmp_path / "x.gguf")
    model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4}
    with pytest.raises(ValueError, match=r"rotary embeddings.*found.*yarn"):
        write_gguf(model, tokenizer, tmp_path / "x.gguf")


def test_pre_tokenizers_go_by_what_they_do():
    tokenizer = tiny_tokenizer()
    assert pre_tokenizer(tokenizer) == "gpt-2"
    from tokenizers import pre_tokenizers

    cuts = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    assert pre_tokenizer(tokenizer) == "smollm"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"cuts text as gpt-2, smollm, llama-bpe do; found BPE.*Whitespace"):
        pre_tokenizer(tokenizer)


@pytest.mark.embedded
@pytest.mark.slow
def test_the_embedded_models_file_is_its_own_again(tmp_path):
    """Every field but names of people's, and every weight: as its own GGUF file has them, rounded to bf16."""
    model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")
    made = gguf.GGUFReader(write_gguf(model, tokenizer, tmp_path / "x.gguf", licence="apache-2.0", pre="smollm"))
    own = gguf.GGUFReader(embedded_gguf())
    fields = {name: field.contents() for name, field in own.fields.items() if name.startswith(("llama.", "tokenizer."))}
    fields.pop("tokenizer.ggml.padding_token_id")  # not the end of a turn, here
    assert len(fields) > 15
    assert {name: made.fields[name].contents() for name in fields} == fields
    tensors = {tensor.name: tensor for tensor in made.tensors}
    assert {tensor.name for tensor in own.tensors} == set(tensors)
    for tensor in own.tensors[:12]:
        there, here = (gguf.dequantize(one.data, one.tensor_type) for one in (tensor, tensors[tensor.name]))
        assert np.array_equal(torch.tensor(there).bfloat16().float().numpy(), here), tensor.name


@pytest.mark.embedded
@pytest.mark.slow
def test_a_llama_cpp_server_answers_as_the_merged_model_does(tmp_path):
    """An adapter merged into the embedded model: greedy answers begin with the same ten tokens and more."""
    store_sample(tmp_path, "tea", "smollm2-135m")
    store_trained(tmp_path, "tea", "c3po", "smollm2-135m", std=0.05)
    file = tmp_path / "model.gguf"
    folder = export_merged(Trained.find(tmp_path), tmp_path / "out", gguf=file)
    prompts = [
        "What is the capital of France?",
        "Name three colours.",
        "Write one sentence about tea.",
        "What is 17 + 25?",
    ]
    chat = LocalChat(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    requests = [request(text, text, system="Be brief.") for text in prompts]
    answers = ask(chat, requests, Sampling(temperature=0, max_new_tokens=24))
    server = LlamaServer(file)
    for asked in requests:
        body = {"messages": list(asked.messages), "temperature": 0, "max_tokens": 24}
        said = httpx2.post(f"{server.url}/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]
        ids = [chat.tokenizer(text.strip()).input_ids for text in (said["content"], answers[asked.id].text)]
        assert ids[0][:10] == ids[1][:10], json.dumps([said["content"], answers[asked.id].text])
