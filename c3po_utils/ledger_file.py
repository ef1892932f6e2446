"""The call ledger's file: its tables, and opening it, which many processes may do at once."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

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
CREATE TABLE IF NOT EXISTS totals (settled REAL NOT NULL, held REAL NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS hold AFTER INSERT ON leases BEGIN
  UPDATE totals SET held = held + NEW.lost + NEW.reserved; END;
CREATE TRIGGER IF NOT EXISTS rehold AFTER UPDATE ON leases BEGIN
  UPDATE totals SET held = held + NEW.lost + NEW.reserved - OLD.lost - OLD.reserved; END;
CREATE TRIGGER IF NOT EXISTS unhold AFTER DELETE ON leases BEGIN
  UPDATE totals SET held = held - OLD.lost - OLD.reserved; END;
"""


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to the ledger at a path, made if there is none.

    Raises sqlite3.DatabaseError for a file that is no ledger.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        _check(db)
    except sqlite3.DatabaseError as error:
        raise sqlite3.DatabaseError(f"{path}: expected a call ledger; {error}") from None
    for _ in range(100):  # entering WAL mode does not wait for another process that does the same
        try:
            db.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.05)
    db.execute("PRAGMA synchronous=NORMAL")
    marks = f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION};"
    db.executescript(f"BEGIN IMMEDIATE; {TABLES} {marks} COMMIT;")
    return db


def _check(db: sqlite3.Connection) -> None:
    queries = ("SELECT COUNT(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
    db.execute("BEGIN")  # one snapshot: another process may be making the tables now
    tables, application, version = (db.execute(query).fetchone()[0] for query in queries)
    db.execute("COMMIT")
    if tables and (application, version) != (APPLICATION, VERSION):
        raise sqlite3.DatabaseError(f"found a database of application {application}, version {version}")
