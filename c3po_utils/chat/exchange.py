"""Answers that ledgers on different machines give each other, in letters that never change once they are written.

SQLite files cannot be shared through an object store. So each machine keeps a ledger of its own, puts what is new in it
into a letter named by its content, and takes the letters of the others, each once. Nothing is ever overwritten, so no
order of events loses a paid answer, and spending is counted once. Leases and rate limits are not exchanged: machines
that want the same answer at the same time each pay for it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

from c3po_utils.chat.budget import ROUNDING_USD
from c3po_utils.chat.ledger import COLUMNS, STORE
from c3po_utils.chat.ledger_file import LedgerFile

CALL = f"key, scope, request, {COLUMNS}, at"
TABLES = (
    "CREATE TABLE IF NOT EXISTS letters (name TEXT PRIMARY KEY, content TEXT)",  # content: ours, not sent yet
    "CREATE TABLE IF NOT EXISTS shared (key TEXT PRIMARY KEY, at REAL NOT NULL)",  # calls that are in some letter
    "CREATE TABLE IF NOT EXISTS told (settled REAL NOT NULL)",  # USD of this ledger's total that are in some letter
    "INSERT INTO told SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM told)",
)


class Exchange(LedgerFile):
    """A ledger, as the others' correspondent. Raises LedgerError as every ledger does."""

    def __init__(self, path: Path | str):
        super().__init__(path)
        with self._write() as db:
            for statement in TABLES:
                db.execute(statement)

    def write_letter(self) -> None:
        """Put the answers and the spending that are in no letter yet into one."""
        with self._write() as db:
            calls = db.execute(
                f"SELECT {CALL} FROM calls WHERE status != 'failed' AND NOT EXISTS"
                " (SELECT 1 FROM shared WHERE shared.key = calls.key AND shared.at = calls.at)"
            ).fetchall()
            spent = db.execute("SELECT totals.settled - told.settled FROM totals, told").fetchone()[0]
            if not calls and spent <= ROUNDING_USD:
                return
            head = {"letter": uuid.uuid4().hex, "spent_usd": spent}  # two letters of the same content are two
            content = "".join(json.dumps(part) + "\n" for part in (head, *calls))
            db.execute("INSERT INTO letters VALUES (?, ?)", (letter_name(content.encode()), content))
            db.executemany("INSERT OR REPLACE INTO shared VALUES (?, ?)", [(call[0], call[-1]) for call in calls])
            db.execute("UPDATE told SET settled = (SELECT settled FROM totals)")

    def unsent(self) -> dict[str, bytes]:
        """Letters by name that may not have been sent; sending one twice is harmless."""
        return {name: text.encode() for name, text in self._read("SELECT * FROM letters WHERE content IS NOT NULL")}

    def sent(self, name: str) -> None:
        with self._write() as db:
            db.execute("UPDATE letters SET content = NULL WHERE name = ?", (name,))

    def known(self) -> set[str]:
        """The names of letters that this ledger wrote or took."""
        return {name for (name,) in self._read("SELECT name FROM letters")}

    def take(self, content: bytes) -> None:
        """Merge a letter, unless it is known: answers that are here stay, spending adds up."""
        head, *calls = map(json.loads, content.splitlines())
        with self._write() as db:
            if not db.execute("INSERT OR IGNORE INTO letters VALUES (?, NULL)", (letter_name(content),)).rowcount:
                return
            db.executemany(STORE, calls)
            db.executemany(
                "INSERT OR REPLACE INTO shared SELECT key, at FROM calls WHERE key = ? AND at = ?",
                [(call[0], call[-1]) for call in calls],
            )
            for table in ("totals", "told"):
                db.execute(f"UPDATE {table} SET settled = settled + ?", (head["spent_usd"],))


def letter_name(content: bytes) -> str:
    """A letter's name, by which a damaged one is known."""
    return f"{hashlib.sha256(content).hexdigest()}.jsonl"
