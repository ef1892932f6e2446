"""Who may make a call, and when: leases by process, and the limits and budget that all on a ledger share."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path

WINDOW_S = 60.0  # rate limits are per minute ...
SKEW_S = 3.0  # ... as counted by a server that sees a request up to this much later than we asked leave for it

ROUNDING_USD = 1e-9
BATCH = "batch:"  # begins the owner of calls that are in a batch


class BudgetReached(RuntimeError):
    """The next call could pass the budget. What is paid for is stored: raise the budget and run again."""


@dataclass(frozen=True)
class Quota:
    """What one attempt asks leave for: `tokens` of the rate limits, `ceiling` USD of the budget.

    A limit that is None does not hold. Tokens are an estimate until the answer says how many there were.
    """

    tokens: int = 0
    ceiling: float = 0.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_usd: float | None = None
    window_s: float = WINDOW_S + SKEW_S

    @property
    def rate_limited(self) -> bool:
        """Whether there is a rate limit."""
        return bool(self.requests_per_minute or self.tokens_per_minute)

    @property
    def free(self) -> bool:
        """Whether nothing limits attempts."""
        return not self.rate_limited and self.budget_usd is None


def window_wait(db: sqlite3.Connection, scope: str, quota: Quota, now: float) -> float:
    """Seconds until enough of the last minute's requests are too old to count."""
    if not quota.rate_limited:
        return 0.0
    db.execute("DELETE FROM sent WHERE at <= ?", (now - quota.window_s,))
    db.execute("UPDATE sent SET at = ? WHERE at > ?", (now, now))  # the clock was set back since, or the machine moved
    too_many, query = 0.0, "SELECT at, tokens FROM sent WHERE scope = ? ORDER BY at"
    if quota.requests_per_minute:
        row = db.execute(f"{query} DESC LIMIT 1 OFFSET ?", (scope, quota.requests_per_minute - 1)).fetchone()
        too_many = row[0] if row else 0.0
    if quota.tokens_per_minute:
        used = db.execute("SELECT TOTAL(tokens) FROM sent WHERE scope = ?", (scope,)).fetchone()[0]
        excess = used + quota.tokens - quota.tokens_per_minute
        for at, tokens in db.execute(query, (scope,)) if excess > 0 else ():
            too_many, excess = max(too_many, at), excess - tokens
            if excess <= 0:
                break
    return max(too_many + quota.window_s - now, 0.001) if too_many else 0.0


def budget_wait(db: sqlite3.Connection, key: str, quota: Quota, now: float) -> float:
    """0 if the attempt fits the budget, else seconds until calls in flight may have turned out cheaper.

    Spending is what is settled, what calls in flight may cost, and what was lost with processes that died. A batch is
    not waited for: that may take a day, and somebody who collects it.
    Raises BudgetReached when nothing in flight can make room.
    """
    if quota.budget_usd is None:
        return 0.0
    spent = db.execute("SELECT settled + held FROM totals").fetchone()[0]
    if spent + quota.ceiling <= quota.budget_usd + ROUNDING_USD:
        return 0.0
    in_flight = f"SELECT owner FROM leases WHERE reserved > 0 AND key != ? AND until > ? AND owner NOT LIKE '{BATCH}%'"
    if any(alive(owner) for (owner,) in db.execute(in_flight, (key, now))):
        return 0.2
    of_batches = f"SELECT TOTAL(reserved) FROM leases WHERE owner LIKE '{BATCH}%'"
    held = db.execute(of_batches).fetchone()[0]
    raise BudgetReached(
        f"{spent:.4f} of the budget of {quota.budget_usd:.4f} USD are spent"
        + f" ({held:.4f} held by batches that are not collected yet)" * bool(held)
        + f", and the next call could cost {quota.ceiling:.4f}; answers so far are stored:"
        + " raise budget_usd and run again"
    )


def _birth(pid: int) -> str:
    """When a process started, so that a reused pid is not taken for it; empty where /proc does not tell."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _machine() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.node()}/{os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def new_owner() -> str:
    """A name for one run of this process, by which others can see whether it lives."""
    return json.dumps([_machine(), os.getpid(), _birth(os.getpid()), uuid.uuid4().hex])


def alive(owner: str) -> bool:
    """Whether the process behind a lease can still be there; on another machine only the lease's expiry tells."""
    if owner.startswith(BATCH):
        return True
    machine, pid, birth, _ = json.loads(owner)
    if machine != _machine():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _birth(pid) == birth
