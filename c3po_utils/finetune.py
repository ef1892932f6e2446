"""One method on one feedback's sampled data: from a run's rows to an adapter in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.adapters import WEIGHTS, lora_config
from c3po_utils.data import Preflight, training_rows
from c3po_utils.methods import Method, get_method
from c3po_utils.metrics import check
from c3po_utils.runs import Stage, content_hash, read_json
from c3po_utils.sample import ROWS, load_rows, members, stored_feedback, stored_settings
from c3po_utils.train import LOG, train


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
    """The folder of one adapter, done when it was trained with these settings on these rows.

    For `a+b` it is trained on the rows of both feedbacks.
    """
    run, objective = Path(run), settings.objective
    rows = {id: content_hash(run / "sample" / id / ROWS) for id in members(feedback_id)}
    sampled_with = {id: stored_settings(run, id).identity for id in rows}
    joint = len(rows) > 1
    identity = {
        "settings": asdict(settings),
        # Only what differs from the defaults, so that a setting added to Method later renames no finished run.
        "objective": objective.differences,
        "rows": rows if joint else rows[feedback_id],
        "sampled_with": sampled_with if joint else sampled_with[feedback_id],
    }
    if objective.start:
        identity["start"] = content_hash(start_folder(run, feedback_id, objective) / WEIGHTS)
    return Stage(run / "train" / feedback_id / settings.method, identity, WEIGHTS)


def start_folder(run: Path | str, feedback_id: str, objective: Method) -> Path | None:
    """The adapter that training starts from, or None.

    Raises:
        FileNotFoundError: the method starts from another's adapter, which is not trained yet.
    """
    if not objective.start:
        return None
    folder = Path(run) / "train" / feedback_id / objective.start
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(f"{folder} has no adapter: train {objective.start!r} first, this method starts from it")
    return folder


def prepare(
    run: Path | str, feedback_id: str, tokenizer: PreTrainedTokenizerBase, settings: TrainSettings
) -> tuple[list[dict], Preflight]:
    """Token rows of the training fold and what preflight counted; see data.training_rows for the errors."""
    system = stored_settings(run, feedback_id).system_prompt
    rows = load_rows(run, feedback_id, "train")
    keep = _passing(run, feedback_id) if settings.objective.only_passing else None
    return training_rows(rows, tokenizer, system=system, seed=settings.seed, keep=keep, **settings.objective.rows)


def _passing(run: Path | str, feedback_id: str) -> Callable[[dict], bool]:
    """Whether a row's revision passes the metric of its feedback.

    Raises:
        ValueError: a feedback without a metric.
    """
    metrics = {id: stored_feedback(run, id).metric for id in members(feedback_id)}
    if None in metrics.values():
        raise ValueError(f"only_passing: feedback {feedback_id!r} has no metric to choose pairs by")
    return lambda row: check(metrics[row["feedback"]], row["revised"], row["baseline"])


def train_feedback(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    settings: TrainSettings,
) -> pd.DataFrame:
    """Train and store the adapter, or do nothing if that was done; returns the log, one row per step."""
    objective, (run, feedback_id) = settings.objective, (stage.folder.parents[2], stage.folder.parent.name)
    if not stage.done:
        with stage:
            train(
                model, tokenizer, rows, objective, stage.folder,
                lora=lora_config(**settings.lora), name=f"training {settings.method}",
                start=start_folder(run, feedback_id, objective), references=run / "references",
                learning_rate=settings.learning_rate, num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size, seed=settings.seed, **settings.training_arguments,
            )  # fmt: skip
            stage.notes["tokens"] = sum(
                len(value) for row in rows for key, value in row.items() if key.endswith("_ids")
            )
    return pd.DataFrame(read_json(stage.path(LOG))).apply(pd.to_numeric, errors="coerce")
