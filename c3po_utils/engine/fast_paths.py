"""Fast paths by name, and which of them this machine takes: those that `c3po doctor` has not found to be wrong here.

Each has a plain way beside it that gives the same up to rounding. What failed is kept in one small file of the user's
cache, by device, type of numbers and versions of the libraries; wherever a path is chosen, `on` is asked.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from c3po_utils.engine.names import cache_folder
from c3po_utils.runs import files, stage

FAST_PATHS = {  # what each does, and what is done where it is switched off
    "packing": "sequences in one row, common prefixes once; else padded, with the library's attention",
    "eager_attention": "attention over short packed sequences by matrix products; else SDPA",
    "lora_kernel": "a LoRA layer as one function; else peft's",
    "norm_kernel": "an RMS norm as one function; else transformers'",
    "swiglu_kernel": "a gated MLP as one function; else transformers'",
    "rotary_kernel": "rotary embeddings as one function; else transformers'",
    "head": "log-probabilities with their gradient at once; else logits, log-softmax and autograd",
    "streams": "passes side by side in threads; else in turn",
    "slots": "answers from a cache whose slots are refilled; else transformers' generate in batches",
    "packed_linears": "weights laid out for oneDNN while answering; else as they are",
    "decoder_layers": "a decoder layer in few operations while answering; else transformers'",
}
VERSIONS = ("torch", "transformers", "peft", "c3po-utils")
FILE = "fast_paths.json"


class Placed(Protocol):
    """A tensor or a model."""

    device: torch.device
    dtype: torch.dtype


@dataclass
class Trial:
    """Which paths are on, whatever is stored, and which of them were taken so far."""

    names: tuple[str, ...]
    taken: set[str] = field(default_factory=set)


_trial: Trial | None = None  # of the process: a context variable would not reach the threads of `threads.together`


@functools.cache
def place(device: torch.device, dtype: torch.dtype) -> str:
    """What a path's fate depends on: the processor or GPU, the type of numbers, and the libraries' versions."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else stage.hardware()["cpu"]
    return ", ".join([chip, str(dtype).removeprefix("torch."), *(f"{name} {version(name)}" for name in VERSIONS)])


def stored_in() -> Path:
    return cache_folder() / FILE


@functools.cache
def switched_off(where: str) -> dict[str, str]:
    """Why, by name, of the paths that are off in a `place`; looked up once in a process."""
    found = (files.remembered(stored_in()) or {}).get(where, {})
    return {name: next(iter(reasons.values())) for name, reasons in found.items() if name in FAST_PATHS and reasons}


def on(name: str, like: Placed) -> bool:
    """Whether a fast path is to be taken for such a tensor or model; ask last, where all else speaks for it.

    One that is switched off is told in a warning, once in a process.
    """
    if _trial:
        if name in _trial.names:
            _trial.taken.add(name)
        return name in _trial.names
    reason = switched_off(place(like.device, like.dtype)).get(name)
    if reason:
        _tell(name, reason)
    return reason is None


@functools.cache
def _tell(name: str, reason: str) -> None:
    warnings.warn(
        f"a slower way is taken on this machine: {name!r} ({FAST_PATHS[name]}) failed in `c3po doctor`: {reason}",
        stacklevel=3,
    )


@contextmanager
def only(*names: str) -> Iterator[set[str]]:
    """These paths are on and no others, in this process, whatever is stored; yields the set of those taken."""
    global _trial
    before, _trial = _trial, Trial(names)
    try:
        yield _trial.taken
    finally:
        _trial = before


def store(where: str, model: str, failed: Mapping[str, str]) -> None:
    """Switch off, in a place, what failed with a model, and on what only failed with this model before."""
    known: dict[str, Any] = files.remembered(stored_in()) or {}
    own = {name: {m: why for m, why in reasons.items() if m != model} for name, reasons in known.get(where, {}).items()}
    for name, reason in failed.items():
        own.setdefault(name, {})[model] = reason
    own = {name: reasons for name, reasons in own.items() if reasons}
    if own or where in known:
        known = {place: entry for place, entry in {**known, where: own}.items() if entry}
        files.write_json(stored_in(), known)
    switched_off.cache_clear()


def reset() -> bool:
    """Switch everything on again, in all places; whether anything was off."""
    was_off = stored_in().exists()
    stored_in().unlink(missing_ok=True)
    switched_off.cache_clear()
    return was_off
