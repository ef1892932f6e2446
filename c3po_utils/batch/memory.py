"""How much memory a job will likely take: what such jobs took before, or else by the size of the model's weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from c3po_utils.batch.graph import Kind, Node
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.stage import done_stages, run_folder

BARE_GIB = 1.0  # a kernel with its libraries and little else
FOLDERS: dict[Kind, str] = {"sample": "sample", "train": "train", "evaluate": "eval", "two_feedbacks": "eval"}
TIMES_WEIGHTS = {"sample": 3.0, "train": 5.0, "evaluate": 3.0, "two_feedbacks": 3.0}  # with caches, or gradients


def likely_gib(config: RunConfig, node: Node) -> float:
    """GiB that a node's job may take at its peak; comparisons and figures load no model."""
    if node.kind not in FOLDERS:
        return BARE_GIB
    run = run_folder(config.run)
    return _taken(run, FOLDERS[node.kind]) or BARE_GIB + TIMES_WEIGHTS[node.kind] * _weights_gib(
        config.sample.get("model", "")
    )


def _taken(run: Path, folder: str) -> float:
    """The most that a finished stage of this kind took in this run; 0 where none is finished."""
    return max((manifest.get("peak_gib", 0.0) for _, manifest in done_stages(run, folder)), default=0.0)


@cache
def _weights_gib(model: str) -> float:
    """Of the weights of a local folder; 0 where it cannot be known without asking for it."""
    folder = Path(model).expanduser() if model else None
    if not folder or not folder.is_dir():
        return 0.4
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30
