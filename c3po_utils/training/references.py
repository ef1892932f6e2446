"""Log-probabilities of answers under pi_0, computed once and kept beside the data for every method and rerun."""

from __future__ import annotations

import hashlib
import math
import warnings
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel

from c3po_utils.engine import fused, threads
from c3po_utils.runs import files, once, progress
from c3po_utils.training.loss import sequence_logps
from c3po_utils.training.objective import collate, completion_logps

PAIR = ("chosen", "rejected")
ROWS_AT_ONCE = 16
HASH = "sha256"  # a file's own, of its log-probabilities: a changed digit would go unseen into every loss


def model_identity(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights, their names and types; adapters are left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(f"{name.replace('base_layer.', '')} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _keys(row: dict) -> dict[str, str]:
    """By segment, what an answer's log-probability is kept under: the hash of its prompt's and its own tokens."""
    tokens = {name: (row[f"{name}_prompt_ids"], row[f"{name}_ids"]) for name in PAIR}
    return {
        name: hashlib.sha256(array("q", [len(prompt), *prompt, *completion]).tobytes()).hexdigest()[:32]
        for name, (prompt, completion) in tokens.items()
    }


def _compute(model: PreTrainedModel, rows: Sequence[dict]) -> dict[str, float]:
    """{key: log pi_0(y|x)} of both answers of every row; rows of similar length go through the model together."""
    rows = sorted(rows, key=lambda row: len(row["chosen_ids"]) + len(row["rejected_ids"]))
    lanes = threads.streams(model)
    size = -(-ROWS_AT_ONCE // lanes)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]

    @torch.no_grad()
    def logps(group: Sequence[dict]) -> dict[str, float]:
        columns = [f"{name}{part}" for name in PAIR for part in ("_prompt_ids", "_ids")]
        (batch,) = collate([{column: row[column] for column in columns} for row in group])
        batch = batch.to(model.device)
        logps_S = sequence_logps(completion_logps(model, batch), batch.sequence_N, 2 * len(group)).tolist()
        keys = [_keys(row)[name] for name in PAIR for row in group]
        return dict(zip(keys, logps_S, strict=True))

    found = {}
    with progress.bar(total=len(rows), desc="reference log-probs", unit="row", leave=False) as bar:
        for group, part in zip(groups, threads.side_by_side(logps, groups, lanes), strict=True):
            found |= part
            bar.update(len(group))
    return found


def _known(path: Path | None) -> dict[str, float]:
    """The log-probabilities in a file, those that are some; none of a changed file's, with a warning.

    Files from before they held their hash are taken as they are.
    """
    found = (files.remembered(path) if path else None) or {}
    if found.pop(HASH, None) not in (None, files.content_hash(found)):
        warnings.warn(f"{path}: damaged: not the numbers that were written. It is made anew", stacklevel=2)
        return {}
    return {key: value for key, value in found.items() if isinstance(value, float) and math.isfinite(value)}


def _missing(rows: Sequence[dict], known: dict[str, float]) -> list[dict]:
    return [row for row in rows if not known.keys() >= set(_keys(row).values())]


def _compute_and_keep(model: PreTrainedModel, rows: Sequence[dict], path: Path | None) -> dict[str, float]:
    with torch.no_grad(), fused(model):  # the same arithmetic as in training: the loss starts at ln 2
        found = _compute(model, rows)
    if path:
        with once.alone(path.with_suffix(".writing"), [path.name]):
            kept = _known(path) | found  # with what other processes have found of other rows meanwhile
            files.write_json(path, {HASH: files.content_hash(kept), **kept})
    return found


def with_references(model: PreTrainedModel, rows: Sequence[dict], folder: Path | str | None = None) -> list[dict]:
    """The rows with `ref_chosen_logps` and `ref_rejected_logps`: log pi_0 of both answers, summed over their tokens.

    Args:
        model: pi_0.
        rows: token rows with pairs (see data.py).
        folder: where log-probabilities are kept, in one file for each model, by the content of prompt and answer;
            only those that are not there are computed, and all of a damaged file's. Of several processes that miss
            the same ones, one computes them and the others wait. None keeps nothing.
    """
    path = Path(folder) / f"logps-{model_identity(model)[:16]}.json" if folder else None
    known = _known(path)
    if missing := _missing(rows, known):
        wanted = [key for row in missing for key in _keys(row).values()]
        with once.alone(path.with_suffix(".lock"), wanted) if path else nullcontext():
            known |= _known(path)
            if missing := _missing(missing, known):
                known |= _compute_and_keep(model, missing, path)
    return [row | {f"ref_{name}_logps": known[key] for name, key in _keys(row).items()} for row in rows]
