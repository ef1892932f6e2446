"""Files that are whole or not there: JSON and JSON Lines, written atomically, known by their content."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AT_ONCE = 2**20  # bytes: smaller files are read whole


class DamagedFile(ValueError):
    """A file that does not hold what was written to it."""


@contextmanager
def writing(path: Path | str, *others: type[Exception]) -> Iterator[None]:
    """Around writing: errors of the disk name the path.

    Raises:
        OSError: for an OSError, which often tells no path, and for `others`, which libraries raise in its place.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except others as error:
        raise OSError(f"{path}: could not be written: {' '.join(str(error).split())}") from error


def write_atomic(path: Path | str, content: str | bytes, *, sync: bool = True) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between.

    Without `sync` that holds for readers only: for what nobody needs after a crash.

    Raises:
        OSError: the disk is full, the folder read-only; names the path.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # tempfile's would not follow the umask
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def write_json(path: Path | str, value: Any) -> Path:
    return write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str, kind: type = object) -> Any:
    """The JSON value in a file. Raises DamagedFile unless it is one, and of this kind."""
    data = Path(path).read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: expected JSON, found {len(data)} bytes that are none: {error}") from None
    if not isinstance(value, kind):
        raise DamagedFile(f"{path}: expected a JSON {kind.__name__}, found {str(value)[:80]!r}")
    return value


def remembered(path: Path | str) -> dict | None:
    """The JSON object in a file, of what can be made anew: None without one, or for a damaged one, with a warning."""
    try:
        return read_json(path, dict)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warnings.warn(f"{error}. It is made anew", stacklevel=2)
        return None


PACKED = ".gz"


def packed(path: Path | str) -> Path:
    """Where a file lies packed: the same content, known by the same hash, beside its own name."""
    return Path(path).with_name(Path(path).name + PACKED)


def there(path: Path | str) -> bool:
    """Whether a file is there, packed or not."""
    return Path(path).exists() or packed(path).exists()


def stored(path: Path | str) -> bytes:
    """The content of a file, also where it lies packed. Raises DamagedFile for one that cannot be unpacked."""
    path = Path(path)
    if path.exists() or not packed(path).exists():
        return path.read_bytes()
    try:
        return gzip.decompress(packed(path).read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFile(f"{packed(path)}: expected a gzip file, found one that cannot be unpacked: {error}") from None


def pack(path: Path | str) -> Path:
    """Pack a file: the same bytes from the same content."""
    write_atomic(packed(path), gzip.compress(Path(path).read_bytes(), mtime=0))
    Path(path).unlink()
    return packed(path)


def remove(path: Path | str) -> None:
    """Remove a file, packed or not, if it is there."""
    for found in (Path(path), packed(path)):
        found.unlink(missing_ok=True)


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> Path:
    return write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path | str) -> list[dict]:
    """All rows of a JSON Lines file, packed or not; a line that is no JSON object is an error with its number."""
    rows = []
    for number, line in enumerate(io.BytesIO(stored(path)), 1):  # unlike splitlines(), it cuts nowhere inside answers
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            found = line[:80].decode(errors="replace")
            raise DamagedFile(f"{path}, line {number}: expected one JSON object, found {found!r}")
        rows.append(row)
    return rows


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-serializable value (keys sorted), or of a file's or folder's bytes when given a Path."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(path for path in value.rglob("*") if path.is_file()) if value.is_dir() else [value]
        for path in files:
            digest.update(str(path.relative_to(value)).encode())
            if not path.exists():
                digest.update(stored(path))
                continue
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size > AT_ONCE:
                    hashlib.file_digest(file, lambda: digest)
                else:
                    digest.update(file.read())  # file_digest makes a large buffer first
    else:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()
