"""Two drivers on one run, as processes: on a disk and in an S3 store, with one of them killed, or taken over."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from c3po_utils.batch import lock
from c3po_utils.batch.lock import RunTaken, driving
from c3po_utils.runs.remote import Remote, StoreError

DRIVE = """
import sys, time
from c3po_utils.batch.lock import driving
with driving(sys.argv[1], every_s=0.2) as lost:
    print("drives", flush=True)
    lost.wait(60)
    time.sleep(1)
    print(time.time(), flush=True)
    raise KeyboardInterrupt
"""


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else request.getfixturevalue("url")


@pytest.fixture
def other(place):
    """A driver of that run in another process."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", DRIVE, place], **pipes) as process:
        assert process.stdout.readline() == "drives\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_in_one_line_and_goes_on_at_once_when_the_first_is_killed(place, other):
    with pytest.raises(RunTaken) as raised, driving(place):
        pass
    said = str(raised.value)
    assert said.startswith(f"{place}: ")
    assert f"on {platform.node()}, process {other.pid}, since 20" in said
    assert "--take-over" in said
    assert "\n" not in said
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    start = time.monotonic()
    with driving(place):
        assert time.monotonic() - start < 10
        with pytest.raises(RunTaken), driving(place):
            pass
    with driving(place):
        pass


def test_a_driver_that_is_taken_over_stops_and_says_so(place, other):
    with driving(place, take_over=True) as lost:
        assert float(other.stdout.readline()) < time.time()  # its jobs ended before ours start
        assert f"RunTaken: {place}: this run was taken over by another driver" in other.communicate()[1]
        assert not lost.is_set()
        with pytest.raises(RunTaken, match=f"process {os.getpid()}"), driving(place):
            pass


def store_holder(place: str, heard: float) -> None:
    """A driver on another machine, last heard of at that time."""
    owner = json.dumps(["elsewhere/pid:[1]", 1, "", "x"])
    record = {"owner": owner, "host": "elsewhere", "pid": 1, "user": "me", "since": heard, "heard": heard}
    Remote(place).create("driver/00000003.json", json.dumps(record).encode())


def test_another_machines_driver_is_believed_for_a_while(place):
    store_holder(place, time.time() - lock.EXPIRY_S / 2)
    with pytest.raises(RunTaken, match="me drives this run on elsewhere, process 1"), driving(place):
        pass
    Remote(place).remove("driver/00000003.json")
    store_holder(place, time.time() - lock.EXPIRY_S - 1)
    with driving(place):
        assert Remote(place).names("driver") == ["driver/00000004.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"owner": "[', b'{"owner": "x"}', b'{"released": false}'], ids=repr)
def test_a_driver_that_was_killed_before_it_wrote_its_name_holds_no_run(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "WRITING_S", 0.2)
    Remote(str(tmp_path)).create("driver/00000003.json", content)
    with driving(str(tmp_path)):
        assert Remote(str(tmp_path)).names("driver") == ["driver/00000004.json"]


def test_of_many_that_start_at_one_time_one_drives(place):
    # Each holds the run until all have tried.
    code = DRIVE.replace("lost.wait(60)", "sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, place], **pipes) for _ in range(3)]
    limit = time.monotonic() + 120
    while sum(process.poll() is None for process in processes) > 1:
        assert time.monotonic() < limit
        time.sleep(0.1)
    said = [process.communicate() for process in processes]
    assert sorted(out.splitlines()[:1] for out, _ in said) == [[], [], ["drives"]]
    for out, error in said:
        assert out or "RunTaken" in error.splitlines()[-1]


def test_a_store_that_overwrites_where_it_should_not_is_refused(url, monkeypatch):
    """As S3 servers do that do not know If-None-Match."""
    monkeypatch.setattr(Remote, "create", lambda self, name, content: self.write(name, content) or True)
    with pytest.raises(RunTaken, match=r"cannot keep two drivers apart .*--take-over"), driving(url):
        pass
    assert Remote(url).names("driver") == []
    with driving(url, take_over=True):
        pass


@pytest.mark.quiet
def test_a_driver_that_cannot_be_heard_of_stops_before_it_expires(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRY_S", 1.0)
    held = lock.Lock(str(tmp_path / "run"))

    def fails(*_):
        raise StoreError("no route to it")

    monkeypatch.setattr(Remote, "write", fails)
    start = time.monotonic()
    held.keep(threading.Event(), 0.1)
    assert time.monotonic() - start < 1.0
    assert (held.lost.is_set(), held.reason) == (True, "no route to it")


def test_a_read_only_folder_is_one_clear_error(tmp_path):
    (tmp_path / "run").write_text("a file, where a folder should be")
    with (
        pytest.raises(StoreError, match=rf"^{Path(tmp_path)}/run/driver/00000001.json: ") as raised,
        driving(str(tmp_path / "run")),
    ):
        pass
    assert "\n" not in str(raised.value)
