"""Whether a folder lies on a disk that other machines may write to at the same time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# As Linux names them. What programs serve (`fuse.sshfs`, `fuse.glusterfs`, ...) is taken for a network's, too.
FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "9p", "afs", "beegfs", "ceph", "gpfs", "lustre", "ocfs2", "gfs2", "orangefs",
    "panfs", "wekafs", "fuse",
)  # fmt: skip


def on_network(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Whether other machines may have this folder mounted; False where the system does not tell."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == number:
                return source.split()[0].partition(".")[0] in FILE_SYSTEMS
    return False
