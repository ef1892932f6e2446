"""Loading a base model in 4 or 8 bits, for LoRA on GPUs that are too small for it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from c3po_utils.models import resolve


def load_quantized(name: str, bits: int, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The causal language model on the first GPU, its linear layers in 4 (NF4) or 8 bits, computing in `dtype`.

    Raises:
        ValueError: bits is neither 4 nor 8.
        RuntimeError: no GPU, or bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8, found {bits!r}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"{bits}-bit loading of {name!r} needs an NVIDIA GPU; found none. Load it in bfloat16 instead"
        )
    if find_spec("bitsandbytes") is None:
        raise RuntimeError(f"{bits}-bit loading of {name!r} needs bitsandbytes: pip install bitsandbytes")
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        resolve(name), quantization_config=config, dtype=dtype, device_map={"": 0}
    )
