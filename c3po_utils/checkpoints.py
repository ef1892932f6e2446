"""Checkpoints that can be trusted after a crash: a marker, written last, names every file with its hash.

transformers writes a checkpoint file by file and raises on the newest one if that is half written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from c3po_utils.runs import content_hash, read_json, write_json

MARKER = "complete.json"


def _hashes(checkpoint: Path) -> dict[str, str]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(checkpoint)): content_hash(path) for path in sorted(files)}


def _identity(settings: Any) -> str:
    """The hash of settings and data; sets count by their members, other objects by their text."""
    return content_hash(
        json.dumps(settings, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    )


def mark_complete(checkpoint: Path | str, identity: Any) -> None:
    """Say that a checkpoint is whole, and to which training (settings and data) it belongs."""
    checkpoint = Path(checkpoint)
    write_json(checkpoint / MARKER, {"identity": _identity(identity), "files": _hashes(checkpoint)})


def last_valid(folder: Path | str, identity: Any) -> Path | None:
    """The newest checkpoint below `folder` that is whole and belongs to this training; None where there is none."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        marker = checkpoint / MARKER
        if marker.exists() and read_json(marker) == {"identity": _identity(identity), "files": _hashes(checkpoint)}:
            return checkpoint
    return None
