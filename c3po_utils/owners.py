"""Who holds a lease: names for runs of processes, by which others can see whether they live."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import uuid
from pathlib import Path


def _birth(pid: int) -> str:
    """When a process started, so that a reused pid is not taken for it; empty where /proc does not tell."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _machine() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.node()}/{os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def new_owner() -> str:
    """A name for one run of this process, by which others can see whether it lives."""
    return json.dumps([_machine(), os.getpid(), _birth(os.getpid()), uuid.uuid4().hex])


def alive(owner: str) -> bool:
    """Whether the process behind a lease can still be there; on another machine only the lease's expiry
    tells."""
    if owner.startswith("batch:"):
        return True
    machine, pid, birth, _ = json.loads(owner)
    if machine != _machine():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _birth(pid) == birth
