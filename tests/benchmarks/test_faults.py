"""The attack trial sees what it is there to see, and the page says what it found."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from c3po_utils.chat.types import Outcome
from c3po_utils.runs.stage import ROOT
from tests.asking import fast_client
from tests.benchmarks.bench_faults import OUTPUT
from tests.benchmarks.faults import escaping, hostile, servers
from tests.benchmarks.faults.line import Line, tried
from tests.servers import Reply, scripted


def test_what_raises_or_fails_is_not_held():
    def attempt(name: str) -> bool:
        return 1 / int(name) > 0.5

    line = tried("numbers", ["1", "2", "0"], attempt)
    assert (line.tried, line.held) == (3, 1)
    assert line.failures == ["2", "0: ZeroDivisionError: division by zero"]
    assert "counts" not in line.as_dict()


def test_a_wrong_answer_and_one_asked_for_twice_are_seen(tmp_path):
    assert servers.right(Outcome("r3", "ok", "answer to prompt 3"))
    assert not servers.right(Outcome("r3", "ok", "answer to prompt 4"))
    assert not servers.right(Outcome("r3", "failed", "answer to prompt 3"))
    line, folders = Line("mixed up"), iter([tmp_path / "first", tmp_path / "second"])  # the second knows no answers
    with scripted(lambda asked: Reply(f"answer to prompt {len(asked.prompt)}")) as server:
        servers.run_of_calls(line, "all", lambda: fast_client(next(folders), server), server, lambda: None)
    assert line.held == 0
    assert line.counts["wrong_answers"] > 0
    assert line.counts["answered_asked_again"] == servers.COUNT


def test_damage_is_damage_and_an_error_without_the_files_name_is_no_refusal():
    whole = json.dumps({"a": list(range(99))}).encode() + b"\n"
    spoiled = hostile.damages(whole, random.Random(0))
    assert len(spoiled) > 15
    assert all(content.rstrip() != whole.rstrip() for content in spoiled.values())

    def read() -> None:
        raise ValueError("something is wrong with b.json")

    assert hostile.refused(read, Path("b.json"), ValueError)
    assert not hostile.refused(read, Path("a.json"), ValueError)
    assert not hostile.refused(lambda: None, Path("a.json"), ValueError)


def test_raw_tags_are_seen():
    page = "<p onclick=x>a</p><!-- b --><a href=c>d</a>&lt;b&gt;"
    assert escaping.Raw(page).found == Counter({"p": 1, "p onclick": 1, "comment": 1, "a": 1, "a href": 1})


def test_the_page_says_what_was_tried_and_all_of_it_held():
    found = json.loads(OUTPUT.read_text())
    assert found["tried"] == found["held"] == sum(row["tried"] for row in found["rows"])
    totals: Counter[str] = Counter()
    for row in found["rows"]:
        totals[row["what"].partition(":")[0]] += row["tried"]
    page = (ROOT / "results" / "README.md").read_text().partition("## What goes wrong")[2]
    assert {name: int(count) for name, count in re.findall(r"^\| (\w+): .*? \| (\d+) \|", page, re.MULTILINE)} == totals
