"""A real Slurm cluster of one node on this machine, on 127.0.0.1, under the test's own user: munged, slurmctld, slurmd.

Everything lies in one folder and ends with the test. Containers have no systemd and often no writable cgroups, so
that processes are tracked through /proc, and no task or cgroup plugin is used. A requeued job waits until its
credential has expired: two minutes, if nobody says less.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CPUS = 4  # what the node says that it has: the tests' jobs sleep more than they work
UP_S = 30.0
CONFIGURATION = """
ClusterName=c3po
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
KillWait=2
SlurmdTimeout=10
MessageTimeout=10
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=normal Nodes={host} Default=YES MaxTime=60 PriorityTier=1 OverSubscribe=NO
PartitionName=urgent Nodes={host} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


# A library of JupyterLab's builds a grammar of URLs in seconds, in each process that imports jsonschema.
SLOW = "rfc3987_syntax"


def without_slow_imports(folder: Path) -> None:
    """Processes that are started from now on do without it; Ray's raylets wait 15 s for some of theirs."""
    (folder / f"{SLOW}.py").write_text('raise ImportError("not wanted here")\n')
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def lacking() -> list[str]:
    """Programs of Slurm and munge that this machine does not have."""
    return [name for name in PROGRAMS if not shutil.which(name)]


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """The path of slurm.conf, for SLURM_CONF. Nothing is left running after it.

    Raises:
        RuntimeError: the node did not come up in half a minute; says where the logs lie.
    """
    configuration = _configure(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munge += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        daemons.append(_start(munge, folder))
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        daemons.append(_start(["slurmctld", "-D", "-c", "-f", str(configuration)], folder))
        daemons.append(_start(["slurmd", "-D", "-c", "-f", str(configuration)], folder))
        _wait(lambda: _answers(configuration, "sinfo", "--noheader", "--format=%T").strip() == "idle", folder)
        yield configuration
    finally:
        _answers(configuration, "scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
        for daemon in reversed(daemons):
            _end(daemon)


def _configure(folder: Path) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    ports = {"controller": free_port(), "daemon": free_port()}
    text = CONFIGURATION.format(host=host, folder=folder, user=getpass.getuser(), cpus=CPUS, **ports)
    (folder / "slurm.conf").write_text(text)
    return folder / "slurm.conf"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A daemon that dies with this process, should it be killed."""
    with (folder / f"{command[0]}.out").open("wb") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command], stdout=output, stderr=output, start_new_session=True
        )


def _answers(configuration: Path, *command: str) -> str:
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def _wait(condition: Callable[[], bool], folder: Path) -> None:
    limit = time.monotonic() + UP_S
    while not condition():
        if time.monotonic() > limit:
            raise RuntimeError(f"Slurm did not come up in {UP_S:.0f} s: see the logs in {folder}")
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
