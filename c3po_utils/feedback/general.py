"""Prompts from files: out-of-scope ones (the bundled set, Open Instruction Generalist, ...), and unlabelled ones."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import FEEDBACK_FOLDER, Prompt, load_general_prompts
from c3po_utils.feedback.text import folded
from c3po_utils.runs import nearest

UNLABELLED = FEEDBACK_FOLDER / "unlabelled"
FILE = re.compile(r"(?P<path>.+\.jsonl)(?::(?P<column>[^:/]+))?")
TURN = re.compile(r"<human>:(.*?)(?:<bot>:|<human>:|\Z)", re.DOTALL)


def general_prompts(source: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts of a source, drawn by seed, the same for all feedbacks; of the bundled set all there are.

    `source` is `bundled`, a JSON Lines file (`oig/unified_chip2.jsonl`; other columns than `text`, `prompt`
    as `file.jsonl:column`), or `hf:DATASET[/CONFIG]:SPLIT:COLUMN`, where two slashes mean owner/name/config.

    Raises:
        FileNotFoundError: no such file. ValueError: a line that is no JSON object or lacks the column (file
        and line are named), a source of another form, or fewer prompts than wanted.
    """
    if source == "bundled":
        return load_general_prompts()
    name, texts = _open(source)
    name = re.sub(r"\W+", "-", name).strip("-").lower()
    chosen = [text for _, text in heapq.nsmallest(count, _ranked(texts, seed))]
    if len(chosen) < count:
        raise ValueError(f"general prompts from {source!r}: expected {count}, found {len(chosen)} different ones")
    return [Prompt(f"general/{name}-{number:04}", "out_of_scope", name, text) for number, text in enumerate(chosen, 1)]


def unlabelled_texts(source: str, feedback_ids: Sequence[str]) -> list[str]:
    """Different prompts about the matters of feedbacks, in their order; nobody said whether these apply to them.

    `source` is `bundled`, of the feedbacks that have some in feedback/unlabelled, or `FILE.jsonl[:COLUMN]`.

    Raises:
        FeedbackError: a feedback without bundled ones. FileNotFoundError, ValueError: as `general_prompts`.
    """
    if source == "bundled":
        found = [(_bundled(id), None) for id in feedback_ids]
    else:
        found = [_file(source, "unlabelled prompts", "bundled or FILE.jsonl[:COLUMN]")]
    texts = [text for path, column in found for text in _json_lines(path, column)]
    return list({folded(text): text for text in texts if folded(text)}.values())


def _bundled(feedback_id: str) -> Path:
    path = UNLABELLED / f"{feedback_id}.jsonl"
    if not path.is_file():
        hint = nearest(feedback_id, [file.stem for file in UNLABELLED.glob("*.jsonl")])
        raise FeedbackError([f"no unlabelled prompts for {feedback_id!r}: expected {path} ({hint})"])
    return path


def absolute(source: str) -> str:
    """The source; a file's from the root, where it was relative to this process: kernels run in another folder."""
    if (match := FILE.fullmatch(source)) and Path(match["path"]).is_file():
        return os.path.abspath(match["path"]) + source.removeprefix(match["path"])
    return source


def _ranked(texts: Iterable[str], seed: int) -> Iterator[tuple[str, str]]:
    """Different texts, each after its rank by hash, which depends on the seed and not on the file's order."""
    seen: set[int] = set()  # hashes: millions of texts need not be kept
    for text in texts:
        plain = folded(text)
        if plain and hash(plain) not in seen:
            seen.add(hash(plain))
            yield hashlib.sha256(f"{seed} {plain}".encode()).hexdigest(), text


def _open(source: str) -> tuple[str, Iterator[str]]:
    if source.startswith("hf:"):
        parts = source.removeprefix("hf:").split(":")
        if len(parts) != 3:
            raise ValueError(f"general prompts {source!r}: expected hf:DATASET:SPLIT:COLUMN")
        return parts[0], _data_set(*parts)
    path, column = _file(source, "general prompts", "bundled, FILE.jsonl[:COLUMN] or hf:DATASET:SPLIT:COLUMN")
    return path.stem, _json_lines(path, column)


def _file(source: str, what: str, expected: str) -> tuple[Path, str | None]:
    """The file's path, and the column if one is named."""
    match = FILE.fullmatch(source)
    if not match:
        raise ValueError(f"{what} {source!r}: expected {expected}")
    path = Path(match["path"]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no file {path}")
    return path, match["column"]


def _json_lines(path: Path, column: str | None) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _first_turn(_cell(line, [column] if column else ["text", "prompt"], f"{path}, line {number}"))


def _cell(line: str, columns: list[str], place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: expected a JSON object, found {line[:80]!r}") from error
    cells = row if isinstance(row, dict) else {}
    found = next((cells[name] for name in columns if name in cells), None)
    if not isinstance(found, str):
        hint = nearest(columns[0], cells) if cells is row else "no object"
        raise ValueError(f"{place}: expected a text in {' or '.join(columns)} ({hint}), found {str(found)[:80]!r}")
    return found


def _first_turn(text: str) -> str:
    """What the human says first in OIG's `<human>: ... <bot>: ...`, or the text itself."""
    turn = TURN.search(text)
    return (turn[1] if turn else text).strip()


def _data_set(name: str, split: str, column: str) -> Iterator[str]:
    from datasets import load_dataset

    named = name.count("/") == 2 and name[0] not in "./~"
    owner_and_name, config = name.rsplit("/", 1) if named else (name, None)
    rows = load_dataset(owner_and_name, config, split=split)
    if column not in rows.column_names:
        raise ValueError(f"data set {name!r} has no column {column!r} ({nearest(column, rows.column_names)})")
    yield from (_first_turn(str(text)) for text in rows[column])
