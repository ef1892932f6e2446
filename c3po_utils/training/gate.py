"""The scope gate: whether a prompt is one that the feedback applies to, read off pi_0's hidden states of it.

Where the gate is open, an adapter is added to pi_0; where it is closed, pi_0 answers as it is, bit for bit. A gate is a
linear probe (probe.py) that is fitted in seconds on the prompts of the training fold, without their answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.chat import request
from c3po_utils.engine import hidden_states, shared_model, templates
from c3po_utils.runs import Stage, files
from c3po_utils.sampling import load_rows
from c3po_utils.training import manners
from c3po_utils.training import probe as probes
from c3po_utils.training.adapters import PROBE_IDS, TOLERANCE, stored_tensors
from c3po_utils.training.methods import Method
from c3po_utils.training.stage import GATE, GATE_CARD, GATE_SCORES, RunTraining

Reading = hidden_states.Reading
Readings = tuple[Reading, ...]  # side by side, as one vector
FOLDS = ("train", "test")
DEPTHS, POOLINGS = (0.25, 0.5, 0.75, 1.0), ("last", "mean")  # what `gate_all` reads, and a search tries one by one
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Gate:
    """A probe, where in pi_0 it reads, and the score above which it opens."""

    probe: probes.Probe
    readings: Readings
    threshold: float

    def scores(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The log-odds (N,) that prompts, given as token ids, are in scope; `model` is pi_0, without an adapter."""
        return self.probe(side_by_side(features(model, prompts, self.readings))) if len(prompts) else np.zeros(0)

    def opens(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Whether the adapter is added (N,)."""
        return self.scores(model, prompts) > self.threshold


def features(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], readings: Sequence[Reading]
) -> NDArray[np.float64]:
    """(readings, N, D); see hidden_states.prompt_states."""
    return hidden_states.prompt_states(model, prompts, readings).numpy().astype(np.float64)


def side_by_side(features_RND: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(N, R * D): several readings of a prompt as one vector."""
    return np.concatenate(list(features_RND), axis=1)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str = "") -> list[int]:
    """A prompt's tokens as the model sees them before it answers."""
    return templates.encode(tokenizer, request("", prompt, system=system).messages, add_generation_prompt=True)


def readings_to_try(method: Method, model: PreTrainedModel) -> list[tuple[Readings, float]]:
    """(readings, L2): those of the method, or all that a search compares, simplest and shallowest last."""
    depth = model.config.get_text_config().num_hidden_layers
    layers = sorted({max(1, round(share * depth)) for share in DEPTHS}, reverse=True)
    grid = tuple(Reading(layer, how) for layer in layers for how in POOLINGS)
    if method.gate_search:
        return [(readings, l2) for readings in (grid, *((one,) for one in grid)) for l2 in PENALTIES]
    one = Reading(method.gate_layer, method.gate_pooling)
    return [(grid if method.gate_all else (one,), method.gate_l2)]


def fit_gate(
    model: PreTrainedModel, encode: Callable[[str], list[int]], rows: Sequence[dict], method: Method
) -> tuple[Gate, dict[str, Any], NDArray[np.float64]]:
    """A gate for the rows' prompts, what it is worth, and the rows' scores (N,) by cross-validation.

    Of several readings the one with the lowest logistic loss in cross-validation is taken.

    Args:
        model: pi_0.
        encode: a prompt's text as token ids; see `prompt_ids`.
        rows: `id`, `feedback`, `split`, `category`, `prompt` each, all of the training fold.

    Raises:
        ValueError: no prompts in scope, or none outside, also with a fold left out.
    """
    every = [*rows, *(manners.in_other_manners(rows) if method.gate_manners else ())]
    splits, folds = [row["split"] for row in every], probes.deal_folds(every)
    probes.split_weights(splits)
    prompts = [encode(row["prompt"]) for row in every]
    tried = readings_to_try(method, model)
    distinct = list(dict.fromkeys(reading for readings, _ in tried for reading in readings))
    alone = dict(zip(distinct, features(model, prompts, distinct), strict=True))
    read = {readings: side_by_side(alone[reading] for reading in readings) for readings, _ in tried}
    found = []
    for readings, l2 in tried:
        scores_N = probes.cross_validated(read[readings], splits, folds, l2)
        threshold = probes.choose_threshold(scores_N, splits, method.gate_leak)
        found.append((probes.measures(scores_N, splits, threshold), threshold, scores_N, readings, l2))
    measures, threshold, scores_N, readings, l2 = min(found, key=lambda one: one[0]["log_loss"])
    gate = Gate(probes.fit_probe(read[readings], splits, l2), readings, threshold)
    card = {
        "readings": [reading._asdict() for reading in readings], "l2": l2, "threshold": threshold,
        "trade_off": f"at most {method.gate_leak:g} of the prompts out of scope" if method.gate_leak
        else "even odds: a miss in scope costs as much as a leak elsewhere",
        "prompts": dict(Counter(splits)), "folds": len(set(folds.tolist())), "readings_tried": len(tried),
        "cross_validated": measures,
    }  # fmt: skip
    return gate, card, scores_N[: len(rows)]


