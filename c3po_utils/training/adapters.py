"""LoRA adapters: files that prove on loading to be the adapter that was trained, and exact sums of several."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import cast_adapter_dtype, check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from c3po_utils import chat  # as a room: its heavy parts are imported when they are used
from c3po_utils.engine import load_model, load_tokenizer, shared_model, weights_name
from c3po_utils.runs import files, stage
from c3po_utils.training.limits import NO_GRADIENT, PAPER_LORA, check_lora
from c3po_utils.training.stage import CONFIG, PROBE, WEIGHTS, adapter_folder, adapter_hash, weights_folder

PROBE_IDS = list(range(5, 37))
TOLERANCE = 0.05  # the probe's largest difference, relative to its largest logit
EXACT = 1e-5  # the largest difference from the sum of the changes, relative to the largest change
PLAIN = {  # what an adapter's configuration must say for its change to a weight to be scaling * B @ A
    "use_rslora": (False, "rsLoRA scales by the square root of the rank, and the ranks add up"),
    "use_dora": (False, "DoRA's magnitudes do not add up"),
    "lora_bias": (False, "peft leaves the biases out of the sum"),
    "bias": ("none", "peft leaves the trained biases out of the sum"),
    "modules_to_save": (None, "modules that were trained whole do not add up"),
    "trainable_token_indices": (None, "trained embeddings do not add up"),
}


def lora_config(
    r: int = PAPER_LORA["r"], alpha: int = PAPER_LORA["alpha"], dropout: float = PAPER_LORA["dropout"], **kwargs: Any
) -> LoraConfig:
    """The paper's adapter: every linear layer but the head. What it may be in a run: `limits.check_lora`."""
    given = {"target_modules": "all-linear", **kwargs}
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, task_type="CAUSAL_LM", **given)


def refuse_untrainable(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raise ValueError for a configuration whose adapter would change the embeddings, the head or whole modules."""
    check_lora({name: getattr(config, name) for name in ("modules_to_save", "trainable_token_indices", "bias")})
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if module in ends and config.target_modules != "all-linear" and check_target_module_exists(config, name):
            raise ValueError(f"LoRA setting 'target_modules': it matches {name!r}, and {NO_GRADIENT}")


@torch.no_grad()
def _probe_logits(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor([PROBE_IDS], device=model.device)).logits[0, -1].float().cpu()


def _in_order(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Store the adapter as safetensors with a probe: the logits that it gives for a fixed input.

    Raises:
        OSError: the disk is full, the folder read-only; names the file, and leaves none behind.
    """
    scratch = folder / ".saving"
    try:
        with files.writing(folder / WEIGHTS, SafetensorError):
            shutil.rmtree(scratch, ignore_errors=True)  # of a training that was killed here
            scratch.mkdir(parents=True)
            model.save_pretrained(scratch)
            config = files.read_json(scratch / CONFIG, dict)  # peft's sets of names: in another order in every process
            files.write_json(scratch / CONFIG, {key: _in_order(value) for key, value in config.items()})
            save_file({"logits": _probe_logits(model)}, str(scratch / PROBE))
            mode = (scratch / CONFIG).stat().st_mode  # follows the umask; that of safetensors does not
            for name in (CONFIG, PROBE, WEIGHTS):
                (scratch / name).chmod(mode)
                os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_adapter(
    model: PreTrainedModel | PeftModel, folder: Path | str, *, name: str = "default", trainable: bool = False
) -> PeftModel:
    """The model with a stored adapter, checked to be the one that was trained.

    A model that has adapters already keeps them; the one that is loaded becomes the active one. Where this fails, the
    model is as it was.

    Raises:
        ValueError: the model has an adapter of this name.
        DamagedFile: a file of the adapter is not what its stage's manifest says, or no adapter's.
        RuntimeError: a tensor is missing or has another name, or the probe's logits differ from those stored,
            as when the adapter meets another base model.
    """
    folder = Path(folder)
    stored, wanted = stored_tensors(folder, WEIGHTS), stored_tensors(folder, PROBE)["logits"]
    stage.intact(folder, CONFIG)
    files.read_json(folder / CONFIG, dict)
    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    if name in known:
        raise ValueError(f"{folder}: the model has an adapter named {name!r} already; expected a new name")
    back = _way_back(model)
    try:
        if known:
            policy = model
            policy.load_adapter(folder, name, is_trainable=trainable)
            policy.set_adapter(name)
        else:
            policy = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
        policy.eval()
        _prove(policy, name, folder, set(stored), wanted)
    except BaseException:
        back()
        raise
    return policy


def stored_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors in a stage's file. Raises DamagedFile where it is not what its manifest says, or no safetensors."""
    stage.intact(folder, name)
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise files.DamagedFile(f"{folder / name}: expected safetensors, found something else: {error}") from None


def _prove(policy: PeftModel, name: str, folder: Path, stored: set[str], wanted: torch.Tensor) -> None:
    """Raise RuntimeError unless the active adapter has the stored tensors' names and gives the probe's logits."""
    expected = {key.replace(f".{name}.", ".") for key in policy.state_dict() if "lora_" in key and f".{name}." in key}
    if stored != expected:
        missing, extra = sorted(expected - stored)[:3], sorted(stored - expected)[:3]
        raise RuntimeError(f"{folder}: adapter tensors do not match the model; missing {missing}, unknown {extra}")
    difference = (_probe_logits(policy) - wanted).abs().max() / wanted.abs().max()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{folder}: the loaded adapter does not give the logits it gave after training "
            f"(relative difference {difference:.2g}, at most {TOLERANCE}): another base model, or a damaged file"
        )


