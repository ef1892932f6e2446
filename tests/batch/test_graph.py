"""A run's graph: who needs whom, in which order, and that it is laid out in a moment."""

from __future__ import annotations

import shutil

import pytest

from c3po_utils.batch.graph import find, finished, graph
from c3po_utils.runs.config import RunConfig, load_config
from c3po_utils.runs.stage import ROOT, run_folder
from tests.benchmarks.bench_batch import FEEDBACKS, METHODS, VALUES, wide
from tests.speed import within

PAIR = ("boss_signoff", "fitness_caps")


def config(tmp_path, **changes) -> RunConfig:
    methods = ["in_context", "dpo", "scd", "c3po", "c3po_gated", "dpo_after_scd"]
    given = {"run": str(tmp_path), "feedbacks": list(PAIR), "methods": methods}
    return RunConfig(**{**given, **changes})


def test_each_node_comes_after_those_that_it_needs(tmp_path):
    nodes = graph(config(tmp_path, two_feedbacks=[PAIR], two_feedbacks_how=["add", "joint"]))
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


def test_a_joint_gate_comes_after_the_joint_adapter_whatever_is_named_first(tmp_path):
    given = {"two_feedbacks": [PAIR], "two_feedbacks_how": ["joint"], "two_feedbacks_methods": ["c3po_gated", "c3po"]}
    nodes = graph(config(tmp_path, **given))
    gate, adapter = (f"train/boss_signoff+fitness_caps/{method}" for method in given["two_feedbacks_methods"])
    assert adapter in nodes[gate].needs
    assert list(nodes).index(adapter) < list(nodes).index(gate)


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


@pytest.mark.quiet
def test_a_wide_run_is_laid_out_in_a_moment(tmp_path):
    run = wide(tmp_path)
    with within(3):
        nodes = graph(run)
        assert finished(nodes) == set()
    assert sum(node.kind == "train" for node in nodes.values()) == FEEDBACKS * (METHODS * VALUES + 2)


@pytest.fixture
def without_adapters(tmp_path) -> RunConfig:
    """One feedback of the second benchmark as it is committed: rows and answers, and no adapters."""
    for kind in ("sample", "train", "eval"):
        shutil.copytree(ROOT / "results/benchmark" / kind / "bird_latin", tmp_path / kind / "bird_latin")
    methods = ["base_resampled", "revised", "scd", "scd_negatives", "c3po", "scd_gated"]
    return load_config("benchmark", [f"run={tmp_path}", "feedbacks=[bird_latin]", f"methods=[{','.join(methods)}]"])


def test_a_training_is_not_done_again_where_only_its_adapter_is_gone(without_adapters):
    nodes = graph(without_adapters)
    assert nodes.keys() - finished(nodes) == {"compare/bird_latin", "figures"}


def test_a_training_is_done_again_where_its_adapter_is_needed(without_adapters):
    (run_folder(without_adapters.run) / "eval/bird_latin/scd_gated/manifest.json").unlink()
    nodes = graph(without_adapters)
    undone = {f"{kind}/bird_latin/{method}" for kind in ("train", "eval") for method in ("scd", "scd_gated")}
    assert nodes.keys() - finished(nodes) == undone | {"compare/bird_latin", "figures"}
    assert finished(graph(without_adapters, ["sample", "train"])) == {"sample/bird_latin"}


def test_a_gates_adapter_is_trained_again_where_only_the_gate_is_kept(tmp_path):
    nodes = graph(config(tmp_path, two_feedbacks=[PAIR], two_feedbacks_how=["add", "joint"]))
    for name in ("c3po", "c3po_gated"):
        assert f"train/boss_signoff/{name}" in nodes["eval/boss_signoff/c3po_gated"].needs
        assert f"train/fitness_caps/{name}" in nodes["eval/boss_signoff+fitness_caps/c3po_gated@added"].needs
        assert f"train/boss_signoff+fitness_caps/{name}" in nodes[f"eval/{PAIR[0]}+{PAIR[1]}/c3po_gated@joint"].needs
    assert "train/boss_signoff/scd" not in nodes["eval/boss_signoff/dpo_after_scd"].needs  # its adapter is whole


def test_trainings_are_done_again_where_their_adapters_are_to_be_added(tmp_path):
    pair = ["bird_latin", "birthday_cake"]
    for kind in ("sample", "train", "eval"):
        for id in pair:
            shutil.copytree(ROOT / "results/benchmark" / kind / id, tmp_path / kind / id)
    given = [f"run={tmp_path}", f"feedbacks={pair}", "methods=[base_resampled, revised, scd, dpo]"]
    nodes = graph(load_config("benchmark", [*given, f"two_feedbacks=[{pair}]", "two_feedbacks_methods=[dpo]"]))
    again = {name for name in nodes.keys() - finished(nodes) if name.startswith(("train/", "eval/"))}
    assert again >= {f"train/{id}/dpo" for id in pair}
    assert f"train/{pair[0]}/scd" not in again


def test_what_is_not_asked_for_counts_as_done(without_adapters):
    evaluations = graph(without_adapters, ["evaluate"])
    assert finished(evaluations) == evaluations.keys()