def save_gate(gate: Gate, folder: Path, model: PreTrainedModel, card: dict[str, Any]) -> None:
    """Store a gate in `folder`: its tensors, with what pi_0 reads in a fixed input, and the card, which says the rest.

    Args:
        card: at least `gated`, the method whose adapter it adds, and `base`, pi_0's name.

    Raises:
        OSError: the disk is full, the folder read-only.
    """
    own = {name: torch.from_numpy(value) for name, value in vars(gate.probe).items() if name != "bias"}
    own |= {"bias": torch.tensor(gate.probe.bias, dtype=torch.float64), "read": _read(model, gate.readings)}
    with files.writing(folder / GATE):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(own, folder / GATE)
    where = {"readings": [reading._asdict() for reading in gate.readings], "threshold": gate.threshold}
    files.write_json(folder / GATE_CARD, {**card, **where})


def load_gate(folder: Path, model: PreTrainedModel) -> Gate:
    """The gate in a folder, checked to have been fitted on this model.

    Raises:
        DamagedFile: its files are not those that its stage's manifest was written for.
        RuntimeError: another base model: it has another shape, or what is read in a fixed input differs.
    """
    own, card = stored_tensors(folder, GATE), files.read_json(folder / GATE_CARD, dict)
    other = f"{folder}: this gate was fitted on {card['base']!r}, and the model given is another"
    of_one = [{"layer": card.get("layer"), "pooling": card.get("pooling")}]  # as cards said it before `gate_all`
    readings = tuple(Reading(**one) for one in card.get("readings", of_one))
    read, config = own.pop("read"), model.config.get_text_config()
    deepest = max(reading.layer for reading in readings)
    if len(readings) * config.hidden_size != len(read) or deepest > config.num_hidden_layers:
        raise RuntimeError(f"{other}: {config.num_hidden_layers} layers of {config.hidden_size} are not what it reads")
    found = _read(model, readings)
    difference = (found - read).abs().max() / read.abs().max()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{other}: its hidden states of a fixed input differ by {difference:.2g}, at most {TOLERANCE}"
        )
    values = {name: value.numpy() for name, value in own.items()}
    return Gate(probes.Probe(**values | {"bias": float(values["bias"])}), readings, card["threshold"])


def _read(model: PreTrainedModel, readings: Readings) -> torch.Tensor:
    return hidden_states.prompt_states(model, [PROBE_IDS], readings)[:, 0].flatten()


@dataclass(frozen=True)
class GatePreflight:
    """What a gate is about to be fitted on, counted."""

    in_scope: int
    near_scope: int
    out_of_scope: int
    categories: int
    longest: int  # tokens of a prompt


class GateTraining(RunTraining):
    """A gated method on one feedback's sampled prompts: from a run's rows to a gate beside the adapter it adds.

    The counterpart of finetune.Training.
    """

    @cached_property
    def rows(self) -> list[dict]:
        """The rows of both folds; only those of the fold `train` are fitted on."""
        return load_rows(self.run, self.feedback_id)

    def encode(self, prompt: str) -> list[int]:
        """A prompt's tokens as pi_0 sees them in this run."""
        return prompt_ids(self.tokenizer, prompt, self.sampled_with.system_prompt)

    @property
    def preflight(self) -> GatePreflight:
        own = self.rows_of("train")
        counts = Counter(row["split"] for row in own)
        categories = {(row["feedback"], row["category"]) for row in own if row["split"] != "out_of_scope"}
        longest = max((len(self.encode(row["prompt"])) for row in own), default=0)
        return GatePreflight(*(counts[split] for split in probes.SHARES), len(categories), longest)

    def first_pair(self) -> str:
        """The first prompt as the model sees it; a gate reads no answers."""
        return self.tokenizer.decode(self.encode(self.rows[0]["prompt"]))

    def fit(self) -> pd.DataFrame:
        """Fit and store the gate, or do nothing if that was done; returns the scores of all prompts.

        A row each: `id`, `split`, `category`, `fold`, `prompt`, `score` (log-odds) and `threshold`. In the fold
        `train` the score is by cross-validation, in `test` by the gate.
        """
        if not self.stage.done:
            self.tell_replaced()
            with self.stage as stage:
                self._fit(stage)
        return pd.DataFrame(files.read_jsonl(self.stage.path(GATE_SCORES)))

    def rows_of(self, fold: str) -> list[dict]:
        return [row for row in self.rows if row["fold"] == fold]

    def _fit(self, stage: Stage) -> None:
        model, method = shared_model(self.sampled_with.model), self.settings.objective
        rows, others = map(self.rows_of, FOLDS)
        try:
            gate, card, scores_N = fit_gate(model, self.encode, rows, method)
        except ValueError as error:
            raise ValueError(f"the gate of {self.feedback_id!r}: {error}") from None
        card = {"gated": method.gated, "base": self.sampled_with.model, **card}
        save_gate(gate, stage.folder, model, card)
        held_N = gate.scores(model, [self.encode(row["prompt"]) for row in others])
        scored = zip([*rows, *others], [*scores_N, *held_N], strict=True)
        kept = ("id", "split", "category", "fold", "prompt")
        files.write_jsonl(
            stage.path(GATE_SCORES),
            [{key: row[key] for key in kept} | {"score": x, "threshold": gate.threshold} for row, x in scored],
        )
        stage.notes |= {"gate": card}
