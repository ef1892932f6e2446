"""A server as a child process: its environment and port, waiting until it answers, and its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from c3po_utils.chat.keys import api_key

HERE, EVERYWHERE = "127.0.0.1", ("0.0.0.0", "::")
START_S = 1800.0  # large models load for long
ENDING_S, POLL_S = 3.0, 0.2
LAST_LINES = 12  # of the log, for an error
PRIVATE = ("OPENAI_", "C3PO_API_KEY", "VLLM_API_KEY", "PYTHONPATH")  # beginnings of variables that are not handed on
# On a CPU an adapter's products, five a pass, are compiled for each number of tokens, which takes 0.65 MiB each; torch
# and oneDNN would keep the last 1024.
COMPILED = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"} | COMPILED
# glibc's malloc keeps holes where large tensors were, and its heap grows; this one's hardly does (results/README.md).
# Debian's package is libtcmalloc-minimal4.
MALLOC = "tcmalloc_minimal"


def environment(endpoint: str, scratch: str) -> dict[str, str]:
    """The child's environment: vLLM's key is the one that our client has for the endpoint, and it sees no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    malloc, key = find_library(MALLOC), api_key(endpoint)
    defaults = DEFAULTS | ({"LD_PRELOAD": malloc} if malloc else {})
    return defaults | kept | {"VLLM_RPC_BASE_PATH": scratch} | ({} if key == "none" else {"VLLM_API_KEY": key})


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server((HERE, 0)) as listening:
        return listening.getsockname()[1]


def _at(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refuse_taken(host: str, port: int) -> None:
    """Raise RuntimeError for a port that somebody listens at, or a host that is not this machine's."""
    six = ":" in host  # IPv6; `::` is every address of IPv4, too
    family, both = (socket.AF_INET6, socket.has_dualstack_ipv6()) if six else (socket.AF_INET, False)
    try:
        with socket.create_server((host, port), family=family, dualstack_ipv6=both):
            pass
    except OSError as error:
        raise RuntimeError(f"cannot listen at {_at(host, port)} ({error.strerror}): choose another by --port") from None


class Child:
    """A server as a child process, all of whose processes end with it, and with us.

    Args:
        line: its command line.
        host, port: where it is told to listen; `endpoint` is its base URL there, for us.
        log: the file of what it writes.

    Raises:
        RuntimeError: somebody listens there already, or the host is not this machine's; or everybody could ask it,
            without a key.
    """

    def __init__(self, line: Sequence[str], host: str, port: int, log: Path):
        self.endpoint, self.log = f"http://{_at(HERE if host in EVERYWHERE else host, port)}/v1", log
        _refuse_taken(host, port)
        if host not in (HERE, "localhost") and api_key(self.endpoint) == "none":
            raise RuntimeError(f"at {host} others can ask it: set C3PO_API_KEY to a key that they need")
        self._scratch = tempfile.TemporaryDirectory(prefix="c3po-vllm-")
        log.parent.mkdir(parents=True, exist_ok=True)
        # The kernel ends it with the thread that started it, however that ends.
        with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with open(log, "w") as written:
            self.process = subprocess.Popen(
                [*with_us, *line], stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT,
                env=environment(self.endpoint, self._scratch.name), start_new_session=True,
            )  # fmt: skip
        atexit.register(self.stop)

    def wait(self, most_s: float = START_S) -> None:
        """Return when it is ready to answer: `/health` says so.

        Raises:
            RuntimeError: it ended, or was not ready in time; with the last lines of its log.
        """
        health = urlsplit(self.endpoint)._replace(path="/health").geturl()
        end = time.monotonic() + most_s
        with httpx2.Client(trust_env=False, timeout=10.0) as client:
            while self.process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(httpx2.HTTPError):
                    if client.get(health).status_code == 200:
                        return
                time.sleep(POLL_S)
        ended = self.process.poll()
        self.stop()
        what = f"was not ready after {most_s:.0f} s" if ended is None else f"ended at its start, with status {ended}"
        raise RuntimeError(f"the server {what}. The end of {self.log}:\n{self._last_lines()}")

    def watch(self) -> None:
        """Return never: it is to run until we are interrupted. Raises RuntimeError when it ends, as `wait` does."""
        status = self.process.wait()
        self.stop()
        raise RuntimeError(f"the server ended, with status {status}. The end of {self.log}:\n{self._last_lines()}")

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def stop(self) -> None:
        """End all of its processes within five seconds: asked first, and then killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING_S)
            os.killpg(self.process.pid, signal.SIGKILL)  # what it left, or itself
        self.process.wait()
        self._scratch.cleanup()
        atexit.unregister(self.stop)
