"""Where each job of a run is: done, in its store, running and how far, failed and why, waiting and for what."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c3po_utils.batch.graph import Node, Nodes, finished
from c3po_utils.batch.share import stored
from c3po_utils.runs import progress, run_folder, shown
from c3po_utils.runs.config import RunConfig


@dataclass
class States:
    """Jobs by name: those done here, and else those in the run's store; the others with the last line of its bar, the
    failing cell's error, or what it needs first."""

    done: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)  # a run brings them here, and makes anew what is not up to date
    running: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, list[str]] = field(default_factory=dict)  # an empty list: it could start


def states(config: RunConfig, nodes: Nodes) -> States:
    """As manifests, progress files and executed notebooks say; nothing is written. Raises StoreError as `stored`."""
    run, done = run_folder(config.run), finished(nodes)
    there = stored(config, nodes) - done
    at_work = progress.at_work(run)
    found = States(done=[name for name in nodes if name in done], stored=[name for name in nodes if name in there])
    for name, node in nodes.items():
        if name in done | there:
            continue
        if name in at_work:
            found.running[name] = progress.in_words(at_work[name]).removeprefix(f"{name}: ").removeprefix(name)
        elif error := failing_cell(_folder(run, node)):
            found.failed[name] = error
        else:
            found.waiting[name] = [need for need in node.needs if need not in done | there]
    return found


def _folder(run: Path, node: Node) -> Path:
    """Where its executed notebook lies."""
    return node.folders[0] if node.kind == "figures" else run / node.name


def failing_cell(folder: Path) -> str:
    """The error that the executed notebook in a folder ended with, and in which cell; empty where there is none."""
    for path in sorted(folder.glob("*.ipynb")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", ()):
                    if output["output_type"] == "error":
                        return f"{_in_words(cell, output)} ({shown(path)})"
    return ""


def _in_words(cell: dict[str, Any], output: dict[str, Any]) -> str:
    first = (output["evalue"].strip().splitlines() or [""])[0]
    return f"cell In [{cell['execution_count']}]: {output['ename']}: {first}"


def told(config: RunConfig, found: States, most: int | None) -> str:
    """A line for each job that is not done, at most so many of each state; those that wait by what they wait for."""
    counts = {"done": found.done} | ({"in the store": found.stored} if config.store else {})
    counts |= {"running": found.running, "failed": found.failed, "waiting": found.waiting}
    total = sum(map(len, counts.values()))
    counted = ", ".join(f"{len(jobs):,} {state}" for state, jobs in counts.items())
    lines = [f"{shown(run_folder(config.run))}: {total:,} jobs: {counted}"]
    lines += _some([f"running  {name}  {text}".rstrip() for name, text in found.running.items()], most)
    lines += _some([f"failed   {name}  {error}" for name, error in found.failed.items()], most)
    return "\n".join([*lines, *_some([_waits(name, found) for name in found.waiting], most)])


def _waits(name: str, found: States) -> str:
    needs = found.waiting[name]
    failed = [need for need in needs if need in found.failed]
    what = (
        f"for {', '.join((failed or needs)[:3])}{', ...' if len(failed or needs) > 3 else ''}" if needs else "to start"
    )
    return f"waiting  {name}  {what}{' (failed)' if failed else ''}"


def _some(lines: list[str], most: int | None) -> list[str]:
    more = len(lines) - most if most is not None else 0
    return lines if more <= 0 else [*lines[:most], f"  ... and {more:,} more {lines[0].split()[0]} (--all)"]
