"""Files that are whole or not there: JSON and JSON Lines, written atomically, known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomic(path: Path | str, content: str | bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path | str, value: Any) -> Path:
    return write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value of a JSON file. Raises ValueError, which names the file, for anything else."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueErrors: no JSON, no UTF-8, a number of thousands of digits
        raise ValueError(f"{path}: expected JSON ({error})") from error


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> Path:
    return write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path | str) -> list[dict]:
    """All rows of a JSON Lines file; a line that is no JSON is an error with its number."""
    rows = []
    with open(path, encoding="utf-8") as file:  # not splitlines(), which also cuts at characters inside answers
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: expected one JSON object, found {line[:80]!r}") from error
    return rows


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-serializable value (keys sorted), or of a file's or folder's bytes when given a Path."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(path for path in value.rglob("*") if path.is_file()) if value.is_dir() else [value]
        for file in files:
            digest.update(str(file.relative_to(value)).encode())
            digest.update(file.read_bytes())
    else:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()
