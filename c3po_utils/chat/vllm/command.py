"""What is asked of vLLM: the engine's name in settings, the program, its command line."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from c3po_utils import engine  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat.names import parse_model_name

LOCAL, VLLM, BASE = "local", "vllm", "base"  # two engines, and pi_0's name on a server
FOLDER = "serve"  # of a run, for what only servers need
VARIABLE = "C3PO_VLLM"  # in the environment: the folder of the Python environment that has vLLM
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
# On a CPU, vLLM 0.32 ends when a prompt is read in parts whose request has a seed: a generator has no offset there.
ON_CPU = ("--no-enable-chunked-prefill",)
AT_ONCE = 8  # adapters that one pass of a GPU may mix; the others wait in memory


def read_engine(engine: str) -> str | None:
    """None for `local`; for `vllm` the empty string; for `vllm@URL` the URL of a server that runs already.

    Raises:
        ValueError: anything else.
    """
    name, at, url = engine.partition("@")
    if engine == LOCAL:
        return None
    if name == VLLM and not at:
        return ""
    with contextlib.suppress(ValueError):
        if name == VLLM and (endpoint := parse_model_name(f"openai:{BASE}@{url}").endpoint):
            return endpoint
    raise ValueError(
        f"engine: expected {LOCAL!r}, {VLLM!r}, or 'vllm@http://127.0.0.1:8000/v1' for a server that runs already;"
        f" found {engine!r}"
    )


def check_weights(model: str) -> None:
    """Raise ValueError for a model that is to be loaded with fewer bits."""
    if engine.names.QUANTIZED.search(model):
        raise ValueError(f"model {model!r}: vLLM is given whole weights here; leave out the suffix, or the engine")


def program() -> Path:
    """The `vllm` to start. Raises RuntimeError where there is none, with what to install."""
    named = os.environ.get(VARIABLE)
    own = Path(named or Path(sys.prefix) / "vllm") / "bin" / "vllm"
    found = own if own.is_file() else None if named else shutil.which("vllm")
    if not found:
        raise RuntimeError(
            f"vLLM is not installed: expected {own}. `make vllm` installs it for this processor; or set {VARIABLE} to"
            " the folder of an environment that has it; or join a server that runs elsewhere"
        )
    return Path(found)


def command(
    vllm: Path | str, model: str, adapters: Mapping[str, Path], rank: int, host: str, port: int, gpu: bool = True
) -> list[str]:
    """The command line that serves a model as `base`, and adapters, of at most a rank, under their names.

    On a CPU every adapter has a slot, and the last slot stays empty: vLLM 0.32 gives its adapter to requests for
    `base` that share a pass with others (vllm-project/vllm, pull request 48421).

    Raises:
        ValueError: a rank above what vLLM takes.
    """
    line = [str(vllm), "serve", model, "--served-model-name", BASE, "--dtype", "bfloat16", "--host", host]
    line += ["--port", str(port), "--generation-config", "vllm"]  # no sampling parameters from the model's folder
    line += [] if gpu else ON_CPU
    if not adapters:
        return line
    if rank > RANKS[-1]:
        raise ValueError(f"an adapter has the rank {rank}: vLLM takes at most {RANKS[-1]}")
    line += ["--enable-lora", "--max-lora-rank", str(next(least for least in RANKS if least >= rank))]
    slots = min(len(adapters), AT_ONCE) if gpu else len(adapters) + 1
    line += ["--max-loras", str(slots), "--max-cpu-loras", str(max(slots, len(adapters))), "--lora-modules"]
    return line + [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]


def printed(line: Sequence[str]) -> str:
    """The command as one types it, an argument or option a line; the key is taken from the environment there."""
    first, *rest = shlex.join(line).replace(" --", "\0--").replace(" '{", "\0  '{").split("\0")
    return " \\\n  ".join([f'VLLM_API_KEY="$C3PO_API_KEY" {first}', *rest])
