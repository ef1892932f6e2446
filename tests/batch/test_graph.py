"""A run's graph: who needs whom, in which order, and that it is laid out in a moment."""

from __future__ import annotations

import time

import pytest

from c3po_utils.batch.graph import find, finished, graph
from c3po_utils.runs.config import RunConfig
from tests.benchmarks.bench_batch import FEEDBACKS, METHODS, VALUES, wide


def config(tmp_path, **changes) -> RunConfig:
    methods = ["in_context", "dpo", "scd", "c3po", "c3po_gated", "dpo_after_scd"]
    given = {"run": str(tmp_path), "feedbacks": ["boss_signoff", "fitness_caps"], "methods": methods}
    return RunConfig(**{**given, **changes})


def test_each_node_comes_after_those_that_it_needs(tmp_path):
    nodes = graph(
        config(tmp_path, two_feedbacks=[("boss_signoff", "fitness_caps")], two_feedbacks_how=["add", "joint"])
    )
    seen = set()
    for node in nodes.values():
        assert seen.issuperset(node.needs), node
        seen.add(node.name)
    own = nodes["train/boss_signoff/c3po_gated"].needs
    assert own == ("sample/boss_signoff", "train/boss_signoff/c3po")
    assert "train/boss_signoff/scd" in nodes["train/boss_signoff/dpo_after_scd"].needs
    assert nodes["eval/boss_signoff/prompted"].needs == ("sample/boss_signoff",)
    assert nodes["eval/boss_signoff/dpo"].needs == ("sample/boss_signoff", "train/boss_signoff/dpo")
    assert nodes["train/boss_signoff+fitness_caps/c3po"].needs == ("sample/boss_signoff", "sample/fitness_caps")
    assert {"eval/boss_signoff/c3po", "eval/fitness_caps/c3po"} < set(
        nodes["eval/boss_signoff+fitness_caps/c3po@added"].needs
    )
    scored = {name for name, node in nodes.items() if node.kind in ("evaluate", "two_feedbacks")}
    assert set(nodes["figures"].needs) == scored


def test_long_trainings_start_first(tmp_path):
    methods = [name.split("/")[2] for name in graph(config(tmp_path)) if name.startswith("train/boss_signoff/")]
    assert (
        methods.index("c3po")
        < methods.index("dpo")
        < methods.index("scd_gated" if "scd_gated" in methods else "c3po_gated")
    )


def test_an_unknown_job_is_told_with_the_nearest(tmp_path):
    with pytest.raises(KeyError, match="train/boss_signoff/c3po"):
        find(graph(chosen := config(tmp_path)), "train/boss_signoff/c3p0", chosen.run)


def test_a_wide_run_is_laid_out_in_a_moment(tmp_path):
    run, start = wide(tmp_path), time.process_time()
    nodes = graph(run)
    assert finished(nodes) == set()
    assert time.process_time() - start < 3
    assert sum(node.kind == "train" for node in nodes.values()) == FEEDBACKS * (METHODS * VALUES + 2)
