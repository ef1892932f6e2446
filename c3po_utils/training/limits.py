"""What settings of a training may be: names, types and ranges, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from c3po_utils.runs import nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]  # 0 for no limit
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's

# An adapter's settings: our own names of peft's first three, and those of peft's whose adapters the kit trains whole,
# stores and proves.
LORA: dict[str, Any] = {
    "r": Count,
    "alpha": Positive,
    "dropout": Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)],
    "target_modules": str | list[str],
    "exclude_modules": str | list[str] | None,
    "layers_to_transform": int | list[int] | None,
    "layers_pattern": str | list[str] | None,
    "rank_pattern": dict[str, Count],
    "alpha_pattern": dict[str, Positive],
    "use_rslora": bool,
    "use_dora": bool,
    "init_lora_weights": bool | Literal["gaussian", "orthogonal"],  # others change the base model's weights
}
PAPER_LORA: dict[str, Any] = {"r": 64, "alpha": 128, "dropout": 0.05}
NO_GRADIENT = "the language-model head is fused with the loss and gives embeddings and the head itself no gradient"
REFUSED_LORA = {
    "modules_to_save": f"only layers between the embeddings and the head are trained, as LoRA: {NO_GRADIENT}",
    "trainable_token_indices": f"embeddings cannot be trained: {NO_GRADIENT}",
    "bias": "biases cannot be trained: only the adapter's own tensors are stored and proved",
    "lora_bias": "an adapter with biases cannot be merged into layers that have none",
    "lora_alpha": "it is called alpha here",
    "lora_dropout": "it is called dropout here",
}
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "output_layer")
REFUSED_ARGUMENTS = {  # fields of trl's DPOConfig that cannot be meant here
    "beta": "set it among the method's settings",
    "use_weighting": "its weights need all logits, which are not computed here",
    "ld_alpha": "it needs the reference log-probabilities of single tokens, and sums are kept here",
    "precompute_ref_log_probs": "they are always computed once; see the argument `references`",
    "max_length": "rows are cut or dropped when they are made; see data.training_rows",
}
# Arguments that decide how fast a training is, how often it tells and saves, and nothing of what it comes to.
PASSING = {
    "logging_steps", "save_steps", "save_total_limit", "disable_tqdm", "dataloader_num_workers",
    "dataloader_pin_memory",
}  # fmt: skip


def deciding(arguments: dict[str, Any]) -> dict[str, Any]:
    """The training arguments without those that do not change what comes out."""
    return {key: value for key, value in arguments.items() if key not in PASSING}


SETTLED = {  # those that a training setting decides
    "learning_rate": "set `learning_rate`, a setting of its own",
    "num_train_epochs": "set `epochs`, a setting of its own",
    "per_device_train_batch_size": "set `batch_size`, a setting of its own",
    "seed": "set `seed`, a setting of its own",
}


@cache
def _adapters(owner: type) -> dict[str, TypeAdapter]:
    kinds = get_type_hints(owner, include_extras=True)
    return {name: TypeAdapter(kind, config=ConfigDict(strict=True)) for name, kind in kinds.items()}


def _check(name: str, value: Any, adapter: TypeAdapter, what: str) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
        raise ValueError(f"{what} {name!r}: expected {expected}, found {value!r}") from None


def check_fields(settings: Any, what: str) -> None:
    """Raise ValueError, in one line, for a field of a dataclass that is not of its annotated type and range."""
    for name, adapter in _adapters(type(settings)).items():
        _check(name, getattr(settings, name), adapter, what)


def check_lora(given: Mapping[str, Any]) -> None:
    """Check an adapter's settings (`adapters.lora_config`).

    Raises:
        ValueError: a value that cannot be meant, one that the kit cannot train (says why), or no such setting (with
            the nearest that is).
    """
    for name, value in given.items():
        if name in REFUSED_LORA:
            if value not in (None, False, "none", []):
                raise ValueError(f"LoRA setting {name!r}: found {value!r}; {REFUSED_LORA[name]}")
        elif name not in LORA:
            raise ValueError(f"unknown LoRA setting {name!r} ({nearest(name, LORA)})")
        else:
            _check(name, value, _lora_adapter(name), "LoRA setting")
    for name in _names(given.get("target_modules")):
        if name.rpartition(".")[2] in EMBEDDINGS:
            raise ValueError(f"LoRA setting 'target_modules': {name!r} cannot be trained: {NO_GRADIENT}")


@cache
def _lora_adapter(name: str) -> TypeAdapter:
    return TypeAdapter(LORA[name], config=ConfigDict(strict=True))


def _names(targets: str | Iterable[str] | None) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or ())


def check_arguments(given: Mapping[str, Any], refused: Mapping[str, str] = REFUSED_ARGUMENTS) -> None:
    """Raise ValueError for a training argument that cannot be meant, as far as that can be known without trl."""
    for name, value in given.items():
        if name in refused:
            raise ValueError(f"training argument {name!r}: {refused[name]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"training argument {name!r}: expected a finite number, found {value!r}")
