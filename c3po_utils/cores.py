"""Streams of work side by side in threads, each on its share of the processor's cores.

Threads that share one operation wait for one another at the end of each of the thousands in a pass, which costs more
than it gains where operations are small. Threads with work of their own do not wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

import torch

T = TypeVar("T")


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
