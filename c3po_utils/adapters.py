"""LoRA adapters: their configuration, and files that prove on loading to be the adapter that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
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
    model: PreTrainedModel,
    folder: Path | str,
    *,
    name: str = "default",
    tolerance: float = 0.05,
    trainable: bool = False,
) -> PeftModel:
    """The model with a stored adapter, checked to be the one that was trained.

    Raises:
        RuntimeError: a tensor is missing or has another name, or the probe's logits differ from those stored,
            as when the adapter meets another base model.
    """
    folder = Path(folder)
    stored = set(load_file(folder / WEIGHTS))
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
