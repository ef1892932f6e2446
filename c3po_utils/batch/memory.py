"""How much memory a job will likely take: what such jobs took before, or else by the size of the model's weights."""

from __future__ import annotations

from pathlib import Path

from c3po_utils.batch.graph import Kind, Node
from c3po_utils.engine.names import EMBEDDED, QUANTIZED
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
        """What a node's job may take at its peak: what the largest of its kind took, or what the model's size says.

        0 where neither is known.
        """
        if taken := self.taken.get(node.kind):
            return taken
        if not (times := TIMES_WEIGHTS.get(node.kind)):
            return BARE_GIB
        weights = _weights_gib(self.model)
        return 0.0 if weights is None else BARE_GIB + times * weights


def _weights_gib(model: str) -> float | None:
    """Of a model's weights, as they lie in its folder or in the hub's cache; None where they are not here yet."""
    bare = QUANTIZED.sub("", model)
    if bare in ("", EMBEDDED):
        return EMBEDDED_GIB
    if bare.startswith("openai:"):  # of another machine
        return 0.0
    folder = Path(bare).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache  # takes a moment, which runs of the embedded model need not

        config = try_to_load_from_cache(bare, "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    index = files.remembered(folder / "model.safetensors.index.json") or {}  # there before all of the parts are
    total = index.get("metadata", {}).get("total_size")
    return (total or sum(path.stat().st_size for path in folder.glob("*.safetensors"))) / 2**30 or None
