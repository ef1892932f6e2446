"""`c3po doctor` on tiny models: a fast path that computes wrongly is found, switched off, and the plain one taken."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
import torch
from click.testing import CliRunner

from c3po_utils.chat import greedy
from c3po_utils.cli import c3po
from c3po_utils.engine import attention, fast_paths, fused, kernels, load_model, load_tokenizer, log_probs, packed
from c3po_utils.engine import threads as engine_threads
from c3po_utils.runs import doctor
from c3po_utils.training import checks


def doubled(function):
    """A gradient, or several, twice as large as it is."""

    def wrong(ctx, *grads):
        found = function(ctx, *grads)
        return tuple(g * 2 if torch.is_tensor(g) else g for g in (found if isinstance(found, tuple) else (found,)))

    return staticmethod(wrong)


def scaled(function):
    return lambda *args, **kwargs: function(*args, **kwargs) * 1.3


def only_alone(function):
    """Right for as few rows as a layer's proof has, and nothing for more."""
    return lambda module, x: function(module, x) if len(x) < 3 else torch.zeros_like(x)


def torn(work, items, lanes):
    raise RuntimeError("threads do not work here") if lanes > 1 else AssertionError


def forgetful(self, layer, key, value):
    seen = attention_store(self, layer, key, value)
    return seen[0], torch.zeros_like(seen[1])


attention_store = attention.SlotStep.store
BROKEN = {  # by fast path: where, what, and something wrong in its place
    "packing": (attention, "packed_attention", scaled(attention.packed_attention)),
    "eager_attention": (attention._EagerAttention, "backward", doubled(attention._EagerAttention.backward)),
    "lora_kernel": (kernels.LoraLinear, "backward", doubled(kernels.LoraLinear.backward)),
    "norm_kernel": (kernels.RMSNorm, "backward", doubled(kernels.RMSNorm.backward)),
    "swiglu_kernel": (kernels.SwiGLULoraLinear, "backward", doubled(kernels.SwiGLULoraLinear.backward)),
    "rotary_kernel": (kernels.Rotary, "backward", doubled(kernels.Rotary.backward)),
    "head": (log_probs._Logps, "backward", doubled(log_probs._Logps.backward)),
    "streams": (engine_threads, "side_by_side", None),
    "slots": (attention.SlotStep, "store", forgetful),
    "packed_linears": (packed, "product", scaled(packed.product)),
    "decoder_layers": (packed, "_normed", only_alone(packed._normed)),
}


@pytest.fixture
def cores(request):
    """Two for the path that needs them; one for the others, whose small products gain nothing by a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if request.node.callspec.params["name"] == "streams" else 1)
    yield
    torch.set_num_threads(before)


def spoil(monkeypatch, name: str) -> None:
    where, what, wrong = BROKEN[name]
    if name == "streams":
        right = engine_threads.side_by_side
        wrong = lambda work, items, lanes: right(work, items, 1) if lanes == 1 else torn(work, items, lanes)  # noqa: E731
    monkeypatch.setattr(where, what, wrong)


def findings(model, tokenizer, reference) -> dict[str, bool]:
    """Whether each way is ok, by name."""
    rows = checks.sample_rows(tokenizer, 2)
    exact = checks.reference_passes(reference, rows)
    found = [*checks.passes_findings(model, rows, exact), *greedy.greedy_findings(model, tokenizer, reference)]
    result: dict[str, bool] = {}
    for one in found:
        result[one.about] = result.get(one.about, True) and one.ok
    return result


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_fast_path_is_found_and_its_switch_gives_right_results(
    tiny_folder, monkeypatch, device, as_stored, cores, name
):
    dtype = torch.bfloat16 if name in ("packed_linears", "decoder_layers") else torch.float32
    model, tokenizer = load_model(str(tiny_folder), dtype, device), load_tokenizer(str(tiny_folder))
    reference = load_model(str(tiny_folder), torch.float32, device)
    whole = findings(model, tokenizer, reference)
    assert all(whole.values())
    if name not in whole:
        pytest.skip(f"{name} is not taken on this device")
    spoil(monkeypatch, name)
    found = findings(model, tokenizer, reference)
    failed = {way for way, ok in found.items() if not ok}
    follows = {"packing": {"eager_attention"}, "slots": {"streams"}}.get(name, set())  # those that need it
    assert {name} <= failed <= {name, "together"} | follows
    assert ("together" in failed) != (name in ("slots", "packed_linears", "decoder_layers"))
    where = fast_paths.place(model.device, model.dtype)
    fast_paths.store(where, "tiny", dict.fromkeys(failed & fast_paths.FAST_PATHS.keys(), "it was wrong"))
    fast_paths._tell.cache_clear()

    rows = checks.sample_rows(tokenizer, 2)
    exact = checks.reference_passes(reference, rows)
    most = 2 * checks.reference_passes(model, rows).error(exact)[1] + 1e-4
    policy = checks.with_adapter(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with fused(policy):
            error = checks.run_passes(policy, rows, checks.quickly).error(exact)
        checks.put_away(policy)
        answers = dict(sorted(greedy.answers(model, tokenizer).items()))
    assert error[1] <= most
    assert greedy.regret(greedy.answer_logits(reference, answers), answers) <= 0.25
    assert [name in str(one.message) and "slower way" in str(one.message) for one in told].count(True) == 1


def test_switches_belong_to_a_place_and_a_model_and_go_when_it_passes(as_stored):
    where, other = "GPU one, bfloat16", "GPU two, bfloat16"
    fast_paths.store(where, "a", {"slots": "answers differ"})
    fast_paths.store(where, "b", {"slots": "answers differ", "head": "nan"})
    assert fast_paths.switched_off(where) == {"slots": "answers differ", "head": "nan"}
    assert fast_paths.switched_off(other) == {}
    fast_paths.store(where, "b", {})
    assert fast_paths.switched_off(where) == {"slots": "answers differ"}, "b says nothing of a"
    fast_paths.store(where, "a", {})
    assert fast_paths.switched_off(where) == {}
    fast_paths.store(other, "a", {"head": "nan"})
    assert fast_paths.reset()
    assert not fast_paths.reset()


def test_a_damaged_file_of_switches_is_told_and_switches_nothing(as_stored):
    fast_paths.store("here", "a", {"slots": "no"})
    fast_paths.stored_in().write_text('{"here": ')
    fast_paths.switched_off.cache_clear()
    with pytest.warns(UserWarning, match=r"fast_paths\.json: expected JSON"):
        assert fast_paths.switched_off("here") == {}


BREAK = """
import sys, torch
from c3po_utils.engine import kernels
right = kernels.LoraLinear.backward
def wrong(ctx, grad):
    return tuple(g * 2 if torch.is_tensor(g) else g for g in right(ctx, grad))
