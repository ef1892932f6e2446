"""Kernels that are forked from a process which has the libraries already: they start in a moment, each still its own.

On Linux only, and only while nothing in the parent has started threads or a GPU: fork copies neither.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

INLINE = "module://matplotlib_inline.backend_inline"  # what ipykernel takes where MPLBACKEND says nothing


class ForkedKernel:
    """A process that was forked beforehand, and becomes a kernel when it is told how; to jupyter_client, a Popen.

    It ends by itself when its parent ends without having told it.
    """

    stdin = stdout = stderr = None  # it has its parent's

    def __init__(self, first: Callable[[], None] = lambda: None):
        """Fork now. `first` is called in the new process, to give up what it should not have."""
        reading, self._writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self._reaping = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            _wait_and_become(reading, first)
        os.close(reading)

    def become(self, command: list[str], env: dict[str, str], cwd: str) -> None:
        """Be the kernel that this command would start, in this environment and folder."""
        told = {"command": command, "env": env, "cwd": str(cwd), "parent": os.getpid()}
        with open(self._writing, "wb") as pipe:
            pickle.dump(told, pipe)

    def poll(self) -> int | None:
        """The exit status, negative for a signal as subprocess has it; None while it runs."""
        with self._reaping:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        for _ in range(10**9 if timeout is None else int(timeout * 20) + 1):
            if self.poll() is not None:
                return self.returncode
            threading.Event().wait(0.05)
        raise subprocess.TimeoutExpired("kernel", timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _wait_and_become(reading: int, first: Callable[[], None]) -> None:
    """In the forked process: never returns."""
    status = 1
    try:
        os.setsid()  # as jupyter_client starts kernels: a terminal's Ctrl-C is not for them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        first()
        with open(reading, "rb") as pipe:
            told = pipe.read()
        if told:  # else the parent is gone
            _become(**pickle.loads(told))
            status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        os._exit(status)


def _become(command: list[str], env: dict[str, str], cwd: str, parent: int) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    _settle_libraries()
    from ipykernel.kernelapp import IPKernelApp

    arguments = command[command.index("-f") :]
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={parent}"])
    # Its threads are not closed one by one: one kernel in 15, of ipykernel 7, then waits three seconds for a thread
    # that waits for another one, which has ended already. All that was printed has been sent by now.
    atexit.unregister(IPKernelApp.instance().close)


def _settle_libraries() -> None:
    """What libraries read from the environment when they are imported, which here they were before."""
    loaded: dict[str, Any] = sys.modules
    if "matplotlib" in loaded:
        loaded["matplotlib"].rcParams["backend"] = os.environ.get("MPLBACKEND") or INLINE
        for name in [name for name in loaded if name.startswith("matplotlib_inline")]:
            del loaded[name]  # it looks for its kernel when it is imported
    if "torch" in loaded and (threads := os.environ.get("OMP_NUM_THREADS")):
        loaded["torch"].set_num_threads(int(threads))
