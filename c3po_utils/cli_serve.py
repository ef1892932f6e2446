"""`c3po serve`: vLLM with the base model and the adapters of a run."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import click

from c3po_utils.cli_errors import told


def _names(_: Any, __: Any, text: str) -> list[str]:
    from c3po_utils.training.methods import split_names

    return split_names(text)


@click.command()
@click.argument("run")
@click.option("--feedback", "feedbacks", default="", callback=_names, help="Comma between; a+b is both in one  [all]")
@click.option("--methods", default="", callback=_names, help="Comma between: c3po, scd@lr=2e-4,r=16  [all]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; any other needs a key.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--print", "printing", is_flag=True, help="Only show the command, for another machine.")
def serve(run: str, feedbacks: list[str], methods: list[str], host: str, port: int, printing: bool) -> None:
    """Serve the base model and the adapters of RUN (results/demo, or demo) with vLLM, until Ctrl-C.

    Each has its name in an OpenAI-compatible API: `base`, FEEDBACK/METHOD, and A+B/METHOD@added for the exact sum of
    two feedbacks' adapters. Every name is asked a probe before it is offered, and must answer as after its training.
    The key that clients need, if any, is C3PO_API_KEY in the environment.
    """
    from c3po_utils.runs import exports
    from c3po_utils.training import served

    with told():
        folder = exports.find_run(run)
        found = served.choose(folder, feedbacks, methods)
        for name in found.gated:
            click.echo(f"not served: {name}; a gate decides at each prompt, ask base and its adapter by name", err=True)
        if printing:
            click.echo(_printed(found, folder, host, port))
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt), found.engine(folder) as engine:
            click.echo(f"starting vLLM, which takes minutes; its log: {engine.log}", err=True)
            engine.start(host, port)
            click.echo(_ready(engine))
            engine.child.watch()


def _printed(found: Any, folder: Path, host: str, port: int) -> str:
    """The command for a GPU, with its paths as they are in the run's folder."""
    from c3po_utils import engine
    from c3po_utils.chat import vllm

    base = engine.models.resolve(found.model)
    adapters = {name: path.relative_to(folder) for name, path in found.adapters.items()}
    note = f"# in a copy of {folder}" + f", with a copy of {base}" * Path(base).is_dir() + "; for a GPU"
    return f"{note}\n" + vllm.printed(vllm.command("vllm", base, adapters, found.rank, host, port))


def _ready(engine: Any) -> str:
    """Names, URL, and a line to copy."""
    from c3po_utils.chat import keys

    doubts = dict.fromkeys(engine.unproved, "  (on the probe like base)")
    names = [f"  {name}{doubts.get(name, '')}" for name in ("base", *engine.adapters)]
    body = {"model": next(iter(engine.adapters)), "messages": [{"role": "user", "content": "Is tea hot?"}]}
    key = "" if keys.api_key(engine.endpoint) == "none" else ' -H "Authorization: Bearer $C3PO_API_KEY"'
    line = f"curl {engine.endpoint}/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    return "\n".join([
        f"ready at {engine.endpoint}, each name proved by a probe:", *names, "", line,
        f"in 03_evaluate.ipynb: engine = 'vllm@{engine.endpoint}'. Ctrl-C ends it.",
    ])  # fmt: skip