def _way_back(model: PreTrainedModel | PeftModel) -> Callable[[], None]:
    """A function that makes the model what it is now: its modules, parameters and their values, bit for bit.

    It does not depend on peft, whose own ways need an adapter that was loaded whole. Values are kept by reference: who
    changes them in place replaces them by copies first.
    """
    states = [(vars(module), dict(vars(module))) for module in model.modules()]
    inner = [value for _, state in states for value in state.values() if isinstance(value, dict)]  # children, say
    states += [(value, dict(value)) for value in inner]
    values = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]

    def back() -> None:
        for state, before in states:
            state.clear()
            state.update(before)
        for parameter, data, trained in values:
            parameter.data = data
            parameter.requires_grad_(trained)

    return back


@contextmanager
def merged(model: PreTrainedModel, folder: Path | str) -> Iterator[PreTrainedModel]:
    """The model with a stored adapter merged into its weights; afterwards it is as it was, bit for bit.

    Merged, an adapter costs nothing while answering, and one loaded model serves all adapters of a process. The
    weights that adapters touch are in memory twice meanwhile. Errors as in `load_adapter`.
    """
    with mixed(model, {Path(folder): 1.0}) as tuned:
        yield tuned


@contextmanager
def mixed(model: PreTrainedModel, weights: Mapping[Path, float]) -> Iterator[PreTrainedModel]:
    """As `merged`, with the weighted sum of one or more stored adapters, by folder.

    Errors as in `load_adapter` and `add_adapters`.
    """
    back, policy = _way_back(model), model
    try:
        names = ["-".join(folder.parts[-2:]).replace(".", "_") for folder in weights]  # torch wants no dots
        for name, folder in zip(names, weights, strict=True):
            policy = load_adapter(policy, folder, name=name)
        if list(weights.values()) != [1.0]:
            add_adapters(policy, names, weights=list(weights.values()))
        for layer in policy.modules():
            if isinstance(layer, LoraLayer):
                for parameter in layer.get_base_layer().parameters():
                    parameter.data = parameter.data.clone()  # peft adds to it in place, and takes it off with rounding
        yield policy.merge_and_unload()
    finally:
        back()


