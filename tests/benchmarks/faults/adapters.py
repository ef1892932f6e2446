"""Adapters that are refused, or fail at any step: afterwards pi_0 gives the same logits, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from c3po_utils.engine.models import load_model
from c3po_utils.runs.files import DamagedFile
from c3po_utils.training.adapters import load_adapter, save_adapter
from c3po_utils.training.stage import CONFIG, PROBE, WEIGHTS
from tests.benchmarks.faults.line import Line, tried
from tests.stored_run import random_adapter
from tests.tiny import save_tiny
from tests.training.test_adapters import FAILURES, answer, logits, state

TIMES = 3  # each, on the same model


def trial(seed: int) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = str(save_tiny(folder / "tiny"))
        save_adapter(random_adapter(tiny, seed=seed), folder / "whole")
        model = load_model(tiny, torch.float32)
        untouched, before = logits(model), state(model)

        def as_it_was() -> bool:
            return torch.equal(logits(model), untouched) and state(model) == before

        def fails(case: str) -> bool:
            plain = shutil.copytree(folder / "whole", folder / "copy", dirs_exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                FAILURES[case.split()[0]](plain, patch)
                try:
                    answer(model, plain, case.split()[0])
                except (RuntimeError, KeyboardInterrupt):
                    return as_it_was()
            return False

        def damaged(case: str) -> bool:
            plain = shutil.copytree(folder / "whole", folder / "copy", dirs_exist_ok=True)
            file, _, size = case.partition(" cut to ")
            (plain / file).write_bytes((plain / file).read_bytes()[: int(size)])
            try:
                load_adapter(model, plain)
            except DamagedFile as error:
                return file in str(error) and as_it_was()
            return False

        cases = [f"{failure} {number}" for failure in FAILURES for number in range(TIMES)]
        yield tried("adapters: a failure at every step leaves pi_0 as it was, bit for bit", cases, fails, seed=seed)
        cuts = [f"{file} cut to {size}" for file in (WEIGHTS, PROBE, CONFIG) for size in (0, 1, 8, 100, 200)]
        yield tried("adapters: a refused file leaves pi_0 as it was, bit for bit", cuts, damaged, seed=seed)
