"""Run folders: where they lie, what their stages ran on, and the manifest that alone says when a stage is done."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from c3po_utils.runs import files
from c3po_utils.runs.files import DamagedFile, content_hash, read_json, remembered, write_json

# Notebooks, feedback and the paper's numbers: the checkout's own, or those that an installed package brings along.
BUNDLED = Path(__file__).parents[2]
# What relative run folders are relative to: C3PO_ROOT in the environment, the checkout, or else where the first process
# was started, for kernels too.
ROOT, CODE = Path(os.environ.get("C3PO_ROOT", BUNDLED)), BUNDLED
if not (BUNDLED / "pyproject.toml").exists():
    BUNDLED = Path(__file__).parents[1] / "bundled"
    ROOT = CODE = Path(os.environ.setdefault("C3PO_ROOT", os.getcwd()))
NOTEBOOKS = BUNDLED / "notebooks"
GROUPS = {  # by key of a run's settings, the notebook whose parameters it holds
    "sample": "01_sample.ipynb", "train": "02_train.ipynb", "evaluate": "03_evaluate.ipynb",
    "figures": "05_figures.ipynb",
}  # fmt: skip
MANIFEST = "manifest.json"
KINDS = ("sample", "train", "eval")  # folders of stages in a run's; comparisons and figures are made from these
RUN_FILE = "run.json"  # in the run's folder, once it was whole: its settings
LEDGER = "calls.sqlite"  # in the run's folder: every answer that a model gave
WEIGHTS = "weights"  # in an identity: the content of models' folders, by name, which a name does not tell
SMALL = 64 * 2**20  # bytes: files up to this size are read whole to see whether a stage is done
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")


def run_folder(run: Path | str) -> Path:
    """A run's folder: relative names are below the checkout (see ROOT), wherever a notebook is started.

    Raises:
        ValueError: the folder is the checkout itself, or holds it: an empty name, `.` or `..`; or a URL is given.
    """
    if "://" in str(run):
        raise ValueError(f"run {str(run)!r}: expected a local folder; stores go in `store=`")
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


def git_commit(folder: Path = CODE) -> str:
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


def fingerprint(path: Path, whole: bool = True) -> dict[str, Any]:
    """What a manifest says of a data file: rows (of JSON Lines), bytes, and, if it is read `whole`, content hash."""
    if not whole and path.exists():
        return {"bytes": path.stat().st_size}
    found: dict[str, Any] = {"bytes": path.stat().st_size if path.exists() else len(files.stored(path))}
    if whole:
        if path.suffix == ".jsonl":
            found = {"rows": files.stored(path).count(b"\n"), **found}
        found["hash"] = content_hash(path)
    return found


def _compare(path: Path, known: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise DamagedFile for a file that is empty, or not what the manifest knows."""
    if not found["bytes"]:
        raise DamagedFile(f"{path}: the file is empty")
    for key in ("rows", "bytes", "hash"):
        if key in known and key in found and known[key] != found[key]:
            shown = [f"{end[key]} {key}" if key != "hash" else f"hash {end[key][:12]}" for end in (known, found)]
            raise DamagedFile(f"{path}: damaged: expected {shown[0]}, as {MANIFEST} says; found {shown[1]}")


def intact(folder: Path, name: str) -> str:
    """The content hash of a stage's file, which is what the stage's manifest says, if it says so.

    Manifests from before files were noted there, and folders without one, are taken as they are.

    Raises:
        DamagedFile: the file differs, or is empty, or the manifest is damaged.
    """
    path = folder / name
    manifest = read_json(folder / MANIFEST, dict) if (folder / MANIFEST).exists() else {}
    found = fingerprint(path)
    try:
        _compare(path, manifest.get("files", {}).get(name, {}), found)
    except DamagedFile as error:
        raise DamagedFile(f"{error}. Remove it, and run the notebook that made it again") from None
    return found["hash"]


def known(folder: Path, name: str) -> str:
    """As `intact`, but of a large file, such as an adapter of a billion parameters, only the size is looked at.

    Who loads it reads it whole; who only asks what is done need not.
    """
    manifest, path = remembered(folder / MANIFEST) or {}, folder / name
    told = manifest.get("files", {}).get(name, {})
    if "hash" not in told or path.stat().st_size <= SMALL:
        return intact(folder, name)
    _compare(path, told, fingerprint(path, whole=False))
    return told["hash"]


