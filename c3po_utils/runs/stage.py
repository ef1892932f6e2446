"""Run folders: where they lie, what their stages ran on, and the manifest that alone says when a stage is done."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from c3po_utils.runs.files import read_json, write_json

# Notebooks, feedback and the paper's numbers: the checkout's own, or those that an installed package brings along.
BUNDLED = Path(__file__).parents[2]
# What relative run folders are relative to: the checkout, else where the first process was started, for kernels too.
ROOT = BUNDLED
if not (BUNDLED / "pyproject.toml").exists():
    BUNDLED = Path(__file__).parents[1] / "bundled"
    ROOT = Path(os.environ.setdefault("C3PO_ROOT", os.getcwd()))
MANIFEST = "manifest.json"
LEDGER = "calls.sqlite"  # in the run's folder: every answer that a model gave
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")


def run_folder(run: Path | str) -> Path:
    """A run's folder: relative names are below the checkout (see ROOT), wherever a notebook is started.

    Raises:
        ValueError: the folder is the checkout itself, or holds it: an empty name, `.` or `..`.
    """
    folder = ROOT / Path(run).expanduser()
    if ROOT.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"run {str(run)!r}: expected a folder for its results, such as results/mine; found {folder}")
    return folder


def shown(path: Path) -> str:
    """A path as people read it: below the checkout where it lies there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def hardware() -> dict[str, Any]:
    """What this ran on: processor or GPU, cores, GiB of memory."""
    import torch  # takes seconds, which clients of an API need not wait

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {"gpu": gpu, "cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def packages() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def print_header(seed: int | None = None) -> None:
    """What a notebook prints first, so that its output says where and with what it came about."""
    machine = hardware()
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    versions = "  ".join(f"{name} {number}" for name, number in packages().items())
    print(
        f"{where}, {machine['memory_gib']:.0f} GiB · commit {git_commit()}"
        + (f" · seed {seed}" if seed is not None else "")
    )
    print(versions)


def git_commit(folder: Path = ROOT) -> str:
    """The checkout's commit, with `+` for uncommitted changes, or `unknown` outside git.

    Changes in results/ do not count: they are what a run makes, not what it is made by.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stage:
    """A stage's folder. `identity` is what changes its result: settings and the hashes of its inputs.

    `product` is the file that later stages need: a manifest without it, as in a checkout that keeps no adapters, is
    not a finished stage.

    Use as a context manager around the work: the manifest is written last, atomically, and only when the work
    ended well, so an interrupted stage is simply not done.
    """

    def __init__(self, folder: Path | str, identity: dict[str, Any], product: str = MANIFEST):
        self.folder, self.product = Path(folder), product
        self.identity = json.loads(json.dumps(identity))
        self.notes: dict[str, Any] = {}

    @property
    def manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        return read_json(path) if path.exists() else None

    @property
    def done(self) -> bool:
        manifest = self.manifest
        same = bool(manifest) and manifest["status"] == "done" and manifest["identity"] == self.identity
        return same and self.path(self.product).exists()

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What differs from the finished stage that lies here: {key: (then, now)}; empty when none is here."""
        then = (self.manifest or {}).get("identity", self.identity)
        keys = then.keys() | self.identity.keys()
        return {
            key: (then.get(key), self.identity.get(key))
            for key in sorted(keys)
            if then.get(key) != self.identity.get(key)
        }

    def path(self, name: str) -> Path:
        return self.folder / name

    def __str__(self) -> str:
        return shown(self.folder)

    def __enter__(self) -> Stage:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._start = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        write_json(
            self.folder / MANIFEST,
            {
                "status": "done",
                "identity": self.identity,
                "wall_s": round(time.monotonic() - self._start, 1),
                "peak_gib": round(peak_gib(), 2),
                "hardware": hardware(),
                "packages": packages(),
                "commit": git_commit(),
                **self.notes,
            },
        )


def done_stages(root: Path | str, kind: str) -> Iterator[tuple[Path, dict]]:
    """(folder, manifest) of every finished stage of a kind (`sample`, `train`, `eval`) below a run folder."""
    for path in sorted(Path(root).glob(f"{kind}/**/{MANIFEST}")):
        manifest = read_json(path)
        if manifest["status"] == "done":
            yield path.parent, manifest
