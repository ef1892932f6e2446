"""Log-probabilities of answers under pi_0, computed once and kept beside the data for every method and rerun."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from c3po_utils.engine import fused, threads
from c3po_utils.runs import files
from c3po_utils.training.loss import sequence_logps
from c3po_utils.training.objective import collate, completion_logps

PAIR = ("chosen", "rejected")


def model_identity(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights, their names and types; adapters are left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(f"{name.replace('base_layer.', '')} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    tokens = array("q", [len(prompt_ids), *prompt_ids, *completion_ids]).tobytes()
    return hashlib.sha256(tokens).hexdigest()[:32]


def _compute(model: PreTrainedModel, rows: Sequence[dict], batch_size: int) -> dict[str, float]:
    """{key: log pi_0(y|x)} of both answers of every row; rows of similar length go through the model together."""
    rows = sorted(rows, key=lambda row: len(row["chosen_ids"]) + len(row["rejected_ids"]))
    lanes = threads.streams(model.device)
    size = -(-batch_size // lanes)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]

    @torch.no_grad()
    def logps(group: Sequence[dict]) -> dict[str, float]:
        pairs = [{f"{name}{part}": row[f"{name}{part}"] for name in PAIR for part in ("_prompt_ids", "_ids")}
                 for row in group]  # fmt: skip
        (batch,) = collate(pairs)
        batch = batch.to(model.device)
        logps_S = sequence_logps(completion_logps(model, batch), batch.sequence_N, 2 * len(group)).tolist()
        keys = [_key(row[f"{name}_prompt_ids"], row[f"{name}_ids"]) for name in PAIR for row in group]
        return dict(zip(keys, logps_S, strict=True))

    found = {}
    with tqdm(total=len(rows), desc="reference log-probs", leave=False) as bar:
        for group, part in zip(groups, threads.side_by_side(logps, groups, lanes), strict=True):
            found |= part
            bar.update(len(group))
    return found


def with_references(
    model: PreTrainedModel, rows: Sequence[dict], folder: Path | str | None = None, *, batch_size: int = 16
) -> list[dict]:
    """The rows with `ref_chosen_logps` and `ref_rejected_logps`: log pi_0 of both answers, summed over their tokens.

    Args:
        model: pi_0.
        rows: token rows with pairs (see data.py).
        folder: where log-probabilities are kept, in one file for each model, by the content of prompt and answer;
            only those that are not there are computed. None keeps nothing.
    """
    path = Path(folder) / f"logps-{model_identity(model)[:16]}.json" if folder else None
    known = files.read_json(path) if path and path.exists() else {}

    def keys(row: dict) -> dict[str, str]:
        return {f"ref_{name}_logps": _key(row[f"{name}_prompt_ids"], row[f"{name}_ids"]) for name in PAIR}

    missing = [row for row in rows if not known.keys() >= set(keys(row).values())]
    if missing:
        with torch.no_grad(), fused(model):  # the same arithmetic as in training: the loss starts at ln 2
            known |= _compute(model, missing, batch_size)
        if path:
            known |= files.read_json(path) if path.exists() else {}  # what another process has found meanwhile
            files.write_json(path, known)
    return [row | {column: known[key] for column, key in keys(row).items()} for row in rows]
