"""One driver a run, wherever its folder lies: on a disk, on a network's, in an object store.

Who drives holds the newest file in the folder `driver`, of which each is created by one alone, and writes its time into
it. No clock or lock of a file system is needed: on the same machine a dead process is known as such, and its run goes
on at once; that of a driver on another machine goes on when it has not been heard of for `EXPIRY_S`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from typing import Any

from c3po_utils.chat.budget import alive, new_owner
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.remote import Remote, StoreError

FOLDER = "driver"
BEAT_S = 20.0
WRITING_S = 2.0  # at most, between a file's creation and its content
EXPIRY_S = 120.0  # clocks of machines may differ by a minute
TAKE_OVER = "--take-over"


class RunTaken(ParameterError):
    """Another driver has this run; says who, since when, and how to take it over."""


class Lock:
    """A driver's hold on the run at a URL (or local path). `lost` is set when another has taken it over.

    Raises:
        RunTaken: another driver has it, or this kind of store cannot say who has.
    """

    def __init__(self, url: str, take_over: bool = False):
        self.remote, self.lost, self.reason = Remote(url), threading.Event(), ""
        self.record = {"owner": new_owner(), "host": platform.node(), "pid": os.getpid(), "user": _user()}
        self.record["since"] = self.heard = time.time()
        if not self.remote.exclusive and not take_over:
            raise RunTaken(self._no_locks())
        self.name = self._acquire(take_over)

    def _acquire(self, take_over: bool) -> str:
        names = self._names()
        holder = self._holder(names[-1]) if names else None
        if holder is not None and not take_over:
            raise RunTaken(self._held(holder))
        name = f"{FOLDER}/{_number(names) + 1:08d}.json"
        if not self.remote.create(name, self._content()) or self._names()[-1] != name:
            raise RunTaken(f"{self.remote.url}: another driver took this run in this moment")
        if not take_over and self.remote.create(name, self._content()):
            self.remote.remove(name)
            raise RunTaken(self._no_locks())
        if holder and time.time() - holder["heard"] < 3 * BEAT_S:
            self._wait_for(names[-1])
        for old in names:
            self.remote.remove(old)
        return name

    def _wait_for(self, name: str) -> None:
        """Give a driver that was taken over time to see it, and to end its jobs: none is to be done twice."""
        limit = time.time() + 2 * BEAT_S
        while time.time() < limit and self._holder(name) is not None:
            time.sleep(0.2)

    def _names(self) -> list[str]:
        return [name for name in self.remote.names(FOLDER) if name.endswith(".json")]

    def _holder(self, name: str) -> dict[str, Any] | None:
        """Who holds a file, unless it is known to have ended; nobody, where none is named once it must be written."""
        limit = time.monotonic() + WRITING_S
        while (record := _read_record(self.remote.read(name))) is None and time.monotonic() < limit:
            time.sleep(WRITING_S / 10)
        if record is None or record.get("released"):
            return None
        return record if alive(record["owner"]) and time.time() - record["heard"] <= EXPIRY_S else None

    def _content(self, **more: Any) -> bytes:
        return json.dumps({**self.record, "heard": time.time(), **more}).encode()

    def _held(self, record: dict[str, Any]) -> str:
        since, heard = (_clock(record.get(key, 0.0)) for key in ("since", "heard"))
        return (
            f"{self.remote.url}: {record.get('user', 'somebody')} drives this run on {record.get('host', '?')}, process"
            f" {record.get('pid', '?')}, since {since} (last heard of at {heard}); expected one driver a run: wait for"
            f" it, end it, or, if that machine is gone, take the run over with {TAKE_OVER}"
        )

    def _no_locks(self) -> str:
        return (
            f"{self.remote.url}: this store cannot keep two drivers apart (it has no exclusive create); see that no"
            f" other drives this run, and say so with {TAKE_OVER}"
        )

    def beat(self) -> None:
        """Say that this driver lives, if it has not been taken over."""
        names = self._names()
        if not names or names[-1] != self.name:
            self.reason = f"{self.remote.url}: this run was taken over by another driver; what is done is kept"
            self.lost.set()
            return
        self.remote.write(self.name, self._content())
        self.heard = time.time()

    def keep(self, ended: threading.Event, every_s: float) -> None:
        """Beat until the end. A driver that cannot be heard of stops before another may take the run."""
        while not ended.wait(every_s) and not self.lost.is_set():
            try:
                self.beat()
            except StoreError as error:
                if time.time() - self.heard > EXPIRY_S - 2 * every_s:
                    self.reason = str(error)
                    self.lost.set()

    def release(self) -> None:
        """Let the next driver in; where that cannot be said, it sees that this process has ended."""
        with contextlib.suppress(StoreError):
            self.remote.write(self.name, self._content(released=True))


def _read_record(content: bytes | None) -> dict[str, Any] | None:
    """A driver's record; None for what is none, or not yet."""
    try:
        record = json.loads(content or b"")
        alive(record["owner"])
        float(record["heard"])
        return record
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def driving(url: str, take_over: bool = False, every_s: float = BEAT_S) -> Iterator[threading.Event]:
    """Hold the run at a URL, or in a folder; the event is set when it was taken over, and the driver must stop.

    Raises:
        RunTaken: see `Lock`; at the end if it was taken over meanwhile.
    """
    lock, ended = Lock(url, take_over), threading.Event()
    thread = threading.Thread(target=lock.keep, args=(ended, every_s), daemon=True)
    thread.start()
    try:
        yield lock.lost
    except KeyboardInterrupt:
        if lock.reason:
            raise RunTaken(lock.reason) from None
        raise
    finally:
        ended.set()
        thread.join()
        lock.release()


def _number(names: list[str]) -> int:
    return int(names[-1].rpartition("/")[2].removesuffix(".json")) if names else 0


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return "somebody"
