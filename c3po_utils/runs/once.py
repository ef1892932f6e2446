"""Made once among processes that want the same at one time: locks by content, and values kept by it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from c3po_utils.runs import files

T = TypeVar("T")
HASH = "sha256"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that have none


@contextmanager
def alone(path: Path, keys: Iterable[str]) -> Iterator[None]:
    """Be the only process that holds any of the keys, for the length of a `with`; others wait.

    Each key is one byte of the file, locked in an order that is the same for all, so that two processes never wait for
    each other; the kernel drops the locks of a process that dies. Threads of one process do not exclude one another,
    and a second `with` on the same file inside the first would drop its locks. Where the file system has no locks, work
    is done twice instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    places = sorted({int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]) for key in keys})
    with open(path, "ab") as file:
        for place in places:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        yield


def made_once(folder: Path, name: str, key: Any, make: Callable[[], T]) -> T:
    """The JSON value that `make` returns for a `key`, made by one process for all, and kept in the folder.

    A file that is damaged is made anew, with a warning.
    """
    path = folder / f"{name}-{files.content_hash(key)[:16]}.json"
    if (found := _kept(path)) is None:
        with alone(folder / f"{name}.lock", [path.name]):
            if (found := _kept(path)) is None:
                found = make()
                files.write_json(path, {HASH: files.content_hash(found), "value": found})
    return found


def _kept(path: Path) -> Any:
    stored = files.remembered(path)
    if stored is None:
        return None
    if stored.get(HASH) != files.content_hash(stored.get("value")):
        warnings.warn(f"{path}: damaged: not what was written. It is made anew", stacklevel=3)
        return None
    return stored["value"]
