"""What a process may take of its machine: groups written as files, and a real one where we may make it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from c3po_utils.runs import limits

MIB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(own, **files): /proc/self/cgroup says `own`, and these files lie below /sys/fs/cgroup."""
    monkeypatch.setattr(limits, "PROC", tmp_path / "self")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: range(8), raising=False)

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "self").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/slurm/job_7\n", {"slurm/cpu.max": "300000 100000\n", "slurm/job_7/cpu.max": "max 100000\n"}, 3),
        ("3:cpu,cpuacct:/docker/5f\n", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
    ids=["unbound", "of 2.5 the whole ones", "never less than one", "the group above", "version 1",
         "version 1, unbound", "another controller's"],
)  # fmt: skip
def test_cores_are_those_of_the_tightest_quota(groups, own, files, cores):
    groups(own, files)
    assert limits.usable_cores() == cores


def test_cores_are_never_more_than_affinity_allows(groups, monkeypatch):
    groups("0::/\n", {"cpu.max": "600000 100000\n"})
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert limits.usable_cores() == 2


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/job\n", {"job/memory.max": f"{300 * MIB}\n", "job/memory.current": f"{120 * MIB}\n",
                       "job/memory.stat": f"anon {80 * MIB}\ninactive_file {20 * MIB}\n"}),
        ("4:memory:/host/path\n0::/\n", {
            "memory/memory.limit_in_bytes": f"{300 * MIB}\n", "memory/memory.usage_in_bytes": f"{120 * MIB}\n",
            "memory/memory.stat": f"cache 5\ntotal_inactive_file {20 * MIB}\n"}),
    ],
    ids=["version 2", "version 1, its own folder at the top"],
)  # fmt: skip
def test_free_memory_is_what_the_group_leaves_and_files_can_be_dropped(groups, own, files):
    groups(own, files)
    assert limits.free_bytes() == 200 * MIB
    assert limits.total_bytes() == 300 * MIB


def test_a_group_that_is_over_its_limit_has_no_memory_free(groups):
    groups("0::/\n", {"memory.max": "100\n", "memory.current": "120\n", "memory.stat": "inactive_file 0\n"})
    assert limits.free_bytes() == 0


@pytest.mark.parametrize(
    "files", [{}, {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "inactive_file 0\n"}]
)
def test_without_a_limit_the_machine_counts(groups, files):
    groups("0::/\n", files)
    assert limits.total_bytes() == psutil.virtual_memory().total
    assert 0 < limits.free_bytes() <= limits.total_bytes()


def test_where_there_are_no_groups_the_machine_counts(groups):
    assert limits.usable_cores() == 8
    assert limits.total_bytes() == psutil.virtual_memory().total


def _real_group() -> tuple[Path, str]:
    """A memory group of ours, below this process's own or at the top, and its limit's file."""
    for folder in limits._groups("memory"):
        for limit in ("memory.max", "memory.limit_in_bytes"):
            ours = folder / f"c3po-test-{os.getpid()}"
            try:
                ours.mkdir()
            except OSError:
                continue
            if (ours / limit).exists():
                return ours, limit
            ours.rmdir()
    pytest.skip("this machine lets us make no memory group")


def test_a_process_in_a_real_group_sees_its_limit():
    group, limit = _real_group()
    try:
        (group / limit).write_text(str(256 * MIB))
        says = (
            "import sys, pathlib, os; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
            "from c3po_utils.runs import limits; print(limits.total_bytes(), limits.free_bytes())"
        )
        found = subprocess.run(
            [sys.executable, "-c", says, str(group / "cgroup.procs")], capture_output=True, text=True, check=True
        )
        total, free = map(int, found.stdout.split())
        assert total == 256 * MIB
        assert 128 * MIB < free < 256 * MIB
    finally:
        group.rmdir()
