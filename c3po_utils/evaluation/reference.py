"""Evaluations of the reference implementation as finished ones, from which 05_figures draws.

A file holds one method's answers to three lists of prompts, with the values of its own metrics or verdicts: they are
kept, and nothing is scored anew. The method is the file's name, or what the training arguments in it come to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from c3po_utils.evaluation.evaluate import ANSWERS
from c3po_utils.feedback import Feedback, foreign
from c3po_utils.runs import Stage, files
from c3po_utils.sampling import reference as sampled
from c3po_utils.training import methods
from c3po_utils.training import reference as trained

SPLIT_OF = {"in_domain": "in_scope", "out_of_domain": "near_scope", "general": "out_of_scope"}
PROMPTED = {"in_context": "in_context", "cot": "in_context_cot", "revised": "revised"}
BETTER, HELPFUL = "improved_better_baseline", "answer_quality_improved_better_baseline"
ROW = ("prompt", "baseline", "improved", "baseline_metric", "improved_metric", BETTER, HELPFUL)
ABOUT = ("feedback", "scope", "type", "train_args", "second_feedback")
AGGREGATES = tuple(
    f"{kind}_{name}" for kind in SPLIT_OF for name in ("baseline_metric", "improved_metric", BETTER, HELPFUL)
)
MIDDLE, REACH = 3, 2  # of verdicts from 1, the baseline by far, to 5, the other answer by far
NOT_ASKED = -1  # what stands where no metric was applied, or no verdict asked for


def is_evaluation(data: Any) -> bool:
    """Whether a JSON file's content is an evaluation."""
    return isinstance(data, dict) and "feedback" in data and bool(SPLIT_OF.keys() & data.keys())


def import_evaluation(path: Path, data: dict[str, Any], run: Path, feedback: Feedback, report: foreign.Report) -> None:
    """One evaluation as `run`/eval/<id>/<method>, done. Means are computed anew, from the rows.

    In a lenient import a key that is not known is skipped; a file with other problems is.

    Raises:
        FeedbackError: file and key of what is not understood. FileExistsError: another evaluation lies there.
    """
    problems = [f"{path}: {foreign.unknown(key, ABOUT)}" for key in data.keys() - {*SPLIT_OF, *ABOUT, *AGGREGATES}]
    wrong: list[str] = []
    if data.get("second_feedback"):
        wrong.append(f"{path}: second_feedback: expected one feedback, as two in one model are scored by both here")
    try:
        method = _method(path, data)
    except ValueError as error:
        wrong.append(f"{path}: train_args: {error}")
    rows = []
    for kind, split in SPLIT_OF.items():
        found = data.get(kind)
        if not isinstance(found, list):
            wrong.append(f"{path}: {kind}: expected a list of rows, found {foreign.short(found)}")
            continue
        told = [problem for n, row in enumerate(found) for problem in _wrong(f"{path}: {kind}[{n}]", row)]
        wrong += told
        if not told:
            ids = sampled.prompt_ids(feedback.id, split, (row["prompt"] for row in found))
            rows += [
                {"prompt_id": id, "feedback": feedback.id, "split": split, "category": _category(split), **_scored(row)}
                for id, row in zip(ids, found, strict=True)
            ]
    if wrong:
        report.settle([*problems, *wrong])
        return
    report.settle(problems)
    _store(path, run, feedback, method, rows, report)


def _store(path: Path, run: Path, feedback: Feedback, method: str, rows: list[dict], report: foreign.Report) -> None:
    identity = {"method": method, "imported": {path.name: files.content_hash(path)}}
    stage = Stage(run / "eval" / feedback.id / method, identity, ANSWERS)
    if stage.changes():
        raise FileExistsError(f"{stage} holds another evaluation by {method!r}: expected a new folder")
    missing = sum(row["score"] is None for row in rows)
    if not stage.done:
        with stage:
            files.write_jsonl(stage.path(ANSWERS), [row | {"method": method} for row in rows])
            stage.notes |= {"missing": missing, "imported_from": str(path)}
    report.imported.append(f"{path}: {len(rows)} answers, {missing} without a score -> {stage}")


