"""How much memory a job will likely take: what such jobs took before, or else by the size of the model's weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from c3po_utils.batch.graph import Kind, Node
from c3po_utils.runs import files
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.stage import MANIFEST

BARE_GIB = 1.0  # a kernel with its libraries and little else
EMBEDDED_GIB = 0.5  # of the embedded model's weights in memory
# What is needed beside a kernel, in weights: caches, gradients. Comparisons and figures load no model.
TIMES_WEIGHTS: dict[Kind, float] = {"sample": 3.0, "train": 4.0, "evaluate": 3.0, "two_feedbacks": 3.0}


class Memory:
    """What the jobs of a run take, learned as they end."""

    def __init__(self, config: RunConfig):
        self.model = config.sample.get("model", "")
        self.taken: dict[Kind, float] = {}

    def learn(self, node: Node) -> None:
        """From the manifests of a node that is done."""
        for folder in node.folders:
            peak = (files.remembered(folder / MANIFEST) or {}).get("peak_gib", 0.0)
            self.taken[node.kind] = max(peak, self.taken.get(node.kind, 0.0))

    def likely_gib(self, node: Node) -> float:
        """What a node's job may take at its peak: what the largest of its kind took, or what the model's size says."""
        return self.taken.get(node.kind) or BARE_GIB + TIMES_WEIGHTS.get(node.kind, 0.0) * _weights_gib(self.model)


@cache
def _weights_gib(model: str) -> float:
    """Of the weights of a local folder; where none is known, those of the embedded model."""
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():
        return EMBEDDED_GIB
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30
