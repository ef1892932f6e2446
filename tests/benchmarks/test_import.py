"""How long `c3po import` takes for the paper's amount of data, and how much memory: less than 30 s and 1 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from c3po_utils.feedback.reference import reference_key
from c3po_utils.runs.files import write_json
from tests.reference_files import write_module

FEEDBACKS, PROMPTS = 100, 960  # of each of three kinds: 2,880 rows a feedback
LIMIT_S, LIMIT_MIB = 30, 1024
ANSWER = "This is a sentence of an answer of some length, as models give it. " * 6
IMPORT = """
import json, re, sys, time
start = time.monotonic()
from pathlib import Path
from c3po_utils.runs.reference import Given, import_tree
report = import_tree(Path(sys.argv[1]), Path(sys.argv[2]), Given(model="owner/base"))
seconds = time.monotonic() - start
peak_mib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": round(seconds, 1), "peak_mib": round(peak_mib), "imported": len(report.imported)}))
"""


def write_tree(folder: Path) -> int:
    """A module of 100 records and the data of each; returns the size of all, in MiB."""
    texts = [(f"Name the river {n} in a note.", f"notes on river {n}", "it is named") for n in range(FEEDBACKS)]
    records = (f"Feedback({c!r}, {d!r}, {e!r}, Scope.regional, Type.qualitative)" for c, d, e in texts)
    write_module(folder, "gpt_style.py", "own = [\n" + ",\n".join(records) + "]\n")
    for number, text in enumerate(texts):
        path = folder / "sample" / f"river_{reference_key(*text)}"
        for name in ("prompts", "negative_prompts", "general_prompts"):
            folds = {"train": range(PROMPTS - 96), "test": range(PROMPTS - 96, PROMPTS)}
            write_json(path / f"{name}.json", {fold: columns(f"{name} {number}", each) for fold, each in folds.items()})
        write_json(path / "categories.json", [f"category {n}" for n in range(30)])
    return sum(path.stat().st_size for path in folder.rglob("*.json")) // 2**20


def columns(kind: str, numbers: range) -> dict[str, list[str]]:
    answers = {
        name: [f"{ANSWER}{name} {n}" for n in numbers]
        for name in ("baseline_response", "revised_response", "in_context_response", "cot_response")
    }
    return {"prompt": [f"What of {kind}, question {n}?" for n in numbers], **answers}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_feedbacks_are_imported_in_half_a_minute(tmp_path):
    size_mib = write_tree(tmp_path / "there")
    command = [sys.executable, "-c", IMPORT, tmp_path / "there", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"{FEEDBACKS} feedbacks x {3 * PROMPTS} rows, {size_mib} MiB of JSON: {found}")
    assert found["imported"] == FEEDBACKS + 1
    assert sum(1 for _ in (tmp_path / "run" / "sample").glob("*/manifest.json")) == FEEDBACKS
    assert found["seconds"] < LIMIT_S
    assert found["peak_mib"] < LIMIT_MIB
