"""What this process may take of its machine: cores and memory, as its affinity and control groups bound them.

Containers and Slurm bound processes by control groups (man 7 cgroups), of which neither `os.cpu_count` nor the system's
free memory knows: who goes by those is throttled, or killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

PROC, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The cores that this process may keep busy, at least 1; of a quota of 2.5 cores the whole ones."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([here, *_quotas()])))


def free_bytes() -> int:
    """Memory that could be taken now without swapping, or being killed for it."""
    return max(0, min([psutil.virtual_memory().available, *(most - used for most, used in _memory())]))


def total_bytes() -> int:
    """Memory of the machine, or less where this process is bound to less."""
    return min([psutil.virtual_memory().total, *(most for most, _ in _memory())])


def _quotas() -> Iterator[float]:
    """Cores that each group above this process grants."""
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max 100000" bounds nothing
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
            if quota > 0:
                yield quota / period


def _memory() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use but for what the kernel takes back first) of each group above this process that has one."""
    for folder in _groups("memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError, KeyError):  # "max" bounds nothing
                most = int((folder / limit).read_text())
                counted = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield most, int((folder / usage).read_text()) - int(counted[cached])


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group and those above it, of version 2 and of version 1; none but on Linux.

    Inside a container the path may be the host's, and the folders the container's own: what is not there bounds
    nothing, and the topmost is always looked at.
    """
    with suppress(OSError):
        for line in PROC.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = CGROUPS / controller if controllers else CGROUPS
            below = PurePosixPath(path.lstrip("/"))
            yield from (top / folder for folder in (below, *below.parents))
