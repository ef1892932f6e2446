"""200 small notebooks on a Ray cluster of three raylets, one of which is killed in mid-run.

`make bench-ray`, some minutes; adds to results/bench/batch.json.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from c3po_utils.batch.driver import drive
from c3po_utils.batch.graph import finished
from c3po_utils.batch.ray_executor import RayExecutor
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT
from tests.batch.toy import config, nodes, run_toy, started, toy
from tests.ray_cluster import ray_cluster

OUTPUT = ROOT / "results" / "bench" / "batch.json"
NAME = "{} notebooks through Ray, one of three nodes killed"
ROW = '(folder / {name!r} / "rows.jsonl").write_text({row!r})'


def killed_node(cluster: Any, folder: Path, jobs: int) -> dict[str, Any]:
    """Kill one of the cluster's raylets, with its workers, when a third of the jobs are done; what came of the run."""
    names = [f"job{number:03}" for number in range(jobs)]
    toy(folder, {name: ("", ROW.format(name=name, row=json.dumps({"id": name}))) for name in names})
    executor = RayExecutor(address=cluster.address, body=run_toy)
    killer = threading.Thread(target=_kill, args=(cluster, folder, jobs // 3))
    start = time.monotonic()
    try:
        killer.start()
        drive(config(folder), nodes(folder), executor)
    finally:
        executor.stop()
        killer.join()
    wall_s = round(time.monotonic() - start, 1)
    rows = [json.loads(line)["id"] for path in folder.glob("*/rows.jsonl") for line in path.read_text().splitlines()]
    torn = [name for name in names if not json.loads((folder / name / "out.ipynb").read_text())["cells"]]
    counts = {"done": len(finished(nodes(folder))), "torn": len(torn), "kernels": len(started(folder))}
    twice = len(rows) - len(set(rows))
    held = (counts["done"], sorted(rows), torn) == (jobs, names, [])
    return {"wall_s": wall_s, "slots": executor.slots, **counts, "twice_in_results": twice, "held": held}


def _kill(cluster: Any, folder: Path, after: int) -> None:
    while len(started(folder)) < after:
        time.sleep(0.1)
    cluster.remove_node(list(cluster.list_all_nodes())[-1], allow_graceful=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shim").mkdir()
        with ray_cluster(Path(folder) / "shim") as cluster:
            found = killed_node(cluster, Path(folder) / "run", 200)
    written = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    written[NAME.format(200)] = {**found, "ray": version("ray")}
    write_json(OUTPUT, written)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