def known_as(name: str, folders: Sequence[Path]) -> str:
    """What pi_0, by its name, with these adapters added is called in ledgers: the same whoever asks."""
    return "+".join([weights_name(name), *map(adapter_hash, folders)])


@contextmanager
def answering(name: str, folder: Path, ledger: Path) -> Iterator[chat.ChatModel]:
    """pi_0, by its name, with one stored adapter, behind a ledger. Errors as in `load_adapter`."""
    with merged(shared_model(name), folder) as tuned:
        yield chat.remembered(tuned, load_tokenizer(name), known_as(name, [folder]), ledger)


def add_adapters(
    policy: PeftModel, names: Sequence[str], name: str = "sum", weights: Sequence[float] | None = None
) -> float:
    """Add LoRA adapters into a new one, which becomes active: its change to each weight is the sum of theirs.

    With `weights`, one an adapter, each change counts so many times.

    peft's `cat` writes their factors side by side, [B_1 B_2] [A_1; A_2] = B_1 A_1 + B_2 A_2, so the ranks add up and
    nothing is lost; its `linear` and `svd` only approximate.

    Returns:
        The largest difference between the new change and the sum, relative to the largest entry of the sum.

    Raises:
        ValueError: unknown or repeated names, a name that is taken (peft would keep the old adapter without a word), or
            adapters that peft adds wrongly: rsLoRA, DoRA, LoRA with biases.
        RuntimeError: the difference is above 1e-5.
    """
    known = list(policy.peft_config)
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(f"adapters {list(names)}: expected different ones of {known}")
    if name in known:
        raise ValueError(f"the model has an adapter named {name!r} already; expected a new name for the sum")
    for other in names:
        for key, (expected, reason) in PLAIN.items():
            if (found := getattr(policy.peft_config[other], key)) != expected:
                raise ValueError(f"adapter {other!r}: {key} is {found!r}, expected {expected!r}: {reason}")
    scales = dict(zip(names, weights or [1.0] * len(names), strict=True))
    with _full_precision(policy, name):
        policy.add_weighted_adapter(list(scales), list(scales.values()), name, combination_type="cat")
    policy.set_adapter(name)
    difference = _difference(policy, scales, name)
    if not difference <= EXACT:
        raise RuntimeError(
            f"{name!r} is not the sum of {list(names)}: it differs by {difference:.2g} of its largest entry"
        )
    return difference


@contextmanager
def _full_precision(policy: PeftModel, name: str) -> Iterator[None]:
    """Hold the new adapter in float32, as peft holds all others; `add_weighted_adapter` has the base model's type."""
    tuner, inject = policy.base_model, policy.base_model.inject_adapter

    def inject_and_cast(*args: Any, **kwargs: Any) -> None:
        inject(*args, **kwargs)
        cast_adapter_dtype(tuner.model, name)

    tuner.inject_adapter = inject_and_cast
    try:
        yield
    finally:
        del tuner.inject_adapter


@torch.no_grad()
def _difference(policy: PeftModel, scales: Mapping[str, float], name: str) -> float:
    largest = 0.0
    for module in policy.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            there = {other: scale for other, scale in scales.items() if other in module.scaling}
            wanted = sum(scale * module.get_delta_weight(other) for other, scale in there.items())
            difference = (module.get_delta_weight(name) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
            largest = max(largest, difference.item())
    return largest


def load_added(run: Path | str, ids: Sequence[str], method: str, model: str) -> tuple[PeftModel, float]:
    """pi_0 with the sum of the feedbacks' adapters of one method, and what `add_adapters` returns: how exact it is.

    Of a gated method, those that its gates add, as if all were open.

    Args:
        model: the name of pi_0, as in models.py.
    """
    policy: Any = load_model(model)
    for id in ids:
        policy = load_adapter(policy, weights_folder(adapter_folder(run, id, method)), name=id)
    return policy, add_adapters(policy, ids)
