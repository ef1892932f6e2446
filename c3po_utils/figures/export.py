"""Scores for other programs: every answer's as a tidy CSV, or tables by method and by feedback; and for cards."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from c3po_utils.evaluation import collect, evaluate, scores
from c3po_utils.figures import plain_text
from c3po_utils.figures.tables import table2_markdown
from c3po_utils.runs import done_stages, exports
from c3po_utils.training import BASE_RESAMPLED

By = Literal["answer", "method", "feedback"]
COLUMNS = (
    "feedback", "method", "split", "category", "prompt_id", "score", "scored_by", "passes", "baseline_passes", "status",
    "metric_score", "helpful", "two_feedbacks", "setting", "prompts_of",
)  # fmt: skip
TEXTS = ("prompt", "baseline", "answer")


def export_scores(
    run: Path,
    out: Path | str,
    feedbacks: Sequence[str] = (),
    methods: Sequence[str] = (),
    by: By = "answer",
    texts: bool = False,
    force: bool = False,
) -> int:
    """Write a CSV of a run's finished evaluations; returns its number of rows.

    By `answer` it has COLUMNS, empty where an evaluation has no such column, and TEXTS if asked for, one stage in
    memory at a time; `two_feedbacks` and what follows it are those of two feedbacks in one model (figure 7). By
    `method` and by `feedback` it has the scores with 95% bounds (scores.method_scores, scores.feedback_scores), of
    single feedbacks. A text that a spreadsheet would take for a formula gets a `'` before it; numbers stay as they are.

    Raises:
        ValueError: a feedback or method that was not evaluated, with the nearest name.
        FileExistsError: see exports.placed.
        DamagedFile: scores are not those that were stored.
    """
    stages = [(_learned(manifest, folder), folder.name) for folder, manifest in done_stages(run, "eval")]
    ids = exports.chosen("evaluated feedback", feedbacks, (id for id, _ in stages), run)
    names = exports.chosen("evaluated method", methods, (name for _, name in stages), run)
    with exports.placed(out, force) as file, open(file, "w", encoding="utf-8", newline="") as opened:
        if by == "answer":
            found = evaluate.current(run)
            kept = [folder for folder, own in found if _learned(own, folder) in ids and folder.name in names]
            return _write_answers(opened, kept, (*COLUMNS, *(TEXTS if texts else ())))
        table = _table(run, ids, names, by)
        opened.write(plain_text.csv(table, "%.6g"))
        return len(table)


def _learned(manifest: dict, folder: Path) -> str:
    """The feedback, or the two in one model, that a stage evaluates."""
    return manifest["identity"].get("two_feedbacks", folder.parent.name)


def _write_answers(opened: Any, stages: Sequence[Path], columns: Sequence[str]) -> int:
    writer = csv.writer(opened, lineterminator="\n")
    writer.writerow(columns)
    written = 0
    for row in _rows(stages):
        writer.writerow([plain_text.no_formula(row.get(column)) for column in columns])
        written += 1
    return written


def _rows(stages: Sequence[Path]) -> Iterator[dict]:
    for folder in stages:
        yield from evaluate.read_scores(folder)


def _table(run: Path, ids: Sequence[str], methods: Sequence[str], by: By) -> pd.DataFrame:
    answers = collect(run)
    answers = answers[answers["feedback"].isin(ids) & answers["method"].isin(methods)]
    if answers.empty:
        raise ValueError(f"{run}: no scores of single feedbacks among {', '.join([*ids, *methods])}")
    return {"method": scores.method_scores, "feedback": scores.feedback_scores}[by](answers)


def card_scores(run: Path, feedback_id: str, method: str) -> str:
    """Table 2 of one adapter beside the noise floor, in Markdown; empty where it was not evaluated on its own.

    An evaluation of the adapter that lay there before is none.
    """
    stages = [run / "eval" / feedback_id / name for name in (BASE_RESAMPLED, method)]
    done = {folder for folder, _, stale in evaluate.evaluations(run) if not stale}
    if stages[1] not in done:
        return ""
    answers = pd.DataFrame(list(_rows([folder for folder in stages if folder in done])))
    return table2_markdown(scores.feedback_scores(answers)).strip()