kernels.LoraLinear.backward = staticmethod(wrong)
"""
DOCTOR = "from c3po_utils.cli import c3po; c3po(['doctor', sys.argv[1], '--dtype', 'float32'])"
NEXT = """
from c3po_utils.engine import fused, load_model, load_tokenizer
from c3po_utils.training import checks
model, rows = load_model(sys.argv[1], torch.float32), checks.sample_rows(load_tokenizer(sys.argv[1]), 2)
exact = checks.reference_passes(model, rows)
policy = checks.with_adapter(model)
with fused(policy):
    print("error", checks.run_passes(policy, rows, checks.quickly).error(exact)[1])
"""


@pytest.mark.slow
def test_the_next_process_takes_the_plain_way(tiny_folder, tmp_path):
    environment = {**os.environ, "C3PO_CACHE": str(tmp_path)}

    def run(code: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", BREAK + code, str(tiny_folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    examined = run(DOCTOR)
    assert examined.returncode == 1, examined.stderr
    assert "FAILED lora_kernel" in examined.stdout
    assert "-> switched off on this machine" in examined.stdout
    after = run(NEXT)
    assert "a slower way is taken on this machine: 'lora_kernel'" in after.stderr
    assert float(after.stdout.split()[1]) < 1e-4
    (tmp_path / fast_paths.FILE).unlink()
    assert float(run(NEXT).stdout.split()[1]) > 0.1, "without the switch its results are wrong"


def test_a_healthy_machine_gets_a_line_for_each_check_and_status_0(tiny_folder, as_stored, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GIB", 0.1)
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 0.1)
    done = CliRunner().invoke(c3po, ["doctor", str(tiny_folder)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("ok ")]
    about = [line[7:24].strip() for line in lines]
    assert {"python", "packages", "devices", "memory", "model", "plain", "together", "adapter", "training step"} <= {
        *about
    }
    assert ("no GPU" in done.output) != torch.cuda.is_available()
    assert not fast_paths.stored_in().exists()
    assert "DPO starts at 0.693" in done.output


def test_what_is_wrong_with_the_machine_is_said_with_what_to_do(as_stored, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_asked", lambda: (">=9", ["torch>=1", "click>=99", "no-such-package"]))
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 1e9)
    monkeypatch.setattr("c3po_utils.engine.names.lacking", lambda name: None)
    done = CliRunner().invoke(c3po, ["doctor", "someone/some-model"])
    assert done.exit_code == 1
    assert "FAILED python" in done.output
    assert f"click>=99 is asked, {metadata.version('click')} is here; no-such-package is not installed" in done.output
    assert "FAILED disk, results" in done.output
    assert "-> fetch it: hf download someone/some-model" in done.output
    assert "5 FAILED" in done.output
    assert CliRunner().invoke(c3po, ["doctor", "nowhere"]).exit_code == 1


def test_reset_switches_all_on_again(as_stored):
    fast_paths.store("here", "a", {"slots": "no"})
    assert "all fast paths are on again" in CliRunner().invoke(c3po, ["doctor", "--reset"]).output
    assert "no fast path was off" in CliRunner().invoke(c3po, ["doctor", "--reset"]).output
