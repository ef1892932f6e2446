"""The ledger's SQLite file: made, opened, locked and synced; its clock; its errors in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from c3po_utils.chat.network_disk import on_network

APPLICATION, VERSION = 0xC3B0, 1
TABLES = """
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, scope TEXT NOT NULL, request TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER,
  completion_tokens INTEGER, price REAL, at_most REAL, latency_s REAL, attempts INTEGER, at REAL);
CREATE TABLE IF NOT EXISTS leases (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL,
  lost REAL NOT NULL DEFAULT 0, reserved REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS sent (ticket INTEGER PRIMARY KEY, scope TEXT NOT NULL, at REAL NOT NULL,
  tokens INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS sent_by_time ON sent (scope, at);
CREATE TABLE IF NOT EXISTS batches (token TEXT PRIMARY KEY, scope TEXT NOT NULL, owner TEXT NOT NULL,
  job TEXT, keys TEXT NOT NULL, content TEXT NOT NULL, at REAL);
CREATE TABLE IF NOT EXISTS clock (boot TEXT PRIMARY KEY, began REAL NOT NULL);
CREATE TABLE IF NOT EXISTS totals (settled REAL NOT NULL, held REAL NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS hold AFTER INSERT ON leases BEGIN
  UPDATE totals SET held = held + NEW.lost + NEW.reserved; END;
CREATE TRIGGER IF NOT EXISTS rehold AFTER UPDATE ON leases BEGIN
  UPDATE totals SET held = held + NEW.lost + NEW.reserved - OLD.lost - OLD.reserved; END;
CREATE TRIGGER IF NOT EXISTS unhold AFTER DELETE ON leases BEGIN
  UPDATE totals SET held = held - OLD.lost - OLD.reserved; END;
"""
WRITABLE = "make the file and its folder writable, or copy it to a folder that is"
SPACE = "make space on its disk (or raise the quota) and run again: what it holds is kept"
REPLACE = "move the file away to begin anew, or put a copy in its place"
ADVICE = {  # by SQLite's error code
    sqlite3.SQLITE_BUSY: "another process is writing it: run again when that has ended",
    sqlite3.SQLITE_LOCKED: "another process is writing it: run again when that has ended",
    sqlite3.SQLITE_READONLY: WRITABLE,
    sqlite3.SQLITE_CANTOPEN: WRITABLE,
    sqlite3.SQLITE_FULL: SPACE,
    sqlite3.SQLITE_IOERR: SPACE,
    sqlite3.SQLITE_CORRUPT: REPLACE,
    sqlite3.SQLITE_NOTADB: REPLACE,
}
_making = threading.Lock()
_only_reading: ContextVar[bool] = ContextVar("_only_reading", default=False)


@contextlib.contextmanager
def only_reading() -> Iterator[None]:
    """Ledgers that are opened meanwhile are not written to; one that is not there yet is an empty one in memory."""
    token = _only_reading.set(True)
    try:
        yield
    finally:
        _only_reading.reset(token)


class LedgerError(sqlite3.DatabaseError):
    """The ledger's file cannot be used; the message names it and says what to do."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of SQLite and the file system as LedgerError, in one line."""
    try:
        yield
    except LedgerError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # above it are details
        what = f"expected a call ledger; {error}" if code == sqlite3.SQLITE_NOTADB else f"the call ledger: {error}"
        raise LedgerError("; ".join([f"{path}: {what}", *([ADVICE[code]] if code in ADVICE else [])])) from None
    except OSError as error:
        raise LedgerError(f"{path}: the call ledger: {error.strerror}; {WRITABLE}") from None


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # SQLite would make it for its owner alone, whatever the umask. Under a lock: closing a file ends the locks that
    # other threads hold on it.
    with _making, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        _keep_journal(db, _journal(db, path))
        marks = f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION};"
        db.executescript(f"BEGIN IMMEDIATE; {TABLES} {marks} COMMIT;")
    except BaseException:
        db.close()  # as others wait until nobody has it open
        raise
    return db


def _journal(db: sqlite3.Connection, path: Path) -> str:
    """How writes are kept whole: a write-ahead log is fast, and for one machine's processes only (sqlite.org/wal.html).

    On a network's disk it is a rollback journal, with locks on the file itself. A ledger that was made with one keeps
    it: the machine whose own disk is the others' network's has it open beside them.
    """
    made = _check(db, path)
    kept = made and db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    return "DELETE" if kept or on_network(path.parent) else "WAL"


def _keep_journal(db: sqlite3.Connection, journal: str) -> None:
    for attempt in range(100):  # a change does not wait for another process that makes it, or has the file open
        try:
            db.execute(f"PRAGMA journal_mode={journal}")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == 99:
                raise
            time.sleep(0.05)
    # A log is synced by `sync`, each second; a rollback journal has to be as it goes.
    db.execute(f"PRAGMA synchronous={'NORMAL' if journal == 'WAL' else 'FULL'}")


def _connect_to_read(path: Path) -> sqlite3.Connection:
    if path.exists():
        # Without a log nobody on this machine writes to it, and it is all there is: then SQLite need not make files of
        # its own.
        written = on_network(path.parent) or path.with_name(f"{path.name}-wal").exists()
        how = "mode=ro" if written else "immutable=1"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=60, check_same_thread=False)
        _check(db, path)
    else:
        db = sqlite3.connect(":memory:", check_same_thread=False)
        db.executescript(TABLES)
    return db


def _check(db: sqlite3.Connection, path: Path) -> bool:
    """Whether it has its tables already. Raises LedgerError for another's."""
    queries = ("SELECT COUNT(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
    db.execute("BEGIN")  # one snapshot: another process may be making the tables now
    tables, application, version = (db.execute(query).fetchone()[0] for query in queries)
    db.execute("COMMIT")
    if tables and (application, version) != (APPLICATION, VERSION):
        found = f"found a database of application {application}, version {version}"
        raise LedgerError(f"{path}: expected a call ledger; {found}")
    return bool(tables)


def _boot() -> str:
    """Which start of the machine this is; empty where /proc does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class LedgerFile:
    """One connection to a ledger, for all threads of this process.

    Raises LedgerError for a file that is no ledger or cannot be used, when it is opened and ever after.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock = threading.RLock()
        with explained(self.path):
            self._db = _connect_to_read(self.path) if _only_reading.get() else _connect(self.path)
        self._began = None if _only_reading.get() else self._clock()

    def _clock(self) -> float | None:
        """When the machine was started, as the first process of this start to open the ledger saw it."""
        boot = _boot()
        if not boot:
            return None
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO clock VALUES (?, ?)", (boot, time.time() - time.monotonic()))
            return db.execute("SELECT began FROM clock WHERE boot = ?", (boot,)).fetchone()[0]

    def now(self) -> float:
        """Seconds since the epoch, about: all processes agree on it, and it does not jump when a clock is set."""
        return time.time() if self._began is None else self._began + time.monotonic()

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: it outlives this process from its end on, a power failure from the next `sync`."""
        with self._lock, explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    def _read(self, query: str, *values: object) -> list[tuple]:
        with self._lock, explained(self.path):
            return self._db.execute(query, values).fetchall()

    def sync(self) -> None:
        """Force what is committed to the disk. (The log has no file locks that closing it would drop.)"""
        with explained(self.path), contextlib.suppress(FileNotFoundError), open(f"{self.path}-wal", "rb+") as log:
            os.fsync(log.fileno())

    def close(self) -> None:
        with self._lock:
            self._db.close()
