"""Runs of many notebooks: what each costs beyond its work, how busy workers are, what a rerun and a plan take.

`python -m tests.benchmarks.bench_batch`, some minutes; writes results/bench/batch.json.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from c3po_utils.batch.driver import drive
from c3po_utils.batch.graph import finished, graph
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import MANIFEST, ROOT, fingerprint, git_commit, hardware
from tests.batch.toy import config, nodes, run_toy, started, toy

OUTPUT = ROOT / "results" / "bench" / "batch.json"
LIBRARIES = "import torch, trl, peft, c3po_utils.training.finetune, c3po_utils.figures.tables"  # as 02 and 03 import
FEEDBACKS, METHODS, VALUES = 100, 12, 5
RECORD = {
    "domain": "questions", "effect": "the answer has two words", "source": "human", "kind": "style",
    "metric": {"name": "words_at_least", "value": 2},
}  # fmt: skip


def wide(folder: Path) -> RunConfig:
    """A run of 100 feedbacks and 12 methods, each trained with 5 values of a setting."""
    feedbacks = [{"id": f"feedback{n:03}", "content": f"Number {n}.", **RECORD} for n in range(FEEDBACKS)]
    (folder / "wide.yaml").write_text(yaml.safe_dump({"feedbacks": feedbacks}))
    names = ["c3po", "c3po_kl", "c3po_nll", "c3po_no_near", "c3po_no_out", "dpo", "dpo_negatives", "scd", "scd_mixed"]
    names += ["scd_negatives", "dpo_after_scd", "c3po_after_scd_negatives"]
    methods = [f"{name}@beta={value}" for value in range(VALUES) for name in names]
    own = {method: {"method_settings": {"beta": 0.01 + int(method[-1]) / 10}} for method in methods}
    return RunConfig(
        run=str(folder / "run"), feedback_set=str(folder / "wide.yaml"), methods=["scd", "scd_negatives", *methods],
        sample={"prompt_model": "smollm2-135m"}, train_methods=own,
    )  # fmt: skip


def pretend_done(run: RunConfig) -> None:
    """Manifests and small files as if everything were done."""
    for node in graph(run).values():
        for stage in node.make().stages:
            stage.folder.mkdir(parents=True, exist_ok=True)
            for name in stage.products:
                stage.path(name).write_text("{}")
            known = {name: fingerprint(stage.path(name)) for name in stage.products}
            manifest = {"status": "done", "identity": stage.identity, "files": known, "peak_gib": 1.0}
            stage.path(MANIFEST).write_text(json.dumps(manifest))
