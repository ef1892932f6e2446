"""A run's stages in a store (`remote.py`), for machines that share no disk: finished ones only, whole or not there.

The store looks like the run's folder. A stage's manifest is written last, when all its files are there, and says there
the hash of each of them (`stored`); before a stage is written anew its manifest goes first. So a reader never takes a
half-written stage for one, and what an upload that was cut off left behind is overwritten by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from c3po_utils.runs import stage
from c3po_utils.runs.files import PACKED, DamagedFile, remembered, write_json
from c3po_utils.runs.remote import Remote
from c3po_utils.runs.stage import MANIFEST, SMALL, fingerprint

STORED = "stored"  # in a manifest in the store: {file: its fingerprint}, of all the stage's files
ARRIVING = ".arriving"  # in a stage's folder: files that are not all here yet
LOCK = ".fetching"  # in the local run's folder: processes that share it fetch one after another

Manifest = dict[str, Any]


class Store:
    """The stages of one run, in its store and in its local folder.

    Raises:
        ValueError: the store is the local run's folder, or one holds the other.
        StoreError: the store cannot be used (see `Remote`).
    """

    def __init__(self, url: str, run: Path):
        self.remote, self.run = Remote(url), run
        if self.remote.local:
            ends = (self.remote.local.resolve(), run.resolve())
            if ends[0].is_relative_to(ends[1]) or ends[1].is_relative_to(ends[0]):
                raise ValueError(f"store {url!r}: expected a place outside of the run's own folder, {run}")

    def name(self, folder: Path) -> str:
        return folder.relative_to(self.run).as_posix()

    def manifests(self, folders: Iterable[Path]) -> dict[Path, Manifest]:
        """Those of the stages among `folders` that are in the store."""
        names = {f"{self.name(folder)}/{MANIFEST}": folder for folder in folders}
        found = {}
        for name, content in self.remote.read_all(names).items():
            manifest = _parsed(content)
            if manifest is not None:
                found[names[name]] = manifest
        return found

    def publish(self, folder: Path, theirs: Manifest | None) -> bool:
        """Put a finished stage into the store, unless `theirs` says that it is there; whether it was put there.

        Raises:
            DamagedFile: a file is not the one that the stage's manifest was written for.
        """
        ours = remembered(folder / MANIFEST)
        if not ours or ours.get("status") != "done":
            return False
        for name in ours.get("files", {}):
            stage.intact(folder, name)
        stored = {name: fingerprint(folder / name) for name in _files(folder)}
        if theirs == {**ours, STORED: stored}:
            return False
        place = self.name(folder)
        self.remote.remove(f"{place}/{MANIFEST}")
        for name in stored:
            self.remote.upload(folder / name, f"{place}/{name}")
        self.remote.write(f"{place}/{MANIFEST}", json.dumps({**ours, STORED: stored}, ensure_ascii=False).encode())
        for name in (theirs or {STORED: {}})[STORED].keys() - stored.keys():  # such as what is packed now
            self.remote.remove(f"{place}/{name}")
        return True

    def fetch(self, folder: Path, theirs: Manifest, heavy: bool = True) -> None:
        """Bring a stage here, those of its files that are not here yet; without its `heavy` files it is not done here.

        Raises:
            DamagedFile: a file in the store is not the one that was put there; nothing here is lost.
        """
        manifest = {key: value for key, value in theirs.items() if key != STORED}
        self.run.mkdir(parents=True, exist_ok=True)
        with FileLock(self.run / LOCK):
            same, stored = remembered(folder / MANIFEST) == manifest, theirs[STORED]
            differing = [name for name, known in stored.items() if not _here(_inside(folder, name), known, same)]
            missing = [name for name in differing if heavy or stored[name]["bytes"] <= SMALL]
            if same and not missing:
                return
            with _empty(folder / ARRIVING) as arriving:
                for name in missing:
                    self._get(f"{self.name(folder)}/{name}", arriving / name, stored[name])
                if not same:  # only now is what lay here no stage any more
                    for name in (MANIFEST, *differing, *_twins(stored)):
                        (folder / name).unlink(missing_ok=True)
                for name in missing:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(arriving / name, folder / name)
            if not same:
                write_json(folder / MANIFEST, manifest)

    def _get(self, name: str, path: Path, known: Manifest) -> None:
        self.remote.download(name, path)
        found = fingerprint(path)
        if any(found[key] != known[key] for key in ("bytes", "hash")):
            raise DamagedFile(
                f"{self.remote.url}/{name}: damaged in the store: expected {known['bytes']} bytes with hash"
                f" {known['hash'][:12]}, found {found['bytes']} with {found['hash'][:12]}"
            )


def _twins(stored: Iterable[str]) -> Iterator[str]:
    """The other names under which the content of these files may lie in a folder: packed, or not."""
    for name in stored:
        twin = name.removesuffix(PACKED) if name.endswith(PACKED) else name + PACKED
        if twin not in stored:
            yield twin


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    """A folder for a while, whatever an earlier process left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parsed(content: bytes) -> Manifest | None:
    """A manifest from the store; None for what is none (yet), or was not put there by `publish`."""
    try:
        manifest = json.loads(content)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get(STORED), dict) else None


def _files(folder: Path) -> list[str]:
    """The files of a stage but its manifest; of folders below it only those that are no stages of their own."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == MANIFEST:
            continue
        if path.is_dir() and not (path / MANIFEST).exists():
            found += [f"{path.name}/{name}" for name in _files(path)]
        elif path.is_file():
            found.append(path.name)
    return found


def _here(path: Path, known: Manifest, same: bool) -> bool:
    """Whether a file is here and the known one. Below the `same` manifest the size tells of large ones, as in
    `Stage.done`; below another one it does not: adapters of one rank have one size."""
    if not path.is_file() or path.stat().st_size != known["bytes"]:
        return False
    return (same and known["bytes"] > SMALL) or fingerprint(path)["hash"] == known["hash"]


def _inside(folder: Path, name: str) -> Path:
    """A stage's file. Raises DamagedFile for a name that leads out of the stage's folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DamagedFile(f"{folder / MANIFEST}, {STORED}: expected names of files in the stage, found {name!r}")
    return path
