"""Stored adapters: the model is as it was after any failure, and an adapter that changed on disk is refused."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from peft.tuners.lora.model import LoraModel
from safetensors.torch import load_file, save_file

from c3po_utils.engine.models import load_model
from c3po_utils.runs.files import DamagedFile, read_json
from c3po_utils.runs.stage import Stage
from c3po_utils.training.adapters import load_adapter, merged, save_adapter
from c3po_utils.training.stage import CONFIG, PROBE, WEIGHTS, adapter_hash
from tests.devices import DEVICE
from tests.stored_run import random_adapter

IDS = torch.arange(5, 25, device=DEVICE)[None]


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A finished training's folder."""
    with Stage(tmp_path / "c3po", {}, WEIGHTS, CONFIG, PROBE) as stage:
        save_adapter(random_adapter(str(tiny_folder)), stage.folder)
    return stage.folder


@pytest.fixture
def plain(folder):
    """The folder of an adapter that no manifest knows."""
    (folder / "manifest.json").unlink()
    return folder


def rewrite(path, change) -> None:
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def unused(tensors):
    return {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def state(model) -> tuple:
    """What tells whether anything is left of an adapter."""
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    return modules, [(name, p.requires_grad, p.data_ptr()) for name, p in model.named_parameters()], vars(model).keys()


def interrupt_at(monkeypatch, owner, name: str, call: int) -> None:
    """Ctrl-C in the middle of the n-th call."""
    whole, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


def answer(model, folder, failure: str) -> None:
    with merged(model, folder):
        assert failure == "answering"
        raise KeyboardInterrupt


FAILURES = {
    "probe": lambda folder, _: rewrite(folder / PROBE, lambda t: {"logits": t["logits"].flip(0).contiguous()}),
    "keys": lambda folder, _: rewrite(folder / WEIGHTS, unused),
    "injecting": lambda _, patch: interrupt_at(patch, LoraModel, "_create_and_replace", 3),
    "weights": lambda _, patch: interrupt_at(patch, torch.nn.Module, "load_state_dict", 1),
    "proving": lambda _, patch: interrupt_at(patch, type(IDS), "abs", 1),
    "merging": lambda _, patch: interrupt_at(patch, LoraModel, "merge_and_unload", 1),
    "answering": lambda *_: None,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_model_is_as_it_was_after_any_failure(plain, tiny_folder, monkeypatch, failure):
    model = load_model(str(tiny_folder), torch.float32)
    untouched, before = logits(model), state(model)
    with monkeypatch.context() as patch:
        FAILURES[failure](plain, patch)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            answer(model, plain, failure)
    assert torch.equal(logits(model), untouched)
    assert state(model) == before


def test_a_refused_second_adapter_leaves_the_first_active(plain, tiny_folder):
    policy = random_adapter(str(tiny_folder), "first", seed=1)
    before = logits(policy)
    rewrite(plain / WEIGHTS, unused)
    with pytest.raises(RuntimeError, match="do not match the model"):
        load_adapter(policy, plain, name="second")
    assert (list(policy.peft_config), policy.active_adapter) == (["first"], "first")
    assert torch.equal(logits(policy), before)
    assert not any(".second." in name for name in policy.state_dict())


def swapped(tensors):
    a, b = (f"base_model.model.model.layers.{n}.mlp.up_proj.lora_A.weight" for n in (0, 1))
    return tensors | {a: tensors[b], b: tensors[a]}


@pytest.mark.parametrize("change", [swapped, lambda tensors: {k: 0.9 * v for k, v in tensors.items()}])
def test_an_adapter_that_changed_since_its_training_is_refused(folder, tiny_folder, change):
    model = load_model(str(tiny_folder), torch.float32)
    load_adapter(load_model(str(tiny_folder), torch.float32), folder)
    known = adapter_hash(folder)
    rewrite(folder / WEIGHTS, change)
    for read in (adapter_hash, lambda folder: load_adapter(model, folder)):
        with pytest.raises(DamagedFile, match=rf"{WEIGHTS}: damaged: expected hash {known[:12]}.*run the notebook"):
            read(folder)


@pytest.mark.parametrize("name", [WEIGHTS, PROBE, CONFIG])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_file_is_named_with_and_without_a_manifest(folder, tiny_folder, name, content):
    model = load_model(str(tiny_folder), torch.float32)
    (folder / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(DamagedFile, match=name):
            load_adapter(model, folder)
        (folder / "manifest.json").unlink(missing_ok=True)


def test_equal_adapters_are_stored_as_equal_files(folder):
    """peft writes a set of names, whose order is another one in every process."""
    names = read_json(folder / CONFIG)["target_modules"]
    assert len(names) > 10
    assert names == sorted(names)


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_files_of_an_adapter_follow_the_umask(tmp_path, tiny_folder, umask):
    before = os.umask(umask)
    try:
        save_adapter(random_adapter(str(tiny_folder)), tmp_path / "new")
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert found == dict.fromkeys((WEIGHTS, CONFIG, PROBE), 0o666 & ~umask)
