"""The ledger's file: who may read it, what is said when it cannot be used, and a clock that is set meanwhile."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from c3po_utils.chat import ledger_file
from c3po_utils.chat.budget import Quota, new_owner
from c3po_utils.chat.ledger import LONGEST_LEASE_S, Entry, Ledger
from c3po_utils.chat.ledger_file import LedgerError
from c3po_utils.chat.network_disk import on_network
from tests.asking import SAMPLING, asks, by_id, fast_client, tally
from tests.servers import Reply, error, scripted

OK = Entry("ok", "", "an answer", 10, 5, price=0.5, at_most=0.5)


# Modes and errors


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)], ids=oct)
def test_the_files_modes_follow_the_umask(tmp_path, umask, mode):
    code = "import sys; from c3po_utils.chat.ledger import Ledger; book = Ledger(sys.argv[1]);"
    code += "import os; print(*[oct(os.stat(sys.argv[1] + end).st_mode & 0o777) for end in ('', '-wal', '-shm')])"
    command = [sys.executable, "-c", code, tmp_path / "calls.sqlite"]
    found = subprocess.run(command, umask=umask, capture_output=True, text=True, check=True).stdout.split()
    assert found == [oct(mode)] * 3


def told(raised) -> str:
    """The message of an error, which must be one line."""
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_ledger_that_another_process_writes_is_waited_for_and_named(tmp_path):
    book = Ledger(tmp_path / "calls.sqlite")
    other = sqlite3.connect(book.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    book._db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(LedgerError) as raised:
        book.record("k", "m", "{}", OK)
    assert re.fullmatch(
        r".*/calls.sqlite: the call ledger: database is locked; another process .* run again.*", told(raised)
    )
    other.execute("COMMIT")
    book.record("k", "m", "{}", OK)
    assert book.lookup(["k"])["k"].text == "an answer"


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be looked at" * 20, b"short", os.urandom(9000)]
)
def test_a_file_that_is_no_ledger_is_named(tmp_path, content):
    (tmp_path / "calls.sqlite").write_bytes(content)
    with pytest.raises(
        LedgerError, match=r"/calls\.sqlite: expected a call ledger; file is not a database; move"
    ) as raised:
        Ledger(tmp_path / "calls.sqlite")
    told(raised)
    assert (tmp_path / "calls.sqlite").read_bytes() == content


def test_a_damaged_ledger_is_named(tmp_path):
    book = Ledger(tmp_path / "calls.sqlite")
    for number in range(300):
        book.record(str(number), "m", "{}", Entry("ok", text="x" * 500))
    book.close()
    with open(book.path, "r+b") as file:
        for page in range(2, 40):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(
        LedgerError, match=r"/calls\.sqlite: the call ledger: .*malformed; move the file away"
    ) as raised:
        Ledger(book.path).report()
    told(raised)


@pytest.mark.parametrize("where", ["a file/calls.sqlite", "."], ids=["below a file", "a folder"])
def test_a_path_that_cannot_be_a_ledger_is_named(tmp_path, where):
    (tmp_path / "a file").touch()
    with pytest.raises(LedgerError, match=r"the call ledger: .*; make the file and its folder writable") as raised:
        Ledger(tmp_path / where)
    told(raised)


OPEN = "import sys; from c3po_utils.chat.ledger import *; Ledger(sys.argv[1]).record('k', 'm', '{}', Entry('ok'))"


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder_is_named(tmp_path, exists):
    as_anybody = [shutil.which("setpriv"), "--bounding-set", "-dac_override,-dac_read_search"] * (os.getuid() == 0)
    if as_anybody and not as_anybody[0]:
        pytest.skip("root may write everywhere")
    path = tmp_path / "stored" / "calls.sqlite"
    path.parent.mkdir()
    if exists:
        Ledger(path).close()
        os.chmod(path, 0o444)
    os.chmod(path.parent, 0o555)
    done = subprocess.run([*as_anybody, sys.executable, "-c", OPEN, path], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"LedgerError: /.*/calls.sqlite: the call ledger: .*; make the file and its folder writable", last)


FULL = """
import resource, signal, sys
from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.types import Sampling, request
model = open_model(f"openai:m@{sys.argv[1]}", sys.argv[2], max_in_flight=4, prices={"m": (1, 2)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
list(model.complete([request(f"r{n}", f"prompt {n}") for n in range(60)], Sampling(max_new_tokens=32)))
"""


def test_a_full_disk_is_one_error_and_loses_no_stored_answer(tmp_path):
    with scripted(lambda asked: Reply("x" * 20_000)) as server:
        command = [sys.executable, "-c", FULL, server.url, tmp_path / "calls.sqlite"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        asked = len(server.asked)
        assert 4 <= asked < 40
        last = done.stderr.strip().splitlines()[-1]
        assert re.search(r"LedgerError: /.*/calls.sqlite: the call ledger: .*; make space on its disk", last), last
        assert done.stderr.count("Traceback") == 1
        assert "never retrieved" not in done.stderr
        book = Ledger(tmp_path / "calls.sqlite")
        stored = book.report()[0]["calls"]
        assert asked - 4 <= stored, "all but those in flight"
        assert book._read("PRAGMA integrity_check") == [("ok",)]
        assert tally(by_id(fast_client(tmp_path, server).complete(asks(60), SAMPLING)).values()) == {"ok": 60}
        assert len(server.asked) - asked == 60 - stored, "what is stored is not asked again"


# A disk that several machines share


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ext4", False), ("tmpfs", False), ("fuseblk", False), ("nfs4", True), ("lustre", True), ("fuse.sshfs", True)],
)
def test_a_networks_disk_is_known_by_its_mount(tmp_path, kind, expected):
    device = os.stat(tmp_path).st_dev
    (tmp_path / "mountinfo").write_text(
        "22 1 0:0 / /proc rw - nfs proc rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / /home rw,relatime shared:5 - {kind} server:/home rw\n"
    )
    assert on_network(tmp_path, tmp_path / "mountinfo") is expected
    assert on_network(tmp_path, tmp_path / "none") is False


def test_a_ledger_with_a_log_gives_it_up_on_a_networks_disk_once_it_is_alone(tmp_path, monkeypatch):
    """As one of a run that was begun on one machine: the log of one is not seen by the others."""
    book = Ledger(tmp_path / "calls.sqlite")
    book.record("k", "m", "{}", OK)
    monkeypatch.setattr(ledger_file, "on_network", lambda folder: True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(LedgerError, match=r"database is locked; another process .* run again"):
        Ledger(book.path)
    book.close()
    assert Ledger(book.path).lookup(["k"]) == {"k": OK}
    assert [path.name for path in tmp_path.iterdir()] == ["calls.sqlite"]


def test_what_other_machines_may_write_is_read_with_their_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_file, "on_network", lambda folder: True)
    book = Ledger(tmp_path / "calls.sqlite")
    with ledger_file.only_reading():
        reader = Ledger(book.path)
    book.record("k", "m", "{}", OK)
    assert reader.lookup(["k"]) == {"k": OK}


# A clock that is set


@pytest.fixture(params=[-7200, 7200], ids=["back", "forwards"])
def set_clock(monkeypatch, request):
    """Sets the clock two hours back or forwards."""
    real = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: real() + request.param)


def test_a_lease_outlives_a_clock_that_is_set(tmp_path, set_clock):
    book, mine = Ledger(tmp_path / "calls.sqlite"), new_owner()
    book.claim("k", mine, 60)
    book.claim("short", mine, 0.2)
    set_clock()
    for later in (book, Ledger(book.path)):
        assert later.claim("k", new_owner(), 60) is False, "its owner lives, and is asking"
    time.sleep(0.25)
    assert Ledger(book.path).claim("short", new_owner(), 60) is True


def test_a_lease_of_a_clock_that_was_ahead_does_not_hold_for_ever(tmp_path):
    book = Ledger(tmp_path / "calls.sqlite")
    book.claim("k", '["another machine", 1, "", ""]', LONGEST_LEASE_S + 7200)
    assert book.claim("k", new_owner(), 60) is True


def test_the_rate_window_goes_on_when_the_clock_is_set(tmp_path, set_clock):
    book, limits = Ledger(tmp_path / "calls.sqlite"), Quota(requests_per_minute=2, window_s=0.4)
    assert [book.admit("m", "k", limits)[0] for _ in range(2)] == [0.0, 0.0]
    set_clock()
    for later in (book, Ledger(book.path)):
        assert 0 < later.admit("m", "k", limits)[0] <= 0.4
    time.sleep(0.45)
    assert book.admit("m", "k", limits)[0] == 0.0


def test_requests_of_a_clock_that_was_ahead_count_as_if_they_were_sent_now(tmp_path):
    book, limits = Ledger(tmp_path / "calls.sqlite"), Quota(requests_per_minute=1, window_s=0.3)
    book.admit("m", "k", limits)
    book._db.execute("UPDATE sent SET at = at + 7200")
    assert 0 < book.admit("m", "k", limits)[0] <= 0.3
    time.sleep(0.35)
    assert book.admit("m", "k", limits)[0] == 0.0


def test_a_failure_is_asked_again_whatever_the_clock_says(tmp_path, set_clock):
    with scripted(lambda asked: error(500)) as server:
        assert tally(fast_client(tmp_path, server).complete(asks(3), SAMPLING)) == {"failed": 3}
        set_clock()
        server.script = lambda asked: Reply("fine")
        assert tally(fast_client(tmp_path, server).complete(asks(3), SAMPLING)) == {"ok": 3}


def test_a_failure_of_another_process_meanwhile_is_ours_too_whatever_the_clock_says(tmp_path, set_clock):
    with scripted(lambda asked: error(400, "no", retry_after="0")) as server:
        book = Ledger(tmp_path / "calls.sqlite")
        known = book.failures(["k"]).get("k", 0.0)
        set_clock()
        book.record("k", "m", "{}", Entry("failed", "reset"))
        assert book.claim("k", new_owner(), 60, known=known).reason == "reset"
        assert server.asked == []


def test_a_run_in_progress_does_not_mind_the_clock(tmp_path, set_clock):
    def script(asked):
        if asked.index == 3:
            set_clock()
        return Reply("fine", delay=0.02) if asked.nth else error(429, "wait", retry_after="0.05")

    with scripted(script) as server:
        model = fast_client(tmp_path, server, requests_per_minute=1000, max_in_flight=2)
        start = time.monotonic()
        assert tally(by_id(model.complete(asks(10), SAMPLING)).values()) == {"ok": 10}
        assert time.monotonic() - start < 10