class Stage:
    """A stage's folder. `identity` is what changes its result: settings and the hashes of its inputs.

    `products` are the files that later stages need: a manifest without them, as in a checkout that keeps no adapters,
    is not a finished stage, nor is one whose files are not those that it was written for.

    Use as a context manager around the work: the manifest is written last, atomically, and only when the work
    ended well, so an interrupted stage is simply not done; what lay here before is gone when the work begins.
    """

    def __init__(self, folder: Path | str, identity: dict[str, Any], *products: str):
        self.folder, self.products = Path(folder), products
        self.identity = json.loads(json.dumps(identity))
        self.notes: dict[str, Any] = {}

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the finished stage said; None where there is none, or it is damaged, which a warning says."""
        return remembered(self.folder / MANIFEST)

    @property
    def made(self) -> bool:
        """Whether it was finished for these inputs, whatever has become of its products."""
        return self._made(self.manifest or {})

    def _made(self, manifest: dict[str, Any]) -> bool:
        then, now = self._then_and_now(manifest)
        return manifest.get("status") == "done" and "identity" in manifest and then == now

    @property
    def done(self) -> bool:
        manifest = self.manifest or {}
        if not self._made(manifest):
            return False
        known = manifest.get("files", {})
        return all(self._whole(name, known.get(name, {})) for name in self.products)

    def _whole(self, name: str, known: dict[str, Any]) -> bool:
        """Whether a file is there, and, cheaply, the one that is known; a warning says how it differs."""
        path = self.path(name)
        if not files.there(path):
            return False
        try:
            _compare(path, known, fingerprint(path, whole=not path.exists() or path.stat().st_size <= SMALL))
        except DamagedFile as error:
            warnings.warn(f"{error}. It is made anew", stacklevel=2)
            return False
        return True

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What differs from the finished stage that lies here: {key: (then, now)}; empty when none is here."""
        then, now = self._then_and_now(self.manifest or {})
        every = {key: (then.get(key), now.get(key)) for key in sorted(then.keys() | now.keys())}
        return {key: (before, after) for key, (before, after) in every.items() if before != after}

    def _then_and_now(self, manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The identity of the finished stage (this one's where the manifest tells none), and this one's.

        What lies in a model's folder counts where both tell of it: older manifests do not, nor machines without it.
        """
        both = manifest.get("identity", self.identity), self.identity
        untold = {WEIGHTS} - (both[0].keys() & both[1].keys())
        then, now = ({key: value for key, value in one.items() if key not in untold} for one in both)
        return then, now

    def path(self, name: str) -> Path:
        return self.folder / name

    def __str__(self) -> str:
        return shown(self.folder)

    def __enter__(self) -> Stage:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, *self.products):
            files.remove(self.path(name))
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
                "files": {name: fingerprint(self.path(name)) for name in self.products},
                "wall_s": round(time.monotonic() - self._start, 1),
                "peak_gib": round(peak_gib(), 2),
                "hardware": hardware(),
                "packages": packages(),
                "commit": git_commit(),
                **self.notes,
            },
        )


def done_stages(root: Path | str, kind: str) -> Iterator[tuple[Path, dict]]:
    """(folder, manifest) of every finished stage of a kind (`sample`, `train`, `eval`) below a run folder.

    Raises:
        DamagedFile: a manifest is damaged, or says of no inputs.
    """
    for path in sorted(Path(root).glob(f"{kind}/**/{MANIFEST}")):
        manifest = read_json(path, dict)
        if manifest.get("status") == "done":
            if not isinstance(manifest.get("identity"), dict):
                raise DamagedFile(f"{path}: expected a finished stage's `identity`; found {', '.join(manifest)}")
            yield path.parent, manifest


def pack(root: Path | str) -> list[Path]:
    """Pack the rows and answers of a run's finished stages, for keeping; they are read, and done, as before."""
    folders = [folder for kind in ("sample", "eval") for folder, _ in done_stages(root, kind)]
    return [files.pack(path) for folder in folders for path in sorted(folder.glob("*.jsonl"))]
