"""The call ledger: every answer in one SQLite file, shared by stages and processes, never asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from c3po_utils.chat.budget import BATCH, Quota, alive, budget_wait, window_wait
from c3po_utils.chat.ledger_file import LedgerFile
from c3po_utils.chat.types import Outcome, Request, Sampling, Status
from c3po_utils.runs import files

LONGEST_LEASE_S = 27 * 3600.0  # one that ends later was made before the clock was set back
COLUMNS = "status, reason, text, prompt_tokens, completion_tokens, price, at_most, latency_s, attempts"
NEWEST = ", ".join(
    f"{name} = excluded.{name}" for name in f"request, at, {COLUMNS}".split(", ") if name not in ("price", "at_most")
)
# An answer takes the place of a failure, whose cost it adds to; other answers stay as they are.
STORE = (
    f"INSERT INTO calls (key, scope, request, {COLUMNS}, at) VALUES ({','.join('?' * 13)}) ON CONFLICT (key) DO UPDATE"
    f" SET {NEWEST}, price = price + excluded.price, at_most = at_most + excluded.at_most"
    " WHERE calls.status = 'failed'"
)
# A failure whose lease has ended: what fails again since without a lease is the same failure, told twice.
FAILED_BEFORE = (
    "SELECT 1 FROM calls WHERE key = ? AND status = 'failed'"
    " AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.key = calls.key)"
)


def weights_key(name: str, request: Request, sampling: Sampling) -> str:
    """The key of an answer that weights here give, whatever runs them: what one engine answered, another need not.

    It holds what decides the answer: `name`, which stands for the weights, messages, sampling parameters with their
    seed, and the replicate; and the request's id, as equal prompts of two rows are two draws.
    """
    return files.content_hash([name, list(request.messages), asdict(sampling), request.id, request.replicate])


@dataclass(frozen=True)
class Entry:
    """One call as it ended. `price` in USD, None if unknown; `at_most` bounds what its last attempt cost."""

    status: Status
    reason: str = ""
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    price: float | None = None
    at_most: float | None = None
    latency_s: float = 0.0
    attempts: int = 1

    def outcome(self, id: str) -> Outcome:
        tokens = (self.prompt_tokens or 0, self.completion_tokens or 0)
        return Outcome(id, self.status, self.text, self.reason, *tokens, details={"price_usd": self.price})


@dataclass(frozen=True)
class Batch:
    """Calls sent together `at` a time. `job` is the server's name for them, None until it was seen to take them."""

    token: str
    owner: str
    job: str | None
    keys: list[str]
    at: float


