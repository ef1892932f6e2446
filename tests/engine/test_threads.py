"""Work side by side: in order, on as many threads as asked for, with errors raised and nothing kept."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from c3po_utils.engine import threads
from c3po_utils.engine.threads import side_by_side, together


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_items(lanes):
    def work(item: int) -> int:
        time.sleep(0.02 * (item % 3 == 0))  # these finish after those that began later
        return item * item

    assert list(side_by_side(work, range(7), lanes)) == [item * item for item in range(7)]
    assert list(side_by_side(work, [], lanes)) == []


def test_a_result_is_there_as_soon_as_it_and_those_before_it_are():
    release = threading.Event()

    def work(item: int) -> int:
        assert item < 2 or release.wait(10)
        return item

    found = side_by_side(work, range(3), 2)
    assert [next(found), next(found)] == [0, 1]
    release.set()
    assert list(found) == [2]


def test_lanes_share_the_cores_and_give_them_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = list(side_by_side(lambda _: (torch.get_num_threads(), threading.get_ident()), range(4), 2))
        assert {threads for threads, _ in seen} == {1}
        assert threading.get_ident() not in {thread for _, thread in seen}
        assert list(side_by_side(lambda _: threading.get_ident(), range(2), 1)) == 2 * [threading.get_ident()]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("own", "cores", "running", "expected"),
    [(2, 2, 1, 2), (2, 2, 2, 2), (2, 2, 3, 1), (1, 2, 9, 1), (16, 16, 2, 16), (16, 16, 17, 8), (8, 64, 70, 7)],
)
def test_threads_are_as_many_as_cores_in_their_share(monkeypatch, tmp_path, own, cores, running, expected):
    (tmp_path / "stat").write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 5\n")
    monkeypatch.setattr(threads, "STAT", tmp_path / "stat")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    assert threads.fair_share(own) == expected


@pytest.mark.parametrize("lanes", [1, 2, 3, 9])
def test_streams_wait_for_a_lane_and_keep_their_share_of_the_cores(lanes):
    before, at_work, most = torch.get_num_threads(), set(), []

    def stream(name: int):
        at_work.add(name)
        for item in range(3):
            most.append(len(at_work))
            time.sleep(0.005)
            yield name, item, torch.get_num_threads()
        at_work.remove(name)

    torch.set_num_threads(6)
    try:
        found = list(together([stream(name) for name in range(3)], lanes))
    finally:
        torch.set_num_threads(before)
    assert sorted(found) == [(name, item, 2) for name in range(3) for item in range(3)]
    assert max(most) == min(lanes, 3)


def test_busy_processes_are_seen(monkeypatch, tmp_path):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.5)
        assert threads.running() >= 3  # and this thread; one of them may just have ended its slice
    finally:
        for process in busy:
            process.kill()
            process.wait()
    monkeypatch.setattr(threads, "STAT", tmp_path / "none")
    assert threads.running() == 1


def test_an_error_ends_all_and_is_raised():
    started, before = [], threading.active_count()

    def work(item: int) -> None:
        started.append(item)
        time.sleep(0.01)
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        list(side_by_side(work, range(1000), 2))
    assert len(started) < 20
    assert threading.active_count() == before


def test_a_stream_left_early_stops_its_threads():
    stopped = threading.Event()

    def endless():
        try:
            while True:
                yield 1
                time.sleep(0.001)
        finally:
            stopped.set()

    streams = together([endless(), endless()])
    assert next(streams) == 1
    streams.close()
    assert stopped.wait(10)


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_result_is_kept_once_it_is_given_away(lanes):
    """Results are as large as an adapter's gradients."""
    made: list[weakref.ref] = []
    alive = []

    def work(_: int) -> torch.Tensor:
        time.sleep(0.02)
        alive.append(sum(ref() is not None for ref in made))
        result = torch.zeros(1)
        made.append(weakref.ref(result))
        return result

    for result in side_by_side(work, range(12), lanes):
        del result
    assert min(alive[lanes:]) == 0  # at times the other lane has finished this moment
