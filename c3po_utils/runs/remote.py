"""A folder behind an fsspec URL (`s3://bucket/run`, `gs://…`, a mounted path): whole files by name, errors in words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from c3po_utils.runs.files import write_atomic, writing

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # by protocol, which extra brings its library
EXCLUSIVE = {"file", "s3", "s3a", "gs", "gcs"}  # protocols that create a file only where none is, in one step
EXPECTED = "expected a URL such as s3://bucket/run or gs://bucket/run, or an absolute path"
BUCKET = "see that its bucket is there"
KEY = (
    "see the key in this machine's environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
    " GOOGLE_APPLICATION_CREDENTIALS) and what it may do there"
)
UNREACHABLE = "what is done is kept here: run again when it can be reached"


class StoreError(OSError):
    """A store cannot be used; the message names its URL and says what to look at."""


def check_url(url: str) -> None:
    """Raise ValueError for what is no folder's URL, or for one whose library is not installed; opens no connection."""
    protocol, path = fsspec.core.split_protocol(url)
    if protocol in (None, "file") and not Path(path).is_absolute():
        raise ValueError(f"{EXPECTED}, found {url!r}")
    if protocol and not path.strip("/"):
        raise ValueError(f"{EXPECTED}; found {url!r}, which names no bucket")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol or "")
        install = f"the extra {extra!r} (pip install 'c3po-utils[{extra}]')" if extra else "its library"
        raise ValueError(f"{url} needs {install} to be installed: {error}") from error
    except ValueError as error:
        raise ValueError(f"{EXPECTED}, found {url!r}: {error}") from error


def _advice(error: Exception) -> str:
    """What to look at; libraries raise no common kinds of errors for missing keys and servers that do not answer."""
    if isinstance(error, FileNotFoundError):
        return BUCKET
    return KEY if isinstance(error, PermissionError) or "credentials" in str(error) else UNREACHABLE


class Remote:
    """Files in the folder of a URL, by names relative to it. Keys of stores come from the environment alone.

    Raises:
        StoreError: whatever goes wrong there: no bucket, a wrong key, no server.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        with self._explained():
            options = {"use_listings_cache": False} if fsspec.core.split_protocol(url)[0] else {}
            self.fs, self.root = fsspec.core.url_to_fs(self.url, **options)
        self.local = Path(self.root) if isinstance(self.fs, LocalFileSystem) else None
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.exclusive = bool(protocols & EXCLUSIVE)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _explained(self, name: str = "") -> Iterator[None]:
        place = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:  # each library has kinds of its own
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            parts = [" ".join(said.split()), *([] if self.local else [_advice(error)])]
            raise StoreError(f"{place}: {'; '.join(parts)}") from error

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is no such file."""
        return self.read_all([name]).get(name)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those that are there, many at one time."""
        names = list(names)
        with self._explained():  # fsspec's `cat` would take `try[2]` for a pattern
            found = self.fs.cat_ranges([self.path(name) for name in names], None, None, on_error="return")
        contents: dict[str, Any] = dict(zip(names, found, strict=True))
        for name, content in contents.items():
            if isinstance(content, Exception) and not isinstance(content, (FileNotFoundError, NotADirectoryError)):
                with self._explained(name):
                    raise content
        return {name: content for name, content in contents.items() if isinstance(content, bytes)}

    def all_names(self) -> list[str]:
        """The files in it and in folders below it, sorted, but hidden ones."""
        with self._explained():
            found = [path.removeprefix(self.root).strip("/") for path in self.fs.find(self.root)]
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, over one that is; readers see the old or the new."""
        with self._explained(name):
            if self.local:
                write_atomic(self.local / name, content)
            else:
                self.fs.pipe_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Put a file there, unless there is one: False. Of many that try at one time one succeeds (if `exclusive`)."""
        try:
            with self._explained(name):
                if self.local:
                    path = self.local / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "xb") as file:
                        try:
                            file.write(content)
                            file.flush()
                        except OSError:  # a full disk: an empty file would stand for one that somebody made
                            path.unlink()
                            raise
                else:
                    self.fs.pipe_file(self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none where there is no such folder."""
        with self._explained(folder):
            if self.local:  # fsspec's own listing is empty when a file in it has just gone
                here = self.local / folder
                found = [name for name in os.listdir(here) if not name.startswith(".")] if here.is_dir() else []
            else:
                found = [path.rpartition("/")[2] for path in self.fs.find(self.path(folder))]
        return sorted(f"{folder}/{name}" for name in found)

    def upload(self, path: Path, name: str) -> None:
        """Copy a file there, whatever its size."""
        with self._explained(name):
            if self.local:
                (self.local / name).parent.mkdir(parents=True, exist_ok=True)
            self.fs.put_file(str(path), self.path(name))

    def download(self, name: str, path: Path) -> None:
        """Copy a file from there; one that is here is overwritten."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(name):
            self.fs.get_file(self.path(name), str(path))