class Ledger(LedgerFile):
    """Calls by key, leases on those in flight, and the shared rate-limit window and spending.

    Thread-safe; each process opens its own. Raises LedgerError for a file that is no ledger or cannot be used.
    """

    def lookup(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The stored answers among `keys`; failed calls are none."""
        found = self._of(keys, f"SELECT key, {COLUMNS} FROM calls WHERE status != 'failed'")
        return {key: Entry(*values) for key, *values in found}

    def failures(self, keys: Iterable[str]) -> dict[str, float]:
        """When the calls among `keys` failed that are not answered yet: a mark to know those failures by."""
        return dict(self._of(keys, "SELECT key, at FROM calls WHERE status = 'failed'"))

    def _of(self, keys: Iterable[str], query: str) -> Iterator[tuple]:
        """The rows of these calls, a few hundred at a time: each is looked up, whatever else the ledger holds."""
        keys = list(keys)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            yield from self._read(f"{query} AND key IN ({','.join('?' * len(part))})", *part)

    def claim(
        self, key: str, owner: str, lease_s: float, reserved: float = 0.0, known: float | None = None
    ) -> Entry | bool:
        """The stored answer; else True: the call is the owner's to make; else False: another is making it.

        `reserved` USD are what an attempt that needs no leave (`admit`) may cost. With `known`, a failure counts
        as an answer unless it is the one of that mark (`failures`; 0 if there was none): whoever waited for a call
        that another process had in flight takes its failure too.
        """
        now = self.now()
        with self._write() as db:
            row = db.execute(f"SELECT {COLUMNS}, at FROM calls WHERE key = ?", (key,)).fetchone()
            if row and (row[0] != "failed" or known not in (None, row[-1])):
                return Entry(*row[:-1])
            lease = db.execute("SELECT owner, until FROM leases WHERE key = ?", (key,)).fetchone()
            if lease and lease[0] != owner and 0 < lease[1] - now < LONGEST_LEASE_S and alive(lease[0]):
                return False
            db.execute(
                "INSERT INTO leases (key, owner, until, reserved) VALUES (?, ?, ?, ?) ON CONFLICT (key)"
                " DO UPDATE SET owner = excluded.owner, until = excluded.until, lost = lost + reserved,"
                " reserved = excluded.reserved",
                (key, owner, now + lease_s, reserved),
            )
        return True

    def renew(self, keys: Iterable[str], owner: str, lease_s: float) -> None:
        with self._write() as db:
            rows = [(self.now() + lease_s, key, owner) for key in keys]
            db.executemany("UPDATE leases SET until = ? WHERE key = ? AND owner = ?", rows)

    def attempt_failed(self, key: str, owner: str, billed: bool) -> None:
        """Keep the claim, and count the attempt that failed: in full if `billed`, else not at all.

        Nothing of it can turn out cheaper any more, so that no other call waits for that.
        """
        with self._write() as db:
            db.execute(
                "UPDATE leases SET lost = lost + reserved * ?, reserved = 0 WHERE key = ? AND owner = ?",
                (billed, key, owner),
            )

    def release(self, key: str, owner: str, billed: bool = False) -> None:
        """Give a claim back unanswered; what attempts may have cost (the last if `billed`) stays counted."""
        mine, cost = (key, owner), "lost + reserved" if billed else "lost"
        with self._write() as db:
            row = db.execute(f"SELECT {cost} FROM leases WHERE key = ? AND owner = ?", mine).fetchone()
            db.execute("UPDATE totals SET settled = settled + ?", row or (0.0,))
            db.execute("DELETE FROM leases WHERE key = ? AND owner = ?", mine)

    def release_all(self, owner: str) -> None:
        """Give back, unsent, all that a run still holds at its end: its process may live on."""
        with self._write() as db:
            lost = db.execute("SELECT TOTAL(lost) FROM leases WHERE owner = ?", (owner,)).fetchone()
            db.execute("UPDATE totals SET settled = settled + ?", lost)
            db.execute("DELETE FROM leases WHERE owner = ?", (owner,))

    def admit(self, scope: str, key: str, quota: Quota) -> tuple[float, int]:
        """Leave for one attempt: (0, its ticket), or (seconds until it is worth asking again, 0).

        Raises BudgetReached when the spending so far and this attempt's ceiling pass the budget, and no call in flight
        can still turn out cheaper.
        """
        with self._write() as db:
            now = self.now()  # waiting for others' writes takes its time, above all on a network's disk
            wait = max(window_wait(db, scope, quota, now), budget_wait(db, key, quota, now))
            if wait > 0:
                return wait, 0
            db.execute("UPDATE leases SET reserved = ? WHERE key = ?", (quota.ceiling, key))
            if not quota.rate_limited:
                return 0.0, 0
            added = db.execute("INSERT INTO sent (scope, at, tokens) VALUES (?, ?, ?)", (scope, now, quota.tokens))
            return 0.0, added.lastrowid or 0

    def record(
        self, key: str, scope: str, request: str, entry: Entry, ticket: int = 0, owner: str | None = None
    ) -> None:
        """Store an outcome and end its lease, in one transaction.

        A call that failed before keeps that cost: prices add up. `owner` is who made the call now, and what that
        cost counts whatever is stored. None ends anyone's lease, for the outcome of a batch: two processes may collect
        one, and it costs once.
        """
        used = (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)
        values = (*(getattr(entry, name) for name in COLUMNS.split(", ")), self.now())
        with self._write() as db:
            # What was lost stays with a lease that goes on: whoever took it over settles it.
            ended, whose = "FROM leases WHERE key = ? AND (owner = ? OR ? IS NULL)", (key, owner, owner)
            lost = db.execute(f"SELECT TOTAL(lost) {ended}", whose).fetchone()[0]
            if owner is None and entry.status == "failed" and db.execute(FAILED_BEFORE, (key,)).fetchone():
                return
            stored = db.execute(STORE, (key, scope, request, *values)).rowcount
            cost = (entry.at_most or 0.0) * bool(stored or owner)
            if lost:
                db.execute("UPDATE calls SET at_most = at_most + ? WHERE key = ?", (lost, key))
            db.execute("UPDATE totals SET settled = settled + ?", (lost + cost,))
            db.execute(f"DELETE {ended}", whose)
            if ticket and used:
                db.execute("UPDATE sent SET tokens = ? WHERE ticket = ?", (used, ticket))

    def spent(self) -> float:
        """USD at most, over all runs: known prices, and ceilings where an attempt's fate is unknown."""
        return self._read("SELECT settled + held FROM totals")[0][0]

    def report(self) -> list[dict]:
        """One row a model, endpoint and status: calls, tokens, known USD, and calls without a known price."""
        names = ("model", "status", "calls", "prompt_tokens", "completion_tokens", "usd", "unpriced")
        query = (
            "SELECT scope, status, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(price),"
            " SUM(price IS NULL) FROM calls GROUP BY scope, status ORDER BY scope, status"
        )
        return [dict(zip(names, row, strict=True)) for row in self._read(query)]

    def add_batch(self, token: str, scope: str, owner: str, keys: list[str], content: str, lease_s: float) -> None:
        """Note a batch before it is sent, under a token that is sent with it; the keys' leases pass to it."""
        now = self.now()
        values = [(f"{BATCH}{token}", now + lease_s, key) for key in keys]
        with self._write() as db:
            row = (token, scope, owner, json.dumps(keys), content, now)
            db.execute("INSERT INTO batches VALUES (?, ?, ?, NULL, ?, ?, ?)", row)
            db.executemany("UPDATE leases SET owner = ?, until = ? WHERE key = ?", values)

    def set_batch_job(self, token: str, job: str) -> None:
        with self._write() as db:
            db.execute("UPDATE batches SET job = ? WHERE token = ?", (job, token))

    def disown_batch(self, token: str) -> None:
        """Leave a batch, of which nobody knows whether it was started, to whoever looks next."""
        with self._write() as db:
            db.execute("UPDATE batches SET owner = '' WHERE token = ?", (token,))

    def end_batch(self, token: str) -> None:
        """Forget a batch; the leases of what it left unanswered go."""
        with self._write() as db:
            db.execute("DELETE FROM batches WHERE token = ?", (token,))
            db.execute("DELETE FROM leases WHERE owner = ?", (f"{BATCH}{token}",))

    def batches(self, scope: str) -> list[Batch]:
        """The open batches of a scope, oldest first."""
        rows = self._read("SELECT token, owner, job, keys, at FROM batches WHERE scope = ? ORDER BY at", scope)
        return [Batch(token, owner, job, json.loads(keys), at) for token, owner, job, keys, at in rows]

    def batch_content(self, token: str) -> str:
        """The requests of a batch as they were sent, one JSON object a line; none if it was forgotten meanwhile."""
        return "".join(text for (text,) in self._read("SELECT content FROM batches WHERE token = ?", token))
