"""A run's adapters as vLLM takes them: by name, exact sums in files, and the proof that a server has them.

A server whose adapter's tensors have unknown names, or that another adapter was loaded under a name, answers all the
same: as pi_0, or as that. So each name has to prove itself, by the logits that its training stored beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import openai
import torch

from c3po_utils.chat.vllm import BASE, FOLDER, Engine
from c3po_utils.engine import load_model
from c3po_utils.runs import Stage, done_stages, files, nearest, shown
from c3po_utils.sampling import members, stored_settings
from c3po_utils.training.adapters import PROBE_IDS, add_adapters, load_adapter, save_adapter, stored_tensors
from c3po_utils.training.stage import (
    CONFIG,
    GATE_CARD,
    PROBE,
    WEIGHTS,
    adapter_folder,
    adapter_hash,
    weights_folder,
)

ADDED = "@added"  # of a sum's name, as in eval/
TOP = 20  # log-probabilities that vLLM gives at most
SAME = 0.02  # mean difference of log-probabilities of one model's answers to one question
ROUNDING = 0.15  # mean difference of log-probabilities, by 16-bit numbers added in another order (0.06 to 0.14 seen)

LogProbs = Mapping[int, float]  # by token


@dataclass(frozen=True)
class Served:
    """What of a run a server is to have: pi_0's name, adapters' folders by name, and those that it cannot have."""

    model: str
    adapters: dict[str, Path]
    gated: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The largest of an adapter."""
        return max((files.read_json(folder / CONFIG, dict)["r"] for folder in self.adapters.values()), default=0)

    def engine(self, run: Path, url: str = "") -> Engine:
        """The server: a child that is started when it is needed, or one that runs at `url`."""
        return Engine(self.model, run, url, self.adapters, self.rank, partial(prove, adapters=self.adapters))


def served_name(folder: Path) -> str:
    """`FEEDBACK/METHOD`."""
    return "/".join(folder.parts[-2:])


def choose(run: Path, feedbacks: Sequence[str] = (), methods: Sequence[str] = ()) -> Served:
    """The adapters of a run, all or those of some feedbacks and methods, and sums of them.

    A feedback `a+b` stands for the adapter that was trained on both, if there is one, and for the sum of both
    adapters, `a+b/METHOD@added`. Left out, there are the sums that the run has evaluated.

    Raises:
        ValueError: nothing of that name, with the nearest; a gated method by name; several base models.
        FileNotFoundError: the run has no adapters here.
    """
    folders = {served_name(path.parent): path.parent for path in sorted((run / "train").glob(f"*/*/{WEIGHTS}"))}
    gated = [served_name(path.parent) for path in sorted((run / "train").glob(f"*/*/{GATE_CARD}"))]
    if not folders:
        raise FileNotFoundError(f"{shown(run)} has no adapters here: run notebooks/02_train.ipynb first")
    parts = [name.split("/") for name in (*folders, *gated)]
    _refuse_unknown("method", methods, {method for _, method in parts})
    _refuse_unknown("feedback", [id for name in feedbacks for id in members(name)], {id for id, _ in parts})
    _refuse_gated([name for name in gated if name.split("/")[1] in methods])
    sums = _sums(folders, feedbacks) if feedbacks else _evaluated_sums(run, folders)
    wanted = [(name, folder) for name, folder in folders.items() if _chosen(name, feedbacks, methods)]
    added = {name: ids for name, ids in sums.items() if _chosen(name.removesuffix(ADDED), (), methods)}
    model = _one_model(run, {id for name, _ in wanted for id in members(name.split("/")[0])}.union(*added.values()))
    for _, folder in wanted:
        adapter_hash(folder)
    summed = {name: write_sum(run, name, ids, model) for name, ids in added.items()}
    return Served(model, dict(wanted) | summed, [name for name in gated if _chosen(name, feedbacks, methods)])


def _chosen(name: str, feedbacks: Sequence[str], methods: Sequence[str]) -> bool:
    id, method = name.split("/")
    return (not feedbacks or id in feedbacks) and (not methods or method in methods)


def _refuse_unknown(what: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"no adapter of the {what} {name!r} ({nearest(name, known)})")


def _refuse_gated(names: Sequence[str]) -> None:
    for name in names:
        raise ValueError(
            f"{name}: a gate decides at each prompt whether its adapter answers, which a server's name cannot."
            " Serve the method without `_gated`, and evaluate this one in notebooks/03_evaluate.ipynb with"
            " engine='vllm': it asks the gate, and then the server for the adapter or for 'base'"
        )


def _sums(folders: Mapping[str, Path], feedbacks: Sequence[str]) -> dict[str, list[str]]:
    """By name, the feedbacks of each sum that can be made."""
    methods = dict.fromkeys(name.split("/")[1] for name in folders)
    several = [(name, members(name)) for name in feedbacks if "+" in name]
    return {
        f"{name}/{method}{ADDED}": ids
        for name, ids in several
        for method in methods
        if all(f"{id}/{method}" in folders for id in ids)
    }


