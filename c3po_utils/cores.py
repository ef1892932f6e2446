"""Streams of work side by side in threads, each on its share of the processor's cores.

Threads that share one operation wait for one another at the end of each of the thousands in a pass, which costs more
than it gains where operations are small. Threads with work of their own do not wait.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@cache
def keep_memory() -> None:
    """Let this process use the memory of tensors again that are gone, instead of giving it back to the system.

    The system hands memory out page by page, each cleared, which takes longer than most of what is computed in it.
    The most that was needed at one time stays with the process. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30)):
            libc.mallopt(option, value)


def streams(device: torch.device) -> int:
    """How many streams of work a device does best side by side."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def together(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """The items of all streams as they come; an error in one ends all and is raised here.

    A single stream runs in the calling thread, on all cores.
    """
    if len(streams) < 2:
        yield from streams[0] if streams else ()
        return
    cores, found, stop = torch.get_num_threads(), SimpleQueue(), Event()

    def work(stream: Iterator[T]) -> None:
        torch.set_num_threads(max(1, cores // len(streams)))  # of this thread
        try:
            for item in stream:
                found.put((item, None))
                if stop.is_set():
                    return
            found.put(None)
        except BaseException as error:
            found.put((None, error))

    threads = [Thread(target=work, args=(stream,), daemon=True) for stream in streams]
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
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(cores)  # what threads begin with that are started later


def side_by_side(work: Callable[[Sequence[T]], R], items: Sequence[T], lanes: int) -> list[R]:
    """work(part) of the items dealt into at most `lanes` parts, in their order; see `together`."""

    def stream(lane: int) -> Iterator[tuple[int, R]]:
        yield lane, work(items[lane::lanes])

    found = dict(together([stream(lane) for lane in range(min(lanes, len(items)))]))
    return [found[lane] for lane in sorted(found)]
