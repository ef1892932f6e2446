"""Finished stages of several runs, here or behind URLs, brought together in one run's folder, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c3po_utils.runs import exports, files, shown, stage
from c3po_utils.runs.files import DamagedFile
from c3po_utils.runs.remote import Remote
from c3po_utils.runs.stage import KINDS, MANIFEST
from c3po_utils.runs.store import STORED


class Conflict(ValueError):
    """Stages of one name that differ: one line each."""


@dataclass
class Collected:
    """Names of stages: newly brought, there already, and left out with the reason."""

    brought: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.brought):,} stages collected, {len(self.known):,} were there already"]
        return "\n".join([*lines, *(f"left out: {name}: {why}" for name, why in self.left_out.items())])


class Source:
    """A run's folder, its name in results/, or its URL.

    Raises:
        FileNotFoundError: there is no such run.
        StoreError: it cannot be read.
    """

    def __init__(self, name: str):
        self.name = name if "://" in name else shown(exports.find_run(name))
        self.remote = Remote(name if "://" in name else str(exports.find_run(name).absolute()))
        self.short = name.rstrip("/").rpartition("/")[2]

    def stages(self) -> Iterator[tuple[str, dict[str, Any] | None, list[str]]]:
        """Name, manifest if there is one, and files of every folder of a stage."""
        names = [name for name in self.remote.all_names() if name.startswith(tuple(f"{kind}/" for kind in KINDS))]
        manifests = {
            name.removesuffix(f"/{MANIFEST}"): content
            for name, content in self.remote.read_all(name for name in names if name.endswith(f"/{MANIFEST}")).items()
        }
        of_stage: dict[str, list[str]] = {}
        for name in names:
            of_stage.setdefault(_stage_of(name, manifests), []).append(name)
        for folder, contained in sorted(of_stage.items()):
            yield folder, _parsed(manifests.get(folder)), contained


def _stage_of(name: str, manifests: dict[str, bytes]) -> str:
    """The folder of the stage that a file is in: the nearest above it with a manifest, else its own."""
    above = name.rpartition("/")[0]
    while above.count("/"):
        if above in manifests:
            return above
        above = above.rpartition("/")[0]
    return name.rpartition("/")[0]


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        manifest = json.loads(content or b"")
        if isinstance(manifest, dict):
            return {key: value for key, value in manifest.items() if key != STORED}
    return None


def collect(names: Sequence[str], dest: Path, side_by_side: bool = False) -> dict[Path, Collected]:
    """Bring finished stages of runs to `dest`; what was done, by the folder that it went to.

    A stage that is there already is kept if it is the same. Unfinished and damaged ones are left out, and said.

    Args:
        side_by_side: each run goes to a folder of its own in `dest`.

    Raises:
        Conflict: stages of one name that differ in settings, inputs or data; nothing was brought then.
        FileNotFoundError, StoreError: a run that is not there, or cannot be read.
    """
    sources = [Source(name) for name in names]
    targets = {source.name: dest / source.short if side_by_side else dest for source in sources}
    if side_by_side and len(set(targets.values())) < len(sources):
        raise Conflict(f"side by side: expected runs with names of their own, found {', '.join(names)}")
    found = {source.name: list(source.stages()) for source in sources}
    _refuse_conflicts(targets, found)
    done: dict[Path, Collected] = {}
    for source in sources:
        into = done.setdefault(targets[source.name], Collected())
        for name, manifest, contained in found[source.name]:
            _bring(source, name, manifest, contained, targets[source.name], into)
    return done


def _refuse_conflicts(targets: dict[str, Path], found: dict[str, list]) -> None:
    seen: dict[Path, tuple[str, dict[str, Any]]] = {}
    problems = []
    for source, stages in found.items():
        for name, manifest, _ in stages:
            folder = targets[source] / name
            if not _finished(manifest):
                continue
            there = files.remembered(folder / MANIFEST)
            other, known = seen.setdefault(folder, (shown(folder), there) if _finished(there) else (source, manifest))
            if differs := _differences(known, manifest):
                problems.append(f"{name} of {source} is not that of {other}: {', '.join(differs)}")
    if problems:
        advice = "nothing was collected; --side-by-side keeps each run in a folder of its own"
        raise Conflict("\n".join([*problems, advice]))


def _finished(manifest: dict[str, Any] | None) -> bool:
    return bool(manifest) and manifest.get("status") == "done" and isinstance(manifest.get("identity"), dict)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two finished stages differ: settings and inputs by name, or the data alone."""
    mine, theirs = one["identity"], other["identity"]
    keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    told = [f"{key} differ" for key in keys]
    if not told and one.get("files") != other.get("files"):
        told = ["settings and inputs are the same, its data differ"]
    return told


def _bring(
    source: Source, name: str, manifest: dict[str, Any] | None, contained: list[str], target: Path, into: Collected
) -> None:
    folder = target / name
    if not _finished(manifest):
        if any(not one.endswith(".ipynb") for one in contained):  # else an executed notebook of no stage's own
            into.left_out[f"{name} of {source.name}"] = "not finished"
        return
    known, products = files.remembered(folder / MANIFEST), manifest.get("files", {})
    wanted = [one.removeprefix(f"{name}/") for one in contained]
    if here := _finished(known):  # only what a checkout of the same stage may lack, such as its adapter
        same = all(known.get(key) == manifest.get(key) for key in ("identity", "files"))
        lacking = [one for one in products if same and not files.there(folder / one)]
        wanted = [one for one in wanted if one.removesuffix(files.PACKED) in lacking]
        products = [one.removesuffix(files.PACKED) for one in wanted]
        if not wanted:
            into.known.append(name)
            return
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".collecting.") as scratch:
        made = Path(scratch) / "stage"
        for one in wanted:
            source.remote.download(f"{name}/{one}", made / one)
        files.write_json(made / MANIFEST, manifest)
        try:
            for product in products:
                stage.intact(made, product)
        except (DamagedFile, FileNotFoundError) as error:
            what = str(error).replace(f"{made}/", "").partition(". Remove it")[0]
            into.left_out[f"{name} of {source.name}"] = what
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        if here:
            for one in wanted:
                os.replace(made / one, folder / one)
        else:
            if folder.exists():  # what an unfinished stage left
                shutil.move(folder, Path(scratch) / "old")
            os.replace(made, folder)
    into.brought.append(name)