def _evaluated_sums(run: Path, folders: Mapping[str, Path]) -> dict[str, list[str]]:
    evaluated = {served_name(folder) for folder, _ in done_stages(run, "eval")}
    together = list(dict.fromkeys(name.split("/")[0] for name in evaluated if name.endswith(ADDED)))
    return {name: ids for name, ids in _sums(folders, together).items() if name in evaluated}


def _one_model(run: Path, ids: set[str]) -> str:
    if not ids:
        raise ValueError(f"{shown(run)} has no adapter of these feedbacks and methods together")
    found = {id: stored_settings(run, id).model for id in sorted(ids)}
    if len(set(found.values())) > 1:
        raise ValueError(f"a server has one base model, and the feedbacks have several: {found}; choose some")
    return next(iter(found.values()))


def write_sum(run: Path, name: str, ids: Sequence[str], model: str) -> Path:
    """The exact sum of the feedbacks' adapters of a method as an adapter of its own, made unless it is there.

    Returns its folder, which has the same files as that of a trained one.
    """
    method = name.split("/")[1].removesuffix(ADDED)
    parts = {id: adapter_folder(run, id, method) for id in ids}
    own = Stage(
        run / FOLDER / name, {"added": {id: adapter_hash(folder) for id, folder in parts.items()}},
        WEIGHTS, CONFIG, PROBE,
    )  # fmt: skip
    if not own.done:
        with own:
            policy: Any = load_model(model)
            for id, folder in parts.items():
                policy = load_adapter(policy, folder, name=id)
            only = "default"  # as peft names the only one
            own.notes["difference_from_sum"] = add_adapters(policy, list(ids), only)
            for id in ids:
                policy.delete_adapter(id)
            save_adapter(policy, own.folder)
    return own.folder


def prove(client: openai.OpenAI, adapters: Mapping[str, Path]) -> list[str]:
    """Check that a server has the adapters under their names; returns those that the probe cannot tell from pi_0.

    Raises:
        RuntimeError: which name it serves wrongly.
    """
    found = {name: _asked(client, name) for name in (BASE, *adapters)}
    stored = {name: stored_tensors(folder, PROBE)["logits"].log_softmax(-1) for name, folder in adapters.items()}
    return [name for name in adapters if not proved(name, found, stored)]


def _asked(client: openai.OpenAI, name: str) -> LogProbs:
    """The log-probabilities of the likeliest tokens after the probe's."""
    completion = client.completions.create(
        model=name, prompt=PROBE_IDS, max_tokens=1, temperature=0, logprobs=TOP,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    top = completion.choices[0].logprobs.top_logprobs[0]
    return {int(token.removeprefix("token_id:")): logp for token, logp in top.items()}


def proved(name: str, found: Mapping[str, LogProbs], stored: Mapping[str, torch.Tensor]) -> bool:
    """Whether an adapter's name on a server is seen to answer as that adapter.

    Args:
        found: what the server said under `base` and each adapter's name.
        stored: log-probabilities (V,) that each adapter gave after its training.

    Returns:
        False where the probe cannot tell it from pi_0.

    Raises:
        RuntimeError: it answers as pi_0, as another adapter, or as nothing that is known.
    """
    own, change = _apart(found[name], stored[name]), _apart(found[BASE], stored[name])
    if _apart(found[name], found[BASE]) <= SAME:
        if change <= ROUNDING:
            return False
        raise RuntimeError(f"{name!r} is served as the base model: the server has not taken its tensors")
    for other, logps_V in stored.items():
        apart = _apart({token: logps_V[token].item() for token in found[name]}, stored[name])
        if apart > 2 * ROUNDING and _apart(found[name], logps_V) < min(own, 2 * ROUNDING):
            raise RuntimeError(f"{name!r} is served as {other!r}")
    if own > max(2 * ROUNDING, change):
        raise RuntimeError(
            f"{name!r} does not answer as it did after training: its log-probabilities differ by {own:.2g}, and the"
            f" base model's by {change:.2g}"
        )
    return True


def _apart(found: LogProbs, other: LogProbs | torch.Tensor) -> float:
    """The mean absolute difference over the tokens that were found; infinite where the other has not all of them."""
    if isinstance(other, Mapping) and not found.keys() <= other.keys():
        return float("inf")
    return sum(abs(logp - float(other[token])) for token, logp in found.items()) / len(found)


def answering(run: Path, feedback_id: str, methods: Sequence[str], model: str) -> Served:
    """The adapters that answer for the methods of one feedback: their own, or those that their gates add.

    Raises:
        FileNotFoundError: one is not trained yet; says how it is.
    """
    folders = [adapter_folder(run, feedback_id, method) for method in methods]
    for folder in folders:
        adapter_hash(folder)
    return Served(model, {served_name(own): own for own in map(weights_folder, folders)})
