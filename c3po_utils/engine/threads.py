"""Streams of work side by side in threads, each on its share of the processor's cores.

Threads that share one operation wait for one another at the end of each of the thousands in a pass, which costs more
than it gains where operations are small. Threads with work of their own do not wait.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

import torch

from c3po_utils.engine import fast_paths

T = TypeVar("T")
R = TypeVar("R")

STAT = Path("/proc/stat")
LOOKS, APART_S = 5, 0.01

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@cache
def keep_memory() -> None:
    """Let this process use the memory of tensors again that are gone, instead of giving it back to the system.

    The system hands memory out page by page, each cleared, which takes longer than most of what is computed in it.
    The most that was needed at one time stays with the process. Does nothing where the C library is not glibc.
    """
    if libc := _glibc():
        for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30)):
            libc.mallopt(option, value)


def give_back_memory() -> None:
    """Give the system what `keep_memory` keeps and nothing uses: for the end of a stage, as the next stage's threads
    have memory of their own."""
    if libc := _glibc():
        libc.malloc_trim(0)


def running() -> int:
    """How many threads of the machine run now, this one among them, by some looks; 1 where nothing says so."""
    found = []
    for look in range(LOOKS):
        time.sleep(APART_S if look else 0)
        try:
            found.append(int(re.search(r"^procs_running (\d+)", STAT.read_text(), re.M)[1]))
        except OSError:  # no Linux
            return 1
    return statistics.median_low(found)


def fair_share(most: int) -> int:
    """How many of so many threads use up their share of the cores, if all that runs on the machine takes turns.

    Threads that take turns with other processes wait for one another: beside two busy processes on two cores, one
    thread answered 1.3 to 1.8 times as many tokens a second as two did (results/README.md).
    """
    share = most * (os.cpu_count() or most) / (most + running() - 1) if most > 1 else 1
    return min(most, math.ceil(share))


def streams(model: fast_paths.Placed) -> int:
    """How many streams of work a model's device does best side by side."""
    several = model.device.type == "cpu" and torch.get_num_threads() > 1 and fast_paths.on("streams", model)
    return torch.get_num_threads() if several else 1


def together(streams: Sequence[Iterator[T]], lanes: int | None = None) -> Iterator[T]:
    """The items of all streams as they come; an error in one ends all and is raised here.

    A single stream runs in the calling thread, on all cores. Of several each has its share of the cores, also if only
    `lanes` of them run at one time: what they compute is the same, bit for bit.
    """
    if len(streams) < 2:
        yield from streams[0] if streams else ()
        return
    cores, found, stop = torch.get_num_threads(), SimpleQueue(), Event()

    waiting = iter(streams)

    def work() -> None:
        torch.set_num_threads(max(1, cores // len(streams)))  # of this thread
        try:
            for item in chain.from_iterable(waiting):
                found.put((item, None))
                del item  # not to be kept while the next is made
                if stop.is_set():
                    return
            found.put(None)
        except BaseException as error:
            found.put((None, error))

    threads = [Thread(target=work, daemon=True) for _ in range(min(lanes or len(streams), len(streams)))]
    try:
        for thread in threads:
            thread.start()
        at_work = len(threads)
        while at_work:
            message = found.get()
            if message is None:
                at_work -= 1
                continue
            item, error = message
            if error:
                raise error
            yield item
            del message, item
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(cores)  # what threads begin with that are started later


def side_by_side(work: Callable[[T], R], items: Sequence[T], lanes: int) -> Iterator[R]:
    """work(item) of each item, in the items' order, on `lanes` of them at one time; see `together`."""
    numbered, found = enumerate(items), {}

    def lane() -> Iterator[tuple[int, R]]:
        for place, item in numbered:
            yield place, work(item)

    due = 0
    for place, result in together([lane() for _ in range(min(lanes, len(items)))]):
        found[place] = result
        del result  # whoever is given it holds it alone
        while due in found:
            yield found.pop(due)
            due += 1
