"""LoRA adapters: their configuration, and files that prove on loading to be the adapter that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
PROBE = "probe.safetensors"
PROBE_IDS = list(range(5, 37))


def lora_config(r: int = 64, alpha: int = 128, dropout: float = 0.05, **kwargs: Any) -> LoraConfig:
    """The paper's adapter: every linear layer but the head."""
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        **kwargs,
    )


@torch.no_grad()
def _probe_logits(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor([PROBE_IDS], device=model.device)).logits[0, -1].float().cpu()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Store the adapter as safetensors with a probe: the logits that it gives for a fixed input."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    save_file({"logits": _probe_logits(model)}, str(folder / PROBE))


def load_adapter(
    model: PreTrainedModel | PeftModel,
    folder: Path | str,
    *,
    name: str = "default",
    tolerance: float = 0.05,
    trainable: bool = False,
) -> PeftModel:
    """The model with a stored adapter, checked to be the one that was trained.

    A model that has adapters already keeps them; the one that is loaded becomes the active one.

    Raises:
        ValueError: the model has an adapter of this name.
        RuntimeError: a tensor is missing or has another name, or the probe's logits differ from those stored,
            as when the adapter meets another base model.
    """
    folder = Path(folder)
    stored = set(load_file(folder / WEIGHTS))
    if isinstance(model, PeftModel):
        if name in model.peft_config:
            raise ValueError(f"{folder}: the model has an adapter named {name!r} already; expected a new name")
        policy = model
        policy.load_adapter(folder, name, is_trainable=trainable)
        policy.set_adapter(name)
    else:
        policy = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
    expected = {key.replace(f".{name}.", ".") for key in policy.state_dict() if "lora_" in key and f".{name}." in key}
    if stored != expected:
        missing, extra = sorted(expected - stored)[:3], sorted(stored - expected)[:3]
        raise RuntimeError(f"{folder}: adapter tensors do not match the model; missing {missing}, unknown {extra}")
    policy.eval()
    wanted = load_file(folder / PROBE)["logits"]
    difference = (_probe_logits(policy) - wanted).abs().max() / wanted.abs().max()
    if not difference <= tolerance:
        raise RuntimeError(
            f"{folder}: the loaded adapter does not give the logits it gave after training "
            f"(relative difference {difference:.2g}, at most {tolerance}): another base model, or a damaged file"
        )
    return policy


@contextmanager
def merged(model: PreTrainedModel, folder: Path | str) -> Iterator[PreTrainedModel]:
    """The model with a stored adapter merged into its weights; afterwards it is as it was, bit for bit.

    Merged, an adapter costs nothing while answering, and one loaded model serves all adapters of a process. The
    weights that adapters touch are in memory twice meanwhile. Errors as in `load_adapter`.
    """
    policy = load_adapter(model, folder)
    layers = [layer.get_base_layer() for layer in policy.modules() if isinstance(layer, LoraLayer)]
    kept = [(parameter, parameter.data) for layer in layers for parameter in layer.parameters()]
    for parameter, values in kept:
        parameter.data = values.clone()  # peft adds to it in place; taking it off again would leave rounding errors
    try:
        yield policy.merge_and_unload()
    finally:
        for parameter, values in kept:
            parameter.data = values
