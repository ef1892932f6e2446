"""A method's answers to the test prompts, scored against the baseline's (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_utils.adapters import WEIGHTS, merged
from c3po_utils.answers import add_answers
from c3po_utils.chat import ChatModel
from c3po_utils.feedback import Feedback
from c3po_utils.judge import Judge, judge_rows, verdict_counts
from c3po_utils.ledger import Ledger
from c3po_utils.local_chat import LocalChat
from c3po_utils.methods import METHODS, registered
from c3po_utils.metrics import check
from c3po_utils.models import load_tokenizer, shared_model
from c3po_utils.open_chat import RememberedChat, open_chat
from c3po_utils.runs import LEDGER, Stage, content_hash, done_stages, read_jsonl, shown, write_atomic, write_jsonl
from c3po_utils.sample import ROWS, SampleSettings, load_rows, stored_settings
from c3po_utils.score_table import Uncertainty, table2_markdown

ANSWERS = "answers.jsonl"
PROMPTED = ("base_resampled", "in_context", "in_context_cot", "revised")


def eval_stage(run: Path | str, feedback_id: str, method: str, judge: Judge | None = None) -> Stage:
    """The folder of one method's scores, done when they came from these samples, this adapter and this judge."""
    run = Path(run)
    inputs: dict[str, Any] = {"rows": content_hash(run / "sample" / feedback_id / ROWS)}
    if method not in PROMPTED:
        inputs["adapter"] = content_hash(adapter_folder(run, feedback_id, method) / WEIGHTS)
    if judge:
        inputs["judge"] = judge.identity
    return Stage(run / "eval" / feedback_id / method, {"method": method, **inputs}, ANSWERS)


def open_judge(
    run: Path | str, name: str, helpfulness: bool = False, limits: dict[str, Any] | None = None
) -> Judge | None:
    """The judge of a run, its verdicts in the run's ledger; None, for the metric's scores, without a name."""
    return Judge(name, Path(run) / LEDGER, helpfulness=helpfulness, **(limits or {})) if name else None


def adapter_folder(run: Path | str, feedback_id: str, method: str) -> Path:
    return Path(run) / "train" / feedback_id / method


@contextmanager
def model_for(run: Path | str, feedback_id: str, method: str, settings: SampleSettings) -> Iterator[ChatModel]:
    """pi_0 (method `base_resampled`) or pi_0 with the method's adapter merged into it, behind the run's ledger."""
    if method == "base_resampled":
        yield open_chat(settings.completion_model or settings.model, Path(run) / LEDGER)
        return
    folder = adapter_folder(run, feedback_id, method)
    name = f"{settings.model}+{content_hash(folder / WEIGHTS)}"
    with merged(shared_model(settings.model), folder) as tuned:
        chat = LocalChat(tuned, load_tokenizer(settings.model), name=name)
        yield RememberedChat(chat, Ledger(Path(run) / LEDGER))


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
        with model_for(run, feedback_id, method, settings) as model:
            add_answers(model, rows, settings, method)


def score_rows(rows: Sequence[dict], feedback: Feedback, method: str, judge: Judge | None = None) -> list[dict]:
    """One row per prompt: texts, whether answer and baseline pass the metric, and h = ok(y) - ok(y_0).

    A prompt without an answer (its status says why) has no score; it is counted as missing, not dropped. A judge's
    score takes the metric's place (judge.judge_rows); without a metric and a judge no row has one.
    """
    scored = [_score_row(row, feedback, method) for row in rows]
    return judge_rows(judge, scored, feedback) if judge else scored


def _score_row(row: dict, feedback: Feedback, method: str) -> dict:
    answer, baseline = row[method], row["baseline"]
    checkable = feedback.metric and answer and baseline
    ok = check(feedback.metric, answer, baseline) if checkable else None
    ok_baseline = check(feedback.metric, baseline, baseline) if checkable else None
    return {
        "prompt_id": row["id"], "feedback": feedback.id, "method": method, "split": row["split"],
        "category": row["category"], "prompt": row["prompt"], "baseline": baseline, "answer": answer,
        "status": row[f"{method}_status"], "ok": ok, "ok_baseline": ok_baseline,
        "score": None if ok is None else int(ok) - int(ok_baseline),
    }  # fmt: skip


def refuse_unscored(feedback: Feedback, judge: Judge | None) -> None:
    """Raise ValueError for a feedback that nothing can score: it has no metric, and there is no judge."""
    if feedback.metric is None and judge is None:
        raise ValueError(
            f"feedback {feedback.id!r} has no metric to score answers by, so it needs a judge: set judge_model, for"
            " example to 'openai:gpt-4.1', 'openai:MODEL@http://127.0.0.1:8000/v1' or a local model"
        )


def evaluate_method(run: Path | str, feedback: Feedback, method: str, judge: Judge | None = None) -> list[dict]:
    """Answer, score and store one method on the test prompts; read back if that was done.

    The judge's score goes where the metric's would be, which is kept as `heuristic`.

    Raises:
        ValueError: neither a metric nor a judge.
    """
    refuse_unscored(feedback, judge)
    stage = eval_stage(run, feedback.id, method, judge)
    if stage.done:
        return read_jsonl(stage.path(ANSWERS))
    stored = _stored_answers(stage)
    with stage:
        rows = load_rows(run, feedback.id, "test")
        if stored:  # by another judge: no need of the model that answered
            rows = [row | stored[row["id"]] for row in rows]
        else:
            fill_answers(run, feedback.id, method, rows, stored_settings(run, feedback.id))
        answers = score_rows(rows, feedback, method, judge)
        if judge:
            stage.notes["verdicts"] = verdict_counts(answers)
        write_jsonl(stage.path(ANSWERS), answers)
        stage.notes["missing"] = sum(row["score"] is None for row in answers)
    return answers


def _stored_answers(stage: Stage) -> dict[str, dict]:
    """By prompt id, the answers of a finished evaluation that differs in nothing but the judge; none without one."""
    if not stage.manifest or not stage.changes().keys() <= {"judge"}:
        return {}
    method = stage.identity["method"]
    stored = read_jsonl(stage.path(ANSWERS))
    return {row["prompt_id"]: {method: row["answer"], f"{method}_status": row["status"]} for row in stored}


def figures_stage(runs: Sequence[Path | str], output: Path | str) -> Stage:
    """The folder of tables and figures, done when it was made from these evaluations."""
    evaluations = {shown(folder): manifest["identity"] for run in runs for folder, manifest in done_stages(run, "eval")}
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
        if "pair" not in manifest["identity"]:  # two feedbacks in one model: see mixing.py
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
