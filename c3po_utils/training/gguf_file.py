"""A model as one GGUF file, which llama.cpp and what is built on it load: Llama models with byte-level BPE.

The format is the `gguf` package's, of the llama.cpp project. What it does not hold is refused, never guessed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.runs import nearest

KINDS = {"bf16": Kind.BF16, "f16": Kind.F16, "q8_0": Kind.Q8_0}
FILE_TYPES = {
    Kind.BF16: gguf.LlamaFileType.MOSTLY_BF16, Kind.F16: gguf.LlamaFileType.MOSTLY_F16,
    Kind.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before it is merged into tokens: llama.cpp's names, and what the tokenizers library calls the same.
PRE_TOKENIZERS = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA_3}, "behavior": "Isolated", "invert": False},
        {**_BYTES, "use_regex": False},
    ],
}


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    file: Path | str,
    kind: str = "bf16",
    *,
    name: str = "",
    licence: str | None = None,
    pre: str | None = None,
) -> Path:
    """Write model, tokenizer and chat template to `file`, one tensor in memory at a time.

    Args:
        kind: of the weights: `bf16`, `f16`, or `q8_0` (8 bits in blocks of 32); vectors are in 32 bits.
        name: the model's, for people; `licence` likewise.
        pre: llama.cpp's name of the pre-tokenizer, where the tokenizer is known to have lost its own.

    Raises:
        ValueError: an architecture, a tokenizer or a kind of weights that is not known here; says which are.
    """
    if kind not in KINDS:
        raise ValueError(f"weights as {kind!r} ({nearest(kind, KINDS)})")
    if model.config.model_type != "llama":
        raise ValueError(
            f"GGUF: expected a Llama model, found {model.config.model_type!r}: its folder of safetensors is what"
            " llama.cpp's convert_hf_to_gguf.py takes"
        )
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    _add_model(writer, model.config, name, licence)
    writer.add_file_type(FILE_TYPES[KINDS[kind]])
    _add_tokenizer(writer, tokenizer, model.config.vocab_size, pre or pre_tokenizer(tokenizer))
    _write_tensors(writer, model, KINDS[kind])
    return Path(file)


def pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name of how the tokenizer cuts text before it merges.

    Raises:
        ValueError: it is no byte-level BPE tokenizer, or cuts in a way that has no name in PRE_TOKENIZERS.
    """
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = spelled["pre_tokenizer"] or {}
    found = [{key: value for key, value in step.items() if key != "trim_offsets"}
             for step in steps.get("pretokenizers", [steps])]  # fmt: skip
    known = [name for name, wanted in PRE_TOKENIZERS.items() if wanted == found]
    if spelled["model"]["type"] != "BPE" or spelled["normalizer"] or not known:
        raise ValueError(
            f"GGUF: expected byte-level BPE that cuts text as {', '.join(PRE_TOKENIZERS)} do; found"
            f" {spelled['model']['type']}, normalizer {spelled['normalizer']}, pre-tokenizer {found}"
        )
    return known[0]


def _add_model(writer: gguf.GGUFWriter, config: PreTrainedConfig, name: str, licence: str | None) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    if name:
        writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, pre: str) -> None:
    """Tokens, merges, special tokens and the chat template; no token is put before a prompt but by the template."""
    tokens, kinds = _tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token = {"bos": False, "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Every row of the embedding: its text and its kind; rows without a token have a name of their own."""
    by_id = {id: text for text, id in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise ValueError(f"GGUF: the tokenizer has a token {max(by_id)}, the model only {size} embeddings")
    added = tokenizer.added_tokens_decoder
    kinds = [
        gguf.TokenType.UNUSED if id not in by_id
        else gguf.TokenType.NORMAL if id not in added
        else gguf.TokenType.CONTROL if added[id].special
        else gguf.TokenType.USER_DEFINED
        for id in range(size)
    ]  # fmt: skip
    return [by_id.get(id, f"[PAD{id}]") for id in range(size)], kinds


def _write_tensors(writer: gguf.GGUFWriter, model: PreTrainedModel, kind: Kind) -> None:
    """Announce all tensors, then write them in the same order."""
    tensors = list(_tensors(model))
    for name, tensor in tensors:
        as_ = _kind_of(tensor, kind)
        size = prod(gguf.quant_shape_to_byte_shape(tensor.shape, as_))
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, as_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors:
        values = tensor.float()
        if ".attn_q." in name or ".attn_k." in name:
            values = _interleaved(values, model.config.head_dim)
        writer.write_tensor_data(_stored(values, _kind_of(tensor, kind)))
    writer.close()


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights by llama.cpp's names; a head that is the embedding itself is stored once.

    Raises:
        ValueError: a tensor that llama.cpp's Llama does not have, or positions that it does not know.
    """
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"GGUF: llama.cpp's Llama has no tensor {key!r}")
        yield name, tensor.cpu()
    yield from _rope_factors(model)


def _rope_factors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """What each frequency of the rotary embedding is divided by; Llama 3.1 and later stretch the low ones."""
    rope: dict[str, Any] = model.config.rope_parameters
    if rope["rope_type"] == "default":
        return
    if rope["rope_type"] != "llama3":
        raise ValueError(f"GGUF: expected rotary embeddings of the kind 'default' or 'llama3', found {rope}")
    used = model.model.rotary_emb.inv_freq.float().cpu()
    plain = rope["rope_theta"] ** -(torch.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    yield "rope_freqs.weight", plain / used


def _kind_of(tensor: torch.Tensor, kind: Kind) -> Kind:
    """Vectors stay in 32 bits; rows that are no whole number of blocks in 16."""
    if tensor.dim() == 1:
        return Kind.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return Kind.F16 if tensor.shape[-1] % block else kind


def _stored(values: torch.Tensor, kind: Kind) -> np.ndarray:
    if kind == Kind.BF16:  # as gguf rounds, ten times faster
        return values.bfloat16().view(torch.uint16).numpy()
    return gguf.quantize(values.numpy(), kind)


def _interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a query or key projection [heads * head_dim, ...] in llama.cpp's order.

    transformers rotates row i of a head together with row i + head_dim/2, llama.cpp neighbours: 0, d/2, 1, d/2+1, ...
    """
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # [heads, half, pair, ...]
    return halves.transpose(1, 2).flatten(0, 2).contiguous()