def _category(split: str) -> str:
    return "general" if split == "out_of_scope" else "imported, test"


def _method(path: Path, data: Mapping[str, Any]) -> str:
    """Our name. A training whose settings differ from the method's has them, or the file's name, as a label."""
    if "train_args" not in data:
        if path.stem not in PROMPTED:
            raise ValueError(f"expected this key, or a file named by one of {', '.join(PROMPTED)}; found {path.stem!r}")
        return PROMPTED[path.stem]
    if not isinstance(data["train_args"], dict):
        raise ValueError(f"expected a mapping, found {foreign.short(data['train_args'])}")
    method, settings = trained.method_of(data["train_args"])
    label = ",".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    )
    return f"{method}@{label if methods.LABEL.fullmatch(label) else path.stem[-80:]}" if label else method


def _wrong(place: str, row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{place}: expected a mapping, found {foreign.short(row)}"
        return
    yield from (f"{place}.{foreign.unknown(key, ROW)}" for key in row.keys() - set(ROW))
    yield from (f"{place}.{key}: expected this key, found nothing" for key in ROW[:-1] if key not in row)
    if not isinstance(row.get("prompt"), str):
        yield f"{place}.prompt: expected a text, found {foreign.short(row.get('prompt'))}"
    for key in ("baseline", "improved"):
        if not isinstance(row.get(key), str | None):
            yield f"{place}.{key}: expected a text or null, found {foreign.short(row[key])}"
    if row.keys() >= set(ROW[:-1]):
        yield from (f"{place}.{problem}" for problem in _wrong_values(row))


def _wrong_values(row: Mapping[str, Any]) -> Iterator[str]:
    for key in ("baseline_metric", "improved_metric"):
        if not isinstance(row[key], bool | int | float) or not math.isfinite(row[key]):
            yield f"{key}: expected a number, true or false, found {foreign.short(row[key])}"
            return
    for key in (BETTER, HELPFUL):
        value = row.get(key)
        verdict = value is None or (type(value) is int and (value == NOT_ASKED or abs(value - MIDDLE) <= REACH))
        if not verdict and not (key == BETTER and isinstance(value, bool)):
            yield f"{key}: expected a verdict from {MIDDLE - REACH} to {MIDDLE + REACH}, found {foreign.short(value)}"


def _scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Texts and scores of a row: h of a metric's values, g of a verdict."""
    baseline, answer = (sampled.text_of(row[key]) for key in ("baseline", "improved"))
    checked = all(isinstance(row[f"{kind}_metric"], bool) for kind in ("baseline", "improved"))
    score, by = _score(row)
    scored = {
        "prompt": row["prompt"], "baseline": baseline, "answer": answer,
        "status": "ok" if answer else "failed", "passes": row["improved_metric"] if checked else None,
        "baseline_passes": row["baseline_metric"] if checked else None,
        "score": score if baseline and answer else None, "scored_by": by,
    }  # fmt: skip
    helpful = row.get(HELPFUL)
    return scored if helpful == NOT_ASKED else scored | {"helpful": _from_verdict(helpful)}


def _score(row: Mapping[str, Any]) -> tuple[float | None, str]:
    baseline, improved, better = row["baseline_metric"], row["improved_metric"], row[BETTER]
    if not isinstance(better, bool):
        return (None if better == NOT_ASKED else _from_verdict(better)), "the reference's judge"
    if isinstance(baseline, bool) and isinstance(improved, bool):
        return int(improved) - int(baseline), "the reference's metric"
    return (0 if baseline == improved else 1 if better else -1), "the reference's metric"


def _from_verdict(verdict: int | None) -> float | None:
    return None if verdict is None else (verdict - MIDDLE) / REACH
