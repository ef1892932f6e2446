"""A run of the real notebooks that takes a minute: its configuration, and the command line with an executor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from c3po_utils.runs.config import RunConfig

SMALL = {"categories": 3, "prompts_per_category": 3}
BRIEF = {"best_of": 2, "max_new_tokens": 12, "system_prompt": ""}


def config_for(run: Path | str, own_feedback: str, model: str, methods: list[str], **sample: Any) -> RunConfig:
    path, _, id = own_feedback.rpartition("#")
    return RunConfig(
        run=str(run), feedback_set=path, feedbacks=[id], methods=methods,
        sample={"model": model, **SMALL, "options": BRIEF, **sample},
        train={"epochs": 1, "batch_size": 3, "lora": {"r": 4}, "training_arguments": {"bf16": False}},
    )  # fmt: skip


def check_that_the_command_line_makes_a_run(
    folder: Path, own_feedback: str, model: str, executor: str, **settings: Any
) -> None:
    """`c3po run` to the table by way of an executor; then `status` finds all done, and again it starts nothing."""
    config = config_for(folder / "run", own_feedback, model, ["in_context", "scd", "c3po"])
    given = config.model_dump(exclude_defaults=True) | {"executor": executor, "executor_settings": settings}
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    _c3po("run", folder)
    table = pd.read_csv(folder / "run" / "figures" / "table2.csv")
    assert set(table.method) == set(config.methods)
    state = json.loads(_c3po("status", folder, "--json"))
    assert len(state["done"]) == 8
    assert not state["running"] | state["failed"] | state["waiting"]
    written = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("manifest.json")}
    _c3po("run", folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("manifest.json")} == written


def _c3po(command: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "c3po_utils", command, str(folder / "run.yaml"), *options],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
