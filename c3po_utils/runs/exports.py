"""What every export needs: the run that is meant, the part of it that is chosen, and a result that is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from c3po_utils.runs.parameters import nearest
from c3po_utils.runs.stage import run_folder

CARD = "README.md"
MARK = "Exported by `c3po export`"  # in the card of every folder that was exported


def find_run(name: Path | str) -> Path:
    """The folder of a run: `demo` is results/demo; other names are paths as in `run_folder`.

    Raises:
        FileNotFoundError: there is none, with the nearest name in results/.
    """
    results = run_folder("results")
    for folder in (results / name, run_folder(name)):
        if folder.is_dir():
            return folder
    known = [folder.name for folder in results.glob("*/")]
    raise FileNotFoundError(
        f"no run {str(name)!r}: expected a run's folder, such as results/demo ({nearest(Path(name).name, known)})"
    )


def chosen(what: str, wanted: Sequence[str], known: Iterable[str], where: Path | str) -> list[str]:
    """Those that are wanted, or all that there are when none is named.

    Raises:
        ValueError: there is none at all, or not this one, with the nearest name.
    """
    known = list(dict.fromkeys(known))
    if not known:
        raise ValueError(f"{where} has no {what}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"{where} has no {what} {name!r} ({nearest(name, known)})")
    return list(dict.fromkeys(wanted)) or known


def only(what: str, wanted: str | None, known: Iterable[str], where: Path | str) -> str:
    """The one that is wanted; it need not be named where there is only one.

    Raises:
        ValueError: as in `chosen`, or none is named and there are several.
    """
    found = chosen(what, [wanted] if wanted else [], known, where)
    if len(found) > 1:
        raise ValueError(f"{where} has several: name one {what} of {', '.join(found)}")
    return found[0]


@contextmanager
def placed(target: Path | str, replace: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to, which takes its place when the work ended well.

    Where it cannot, the earlier export is left as it was.

    Raises:
        FileExistsError: `target` is there and is not to be replaced, or is a folder that was not exported: replacing
            it would delete what somebody else keeps there.
    """
    target = Path(target)
    if target.exists() and not replace:
        raise FileExistsError(f"{target} is there already: expected a new name, or --force to replace it")
    if target.is_dir() and MARK not in _text(target / CARD):
        raise FileExistsError(f"{target} is no earlier export (its {CARD} does not say so): expected a new name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / f"made{target.suffix}"
        yield made
        earlier = Path(scratch) / "old"
        if target.is_dir():  # a folder cannot be replaced in one step
            os.replace(target, earlier)
        try:
            os.replace(made, target)
        except BaseException:
            if earlier.exists():
                os.replace(earlier, target)
            raise


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
