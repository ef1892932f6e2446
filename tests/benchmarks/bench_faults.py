"""What goes wrong, tried: servers, kills, damaged files, wrong settings, keys, adapters, hostile texts.

python -m tests.benchmarks.bench_faults [trial ...]      all of them write results/bench/faults.json

Nothing is simulated in the kit's own code: servers on this machine misbehave, processes are killed, files are damaged.
The cases are those of the tests; here all of them are tried and counted, with random moments and places (`SEED`).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings

from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware
from tests.benchmarks.faults.line import Line

OUTPUT = ROOT / "results" / "bench" / "faults.json"
TRIALS = ("servers", "kills", "hostile", "settings", "keys", "adapters", "escaping")
SEED = 20260301


def beside() -> str:
    """How busy the machine is with other things: seconds are longer then."""
    return f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"


def show(line: Line) -> None:
    worst = f"   worst {line.worst:6.2f} {line.unit}" if line.worst else ""
    print(f"{line.what:72} {line.held:4} of {line.tried:4}{worst}", flush=True)
    if line.counts:
        print("    " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in line.counts.items()))
    for failure in line.failures:
        print(f"    NOT HELD: {failure}")


def main(names: list[str]) -> bool:
    """Whether everything held."""
    warnings.simplefilter("ignore")  # of damaged files, by the hundred
    before, start, lines = beside(), time.monotonic(), []
    for name in names or TRIALS:
        for line in importlib.import_module(f"tests.benchmarks.faults.{name}").trial(SEED):
            show(line)
            lines.append(line)
    tried, held = sum(line.tried for line in lines), sum(line.held for line in lines)
    print(f"{held} of {tried} held, in {time.monotonic() - start:.0f} s")
    if not names:
        found = {
            "machine": hardware(), "commit": git_commit(), "beside": f"{before}; at the end {beside()}",
            "wall_s": round(time.monotonic() - start), "tried": tried, "held": held,
            "rows": [line.as_dict() for line in lines],
        }  # fmt: skip
        write_json(OUTPUT, found)
    return held == tried


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
