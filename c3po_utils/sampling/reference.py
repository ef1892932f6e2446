"""Sampled data of the reference implementation as a finished sample: what it has is kept, and nothing is sampled.

A data folder holds a file for each kind of prompts, `{"train": {column: [...]}, "test": {column: [...]}}`, and the
names of the categories. Which prompt is of which category it does not say: the prompts' order has lost it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3po_utils.feedback import Feedback, foreign
from c3po_utils.runs import files
from c3po_utils.sampling.rows import ROWS, counts, sample_stage
from c3po_utils.sampling.settings import SampleSettings

SPLIT_OF = {
    "prompts.json": "in_scope",
    "negative_prompts.json": "near_scope",
    "general_prompts.json": "out_of_scope",
}
CATEGORIES = "categories.json"
COLUMN_OF = {
    "baseline_response": "baseline",
    "revised_response": "revised",
    "in_context_response": "in_context",
    "cot_response": "in_context_cot",
}
FOLDS = ("test", "train")  # in this order, so that a test prompt's id is the same whatever is trained on
NEEDED = ("prompt", "baseline_response")
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Given:
    """What the data do not say: pi_0, and where the answers that it gives in evaluations are cut."""

    model: str
    max_new_tokens: int = MAX_NEW_TOKENS


def text_of(value: Any) -> str:
    """An answer; "" for one that failed, which is stored as null or as the text None."""
    return "" if value in (None, "None") else value


def prompt_ids(feedback_id: str, split: str, prompts: Iterable[str]) -> Iterator[str]:
    """Ids of prompts from their texts, so that a prompt is known again in whatever order files have it.

    Those of general prompts are the same for all feedbacks. A repeated prompt has the number of its repetition.
    """
    seen: dict[str, int] = {}
    place = "general" if split == "out_of_scope" else f"{feedback_id}/{split}"
    for prompt in prompts:
        words = "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:4])
        id = f"{place}/{words}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        seen[id] = seen.get(id, 0) + 1
        yield id if seen[id] == 1 else f"{id}-{seen[id]}"


def import_sample(folder: Path, run: Path, feedback: Feedback, given: Given, report: foreign.Report) -> None:
    """The data of one feedback as `run`/sample/<id>, which 02_train and 03_evaluate take for sampled.

    A row without a prompt is left out and counted. In a lenient import a column that is not known, or a kind of
    prompts that is not there, is skipped; a folder with other problems is.

    Raises:
        FeedbackError: file and key of what is not understood. FileExistsError: another sample lies there.
    """
    try:
        rows, lost, problems = _read(folder, feedback)
        categories = _categories(folder / CATEGORIES)
    except foreign.FeedbackError as error:
        report.settle(error.problems)
        return
    report.settle(problems)
    number, prompts = max(2, len(categories)), sum(row["split"] == "in_scope" for row in rows)
    settings = SampleSettings(
        model=given.model, strategy="revise", best_of=0, system_prompt="", max_new_tokens=given.max_new_tokens,
        categories=number, prompts_per_category=max(1, math.ceil(prompts / number)),
    )  # fmt: skip
    source = {name: files.content_hash(folder / name) for name in (*SPLIT_OF, CATEGORIES) if (folder / name).is_file()}
    stage = sample_stage(run, feedback, settings, {"imported": source})
    counted = counts(rows) | {"prompt": {"ok": len(rows), "failed": lost}}
    if stage.changes():
        raise FileExistsError(f"{stage} holds another sample of {feedback.id!r}: expected a new folder")
    if not stage.done:
        with stage:
            files.write_jsonl(stage.path(ROWS), rows)
            stage.notes |= {"counts": counted, "categories": categories, "imported_from": str(folder)}
    report.imported.append(f"{folder}: {_told(counted)} -> {stage}")
    report.notes += _to_know(feedback.id, rows)


def _read(folder: Path, feedback: Feedback) -> tuple[list[dict], int, list[str]]:
    """Rows, how many had no prompt, and what can be skipped."""
    rows: list[dict] = []
    problems: list[str] = []
    lost = 0
    for name, split in SPLIT_OF.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: expected the {split} prompts, found no file")
            continue
        folds, told = _columns(path, foreign.read_json(path))
        problems += told
        found = [(fold, row) for fold in FOLDS for row in _rows(folds[fold])]
        kept = [(fold, row) for fold, row in found if row["prompt"]]
        lost += len(found) - len(kept)
        ids = prompt_ids(feedback.id, split, (row["prompt"] for _, row in kept))
        for id, (fold, row) in zip(ids, kept, strict=True):
            category = "general" if split == "out_of_scope" else f"imported, {fold}"
            about = {"id": id, "feedback": feedback.id, "split": split, "category": category, "fold": fold}
            rows.append(about | row)
    if not rows:
        raise foreign.FeedbackError([*problems, f"{folder}: expected prompts, found none"])
    return rows, lost, problems


def _columns(path: Path, data: Any) -> tuple[dict[str, dict[str, list]], list[str]]:
    """The known columns by fold, and problems with others. Raises FeedbackError for columns that make no rows."""
    if not isinstance(data, dict) or not set(FOLDS) <= data.keys():
        raise foreign.FeedbackError([f"{path}: expected the keys train and test, found {foreign.short(data)}"])
    problems = [f"{path}: {foreign.unknown(key, FOLDS)}" for key in data.keys() - set(FOLDS)]
    folds, wrong = {}, []
    for fold in FOLDS:
        columns = data[fold] if isinstance(data[fold], dict) else {}
        known = {"prompt", *COLUMN_OF}
        problems += [f"{path}: {foreign.unknown(f'{fold}.{key}', known)}" for key in columns if key not in known]
        folds[fold] = {key: values for key, values in columns.items() if key in known}
        wrong += [f"{path}: {fold}.{key}: expected this column, found nothing" for key in NEEDED if key not in columns]
        wrong += [f"{path}: {fold}.{problem}" for key in folds[fold] for problem in _wrong(key, folds[fold])]
    if wrong:
        raise foreign.FeedbackError([*problems, *wrong])
    return folds, problems


def _wrong(key: str, columns: dict[str, Any]) -> Iterator[str]:
    """The first thing that is wrong with a column, if any."""
    values, prompts = columns[key], columns.get("prompt")
    if not isinstance(values, list):
        yield f"{key}: expected a list, found {foreign.short(values)}"
    elif isinstance(prompts, list) and len(values) != len(prompts):
        yield f"{key}: expected {len(prompts)} values, one for each prompt, found {len(values)}"
    else:
        others = (n for n, value in enumerate(values) if not isinstance(value, str | None))
        for number in list(others)[:1]:
            yield f"{key}[{number}]: expected a text or null, found {foreign.short(values[number])}"


def _rows(columns: dict[str, list]) -> Iterator[dict]:
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        row: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            text = text_of(value)
            if name == "prompt":
                row["prompt"] = text
                continue
            column = COLUMN_OF[name]
            row[column], row[f"{column}_status"] = text, "ok" if text else "failed"
            if not text:
                row[f"{column}_reason"] = f"no answer in the imported data ({value!r})"
        yield row


def _categories(path: Path) -> list[str]:
    if not path.is_file():
        return []
    found = foreign.read_json(path)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise foreign.FeedbackError([f"{path}: expected a list of texts, found {foreign.short(found)}"])
    return found


def _told(counted: Mapping[str, Mapping[str, int]]) -> str:
    """How many rows, and how many of their answers failed."""
    failed = {column: number for column, by in counted.items() if (number := by.get("failed", 0))}
    lost = failed.pop("prompt", 0)
    parts = [f"{number} of {column} failed" for column, number in failed.items()]
    parts += [f"{lost} without a prompt left out"] if lost else []
    return ", ".join([f"{counted['prompt']['ok']} rows", *parts])


def _to_know(id: str, rows: Sequence[dict]) -> Iterator[str]:
    """Test prompts that are trained on, too: what is scored on them is no generalization."""
    trained = {(row["split"], row["prompt"]) for row in rows if row["fold"] == "train"}
    both = sum((row["split"], row["prompt"]) in trained for row in rows if row["fold"] == "test")
    if both:
        yield f"note: {id}: {both} test prompts are among its training prompts, word for word"
