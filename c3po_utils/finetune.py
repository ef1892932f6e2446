"""One method on one feedback's sampled data: from a run's rows to an adapter in the run's folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.data import Preflight, training_rows
from c3po_utils.runs import Stage, content_hash, read_json
from c3po_utils.sample import ROWS, SampleSettings, load_rows, stored_settings
from c3po_utils.train import LOG, Method, get_method, lora_config, train


@dataclass(frozen=True)
class TrainSettings:
    """What decides an adapter besides the rows it is trained on."""

    method: str
    learning_rate: float
    epochs: float
    batch_size: int
    seed: int
    lora: dict[str, Any] = field(default_factory=dict)  # arguments of lora_config that differ
    method_settings: dict[str, Any] = field(default_factory=dict)
    training_arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> Method:
        return get_method(self.method, **self.method_settings)


def train_stage(run: Path | str, feedback_id: str, settings: TrainSettings) -> Stage:
    """The folder of one adapter, done when it was trained with these settings on these rows."""
    run = Path(run)
    identity = {
        "settings": asdict(settings),
        "objective": asdict(settings.objective),
        "rows": content_hash(run / "sample" / feedback_id / ROWS),
        "sampled_with": asdict(stored_settings(run, feedback_id)),
    }
    return Stage(run / "train" / feedback_id / settings.method, identity)


def prepare(
    run: Path | str, feedback_id: str, tokenizer: PreTrainedTokenizerBase, settings: TrainSettings
) -> tuple[list[dict], Preflight]:
    """Token rows of the training fold and what preflight counted; see data.training_rows for the errors."""
    sampled: SampleSettings = stored_settings(run, feedback_id)
    return training_rows(
        load_rows(run, feedback_id, "train"), tokenizer,
        segments=settings.objective.segments, system=sampled.system_prompt, seed=settings.seed,
    )  # fmt: skip


def train_feedback(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    settings: TrainSettings,
) -> pd.DataFrame:
    """Train and store the adapter, or do nothing if that was done; returns the log, one row per step."""
    if not stage.done:
        with stage:
            train(
                model, tokenizer, rows, settings.objective, stage.folder,
                lora=lora_config(**settings.lora), name=f"training {settings.method}",
                learning_rate=settings.learning_rate, num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size, seed=settings.seed, **settings.training_arguments,
            )  # fmt: skip
            stage.notes["tokens"] = sum(
                len(value) for row in rows for key, value in row.items() if key.endswith("_ids")
            )
    return pd.DataFrame(read_json(stage.path(LOG))).apply(pd.to_numeric, errors="coerce")
