"""Whether this environment is the one of the lock; imports nothing heavy, so that `make` can ask every time."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def differences(lock: Path | str) -> list[str]:
    """One line per package that is missing or has another version than the lock's `name==version`."""
    found = []
    for line in Path(lock).read_text().splitlines():
        match = re.match(r"([\w.-]+)==([^\s;]+)", line)
        if not match:
            continue
        name, wanted = match.groups()
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            installed = "nothing"
        if installed != wanted:
            found.append(f"{name}: expected {wanted}, found {installed}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(differences(sys.argv[1])) or 0)
