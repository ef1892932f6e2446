"""A method's answers to the test prompts, scored against the baseline's (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_utils.adapters import WEIGHTS, load_adapter
from c3po_utils.chat import ChatModel
from c3po_utils.feedback import Feedback
from c3po_utils.ledger import Ledger
from c3po_utils.local_chat import LocalChat
from c3po_utils.methods import METHODS, registered
from c3po_utils.metrics import check
from c3po_utils.models import load_model, load_tokenizer
from c3po_utils.open_chat import RememberedChat, open_local
from c3po_utils.runs import LEDGER, Stage, content_hash, done_stages, read_jsonl, write_atomic, write_jsonl
from c3po_utils.sample import ROWS, SampleSettings, add_answers, load_rows, stored_settings
from c3po_utils.score_table import Uncertainty, table2_markdown

ANSWERS = "answers.jsonl"
PROMPTED = ("base_resampled", "in_context", "in_context_cot", "revised")


def eval_stage(run: Path | str, feedback_id: str, method: str) -> Stage:
    """The folder of one method's scores, done when they came from these samples and this adapter."""
    run = Path(run)
    inputs: dict[str, Any] = {"rows": content_hash(run / "sample" / feedback_id / ROWS)}
    if method not in PROMPTED:
        inputs["adapter"] = content_hash(adapter_folder(run, feedback_id, method) / WEIGHTS)
    return Stage(run / "eval" / feedback_id / method, {"method": method, **inputs})


def adapter_folder(run: Path | str, feedback_id: str, method: str) -> Path:
    return Path(run) / "train" / feedback_id / method


def model_for(run: Path | str, feedback_id: str, method: str, settings: SampleSettings) -> ChatModel:
    """pi_0 (method `base_resampled`) or pi_0 with the method's adapter merged into it, behind the run's ledger."""
    if method == "base_resampled":
        return open_local(settings.model, Path(run) / LEDGER)
    folder = adapter_folder(run, feedback_id, method)
    merged = load_adapter(load_model(settings.model), folder).merge_and_unload()
    name = f"{settings.model}+{content_hash(folder / WEIGHTS)}"
    return RememberedChat(LocalChat(merged, load_tokenizer(settings.model), name=name), Ledger(Path(run) / LEDGER))


def fill_answers(
    run: Path | str, feedback_id: str, method: str, rows: Sequence[dict], settings: SampleSettings
) -> None:
    """Make sure that the rows have a column named after the method.

    `base_resampled` is a second, independent sample of the untouched model: what it scores is the noise floor.
    `revised` is what the trained methods aim at: y+ in scope and the baseline's answer elsewhere. In-context answers
    were sampled with the data.
    """
    if method == "revised":
        for row in rows:
            if row["split"] != "in_scope":
                row.update(revised=row["baseline"], revised_status=row["baseline_status"])
    elif method == "base_resampled" or method not in PROMPTED:
        add_answers(model_for(run, feedback_id, method, settings), rows, settings, method)


def score_rows(rows: Sequence[dict], feedback: Feedback, method: str) -> list[dict]:
    """One row per prompt: texts, whether answer and baseline pass the metric, and h = ok(y) - ok(y_0).

    A prompt without an answer (its status says why) has no score; it is counted as missing, not dropped.
    """
    if feedback.metric is None:
        raise ValueError(f"feedback {feedback.id!r} has no metric: it needs a judge")
    return [_score_row(row, feedback, method) for row in rows]


def _score_row(row: dict, feedback: Feedback, method: str) -> dict:
    answer, baseline = row[method], row["baseline"]
    ok = check(feedback.metric, answer, baseline) if answer and baseline else None
    ok_baseline = check(feedback.metric, baseline, baseline) if answer and baseline else None
    return {
        "prompt_id": row["id"], "feedback": feedback.id, "method": method, "split": row["split"],
        "category": row["category"], "prompt": row["prompt"], "baseline": baseline, "answer": answer,
        "status": row[f"{method}_status"], "ok": ok, "ok_baseline": ok_baseline,
        "score": None if ok is None else int(ok) - int(ok_baseline),
    }  # fmt: skip


def evaluate_method(run: Path | str, feedback: Feedback, method: str) -> list[dict]:
    """Answer, score and store one method on the test prompts; read back if that was done."""
    stage = eval_stage(run, feedback.id, method)
    if stage.done:
        return read_jsonl(stage.path(ANSWERS))
    with stage:
        rows = load_rows(run, feedback.id, "test")
        fill_answers(run, feedback.id, method, rows, stored_settings(run, feedback.id))
        answers = score_rows(rows, feedback, method)
        write_jsonl(stage.path(ANSWERS), answers)
        stage.notes["missing"] = sum(row["score"] is None for row in answers)
    return answers


def figures_stage(runs: Sequence[Path | str], output: Path | str) -> Stage:
    """The folder of tables and figures, done when it was made from these evaluations."""
    evaluations = {str(folder): manifest["identity"] for run in runs for folder, manifest in done_stages(run, "eval")}
    return Stage(output, {"evaluations": evaluations})


def store_tables(
    by_method: pd.DataFrame, by_feedback: pd.DataFrame, folder: Path | str, uncertainty: Uncertainty
) -> None:
    """`table2.csv` and `table2.md` (a row per method), `scores.csv` (a row per feedback and method)."""
    folder = Path(folder)
    write_atomic(folder / "table2.csv", by_method.to_csv(index=False, float_format="%.4f"))
    write_atomic(folder / "table2.md", table2_markdown(by_method, uncertainty=uncertainty))
    write_atomic(folder / "scores.csv", by_feedback.to_csv(index=False, float_format="%.4f"))


@dataclass(frozen=True)
class Collected:
    """Every finished evaluation below some run folders: the tidy answers table of scores.py."""

    answers: pd.DataFrame
    manifests: list[dict]


def _finished(run: Path | str) -> Iterator[tuple[list[dict], dict]]:
    for folder, manifest in done_stages(run, "eval"):
        yield read_jsonl(folder / ANSWERS), manifest


def collect(*runs: Path | str) -> Collected:
    """All stored evaluations of the runs, as one table.

    Raises:
        FileNotFoundError: no run has a finished evaluation.
    """
    found = [stage for run in runs for stage in _finished(run)]
    if not found:
        raise FileNotFoundError(
            f"no finished evaluation below {[str(run) for run in runs]}: run notebooks/03_evaluate.ipynb first"
        )
    answers = pd.DataFrame([row for rows, _ in found for row in rows])
    return Collected(answers, [manifest for _, manifest in found])


def trained_methods(methods: Sequence[str]) -> list[str]:
    """Those among the methods that need an adapter.

    Raises:
        KeyError: a method that is neither prompted nor registered.
    """
    unknown = [method for method in methods if method not in PROMPTED and registered(method) not in METHODS]
    if unknown:
        raise KeyError(f"unknown method {unknown[0]!r}; expected one of {[*PROMPTED, *METHODS]}")
    return [method for method in methods if registered(method) in METHODS]
