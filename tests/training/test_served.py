"""Which adapters of a run a server has, exact sums as files, and the proof that each name is served as what it is."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

from c3po_utils import cli
from c3po_utils.chat.vllm import BASE
from c3po_utils.engine.models import load_model
from c3po_utils.runs.files import write_json
from c3po_utils.training import adapters, served
from tests.stored_run import store_adapter, store_playground, store_sample

TOKENS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """`short/c3po`, `short/scd`, `shouted/c3po`, and a gate for the first."""
    folder = store_playground(tmp_path_factory.mktemp("run"), str(tiny_folder))
    write_json(folder / "train" / "short" / "c3po_gated" / "gate.json", {"gated": "c3po"})
    return folder


@pytest.mark.parametrize(
    ("feedbacks", "methods", "names"),
    [
        ((), (), ["short/c3po", "short/scd", "shouted/c3po"]),
        (("short",), (), ["short/c3po", "short/scd"]),
        ((), ("c3po",), ["short/c3po", "shouted/c3po"]),
        (("short+shouted",), (), ["short+shouted/c3po@added"]),
        (("short", "short+shouted"), ("c3po",), ["short/c3po", "short+shouted/c3po@added"]),
    ],
)
def test_adapters_are_chosen_by_feedback_and_method(run, feedbacks, methods, names):
    found = served.choose(run, feedbacks, methods)
    assert list(found.adapters) == names
    assert found.rank == (6 if "short+shouted/c3po@added" in names else 3)
    assert found.gated == (["short/c3po_gated"] if names[0] == "short/c3po" and not methods else [])


def test_the_command_takes_a_variant_whose_label_has_a_comma_by_name(tmp_path, tiny_folder):
    store_sample(tmp_path, "short", str(tiny_folder))
    for method in ("scd", "scd@lr=1e-4,r=16"):
        store_adapter(tmp_path, "short", method, str(tiny_folder))
    done = CliRunner().invoke(cli.c3po, ["serve", str(tmp_path), "--print", "--methods", "scd@lr=1e-4,r=16"])
    assert re.findall('"name": "(.*?)"', done.output) == ["short/scd@lr=1e-4,r=16"]


def test_the_sums_that_a_run_has_evaluated_are_served_with_it(tmp_path, tiny_folder):
    run = store_playground(tmp_path, str(tiny_folder))
    for place in ("short+shouted/c3po@added", "short+shouted/c3po@joint", "short/c3po"):
        write_json(run / "eval" / place / "manifest.json", {"status": "done", "identity": {}})
    assert list(served.choose(run).adapters)[3:] == ["short+shouted/c3po@added"]


@pytest.mark.parametrize(
    ("feedbacks", "methods", "message"),
    [
        (("shot",), (), "no adapter of the feedback 'shot' .*did you mean 'short'"),
        (("short+loud",), (), "no adapter of the feedback 'loud'"),
        ((), ("scdd",), "no adapter of the method 'scdd' .*did you mean 'scd'"),
        (("shouted",), ("scd",), "has no adapter of these feedbacks and methods together"),
        ((), ("c3po_gated",), "short/c3po_gated: a gate decides at each prompt.*engine='vllm'"),
    ],
)
def test_what_is_not_there_or_gated_is_refused(run, feedbacks, methods, message):
    with pytest.raises(ValueError, match=message):
        served.choose(run, feedbacks, methods)


def test_a_run_without_adapters_says_how_to_make_some(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapters here: run notebooks/02_train"):
        served.choose(tmp_path)


def test_a_sum_in_a_file_is_the_sum_of_the_adapters_and_is_made_once(run, tiny_folder):
    (folder,) = served.choose(run, ["short+shouted"]).adapters.values()
    written = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    (again,) = served.choose(run, ["short+shouted"]).adapters.values()
    assert (again / "adapter_model.safetensors").stat().st_mtime_ns == written
    policy, _ = adapters.load_added(run, ["short", "shouted"], "c3po", str(tiny_folder))
    one = adapters.load_adapter(load_model(str(tiny_folder)), folder)
    with torch.no_grad():
        wanted, found = (model(TOKENS).logits.float() for model in (policy, one))
    assert (found - wanted).abs().max() / wanted.abs().max() < 0.02


def test_a_sum_is_made_anew_when_an_adapter_was_trained_again(tmp_path, tiny_folder):
    run = store_playground(tmp_path, str(tiny_folder))
    (before,) = (path.read_bytes() for path in sum_files(run))
    store_adapter(run, "shouted", "c3po", str(tiny_folder), seed=9)
    (after,) = (path.read_bytes() for path in sum_files(run))
    assert after != before


def sum_files(run):
    return [folder / "adapter_model.safetensors" for folder in served.choose(run, ["short+shouted"]).adapters.values()]


# What a server said, against what training stored

LOGPS = {
    "a": torch.tensor([-0.1, -3.0, -4.0]),
    "b": torch.tensor([-3.0, -0.1, -4.0]),
    "weak": torch.tensor([-1.1, -1.1, -1.2]),
}
PI_0 = {0: -1.15, 1: -1.1, 2: -1.1}


def said(logps_V: torch.Tensor, off: float = 0.05) -> dict[int, float]:
    return {token: logp + off for token, logp in enumerate(logps_V.tolist())}


def test_each_name_that_answers_as_itself_is_proved():
    found = {BASE: PI_0, **{name: said(logps_V) for name, logps_V in LOGPS.items()}}
    assert all(served.proved(name, found, LOGPS) for name in LOGPS)


def test_an_adapter_without_effect_on_the_probe_is_not_proved_and_not_refused():
    assert not served.proved("weak", {BASE: PI_0, "weak": PI_0}, LOGPS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (PI_0, "'a' is served as the base model"),
        (said(LOGPS["b"]), "'a' is served as 'b'"),
        ({0: -9.0, 1: -9.0, 2: -0.01}, "'a' does not answer as it did after training"),
    ],
)
def test_a_name_that_answers_as_something_else_is_refused(answer, message):
    with pytest.raises(RuntimeError, match=message):
        served.proved("a", {BASE: PI_0, "a": answer}, LOGPS)
