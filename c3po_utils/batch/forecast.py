"""What a run's graph still takes: jobs, time, tokens, cost. Nothing is asked, nothing is written.

Tokens and cost are counted on a few feedbacks that lack the same jobs and are scored alike, and multiplied
(`runs/estimate.py`). Time is that of jobs of the same kind that are done, as their manifests say; where none are, a
rule: so many tokens a second.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from c3po_utils.batch.graph import KINDS, PROMPTED, Node, Nodes
from c3po_utils.chat import ledger_file
from c3po_utils.chat.types import Estimate
from c3po_utils.evaluation import two_feedbacks
from c3po_utils.feedback import records
from c3po_utils.runs import estimate, files, jobs
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.stage import MANIFEST
from c3po_utils.training import methods as known_methods
from c3po_utils.training import registered

COUNTED = 3  # feedbacks that lack the same jobs, on which tokens are counted
JOB_S = 6.0  # of a notebook beside its work: kernel, imports, manifest


@dataclass(frozen=True)
class Rates:
    """Tokens a second: those that go through the model in training, both passes; those of answers.

    The defaults are the embedded model's on two cores (results/bench).
    """

    trained: float = 450.0
    answered: float = 450.0


@dataclass(frozen=True)
class Line:
    """The jobs of one kind: how many, how many are done, and what the others take."""

    kind: str
    jobs: int
    done: int
    each_s: float | None  # None: nothing tells it
    measured: int  # finished jobs that `each_s` is of; 0: it is by the rule
    takes: Estimate
    here: Estimate  # of that, what models here take, and no API

    @property
    def left(self) -> int:
        return self.jobs - self.done

    @property
    def left_s(self) -> float | None:
        return 0.0 if not self.left else None if self.each_s is None else self.left * self.each_s


def forecast(config: RunConfig, nodes: Nodes, done: set[str], rates: Rates | None) -> list[Line]:
    """A line for each kind of job that the run has, in the order of the graph.

    Args:
        done: names of nodes that are finished.
        rates: None: times are told by finished jobs alone.
    """
    left = [node for node in nodes.values() if node.name not in done]
    with ledger_file.only_reading():
        takes = _takes(config, left)
    lines = []
    for kind in KINDS:
        of_kind = [node for node in nodes.values() if node.kind == kind]
        if of_kind:
            here, there = takes[kind, False], takes[kind, True]
            lines.append(_line(kind, of_kind, done, here, there, rates))
    return lines


def _line(kind: str, nodes: list[Node], done: set[str], here: Estimate, there: Estimate, rates: Rates | None) -> Line:
    walls = [wall for node in nodes if node.name in done if (wall := _wall_s(node)) is not None]
    left = sum(node.name not in done for node in nodes)
    each = statistics.fmean(walls) if walls else None
    if each is None and rates and left:
        tokens_s = here.answer_tokens / rates.answered
        if kind in ("train", "two_feedbacks"):
            tokens_s += here.prompt_tokens / rates.trained
        each = JOB_S + tokens_s / left
    return Line(kind, len(nodes), len(nodes) - left, each, len(walls), here + there, here)


def _wall_s(node: Node) -> float | None:
    """Of the stages that a finished job filled, together."""
    manifests = [files.remembered(folder / MANIFEST) or {} for folder in node.folders]
    walls = [manifest["wall_s"] for manifest in manifests if "wall_s" in manifest]
    return sum(walls) if walls else None


def _takes(config: RunConfig, left: Sequence[Node]) -> dict[tuple[str, bool], Estimate]:
    """By kind of job, and whether an API is asked, the sums over all that are left."""
    names = {records.feedback_id(name): name for name in jobs.feedback_names(config)}
    checkable = {one.id: one.metric is not None for one in jobs.selected(config)}
    lacks: dict[str, list[str]] = defaultdict(list)
    for node in left:
        lacks[node.name.split("/")[1] if "/" in node.name else ""].append(node.name)
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for id in names:
        if id in lacks:
            alike[checkable[id], *(name.replace(f"/{id}", "", 1) for name in lacks[id])].append(id)
    sums: dict[tuple[str, bool], Estimate] = defaultdict(Estimate)
    for (_, *missing), ids in alike.items():
        counted = ids[: 1 if config.sample.get("prompt_model") else COUNTED]
        for id in counted:
            for kind, times, parts in _of_feedback(config, names[id], missing):
                _add(sums, kind, parts, times * len(ids) / len(counted))
    for times, parts in _of_pairs(config, {node.name for node in left if node.kind == "two_feedbacks"}):
        _add(sums, "two_feedbacks", parts, times)
    return sums


def _of_feedback(
    config: RunConfig, name: str, missing: Sequence[str]
) -> Iterator[tuple[str, int, Iterable[estimate.Part]]]:
    """Kind, how many times, and what the missing jobs of one feedback take (`train/c3po`).

    Trained methods answer alike: the first stands for all.
    """
    sampled, asked = estimate.sampling(config, name)
    if "sample" in missing:
        yield "sample", 1, asked
    if trained := [job.partition("/")[2] for job in missing if job.startswith("train/")]:
        yield "train", 1, estimate.training(config, name, sampled, trained)
    answered = [job.partition("/")[2] for job in missing if job.startswith("eval/")]
    if PROMPTED in answered:
        prompted = [method for method in config.methods if registered(method) not in known_methods.METHODS]
        yield "evaluate", 1, estimate.evaluating(config, name, sampled, prompted)
    if adapters := [method for method in answered if method != PROMPTED]:
        yield "evaluate", len(adapters), estimate.evaluating(config, name, sampled, adapters[:1])


def _of_pairs(config: RunConfig, missing: set[str]) -> Iterator[tuple[float, Iterable[estimate.Part]]]:
    """How many times, and what missing pairs of feedbacks take; the first few of each method and way are counted."""
    alike: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for pair, method, how in jobs.two_feedbacks_runs(config) if missing else ():
        together = two_feedbacks.joint_id([records.feedback_id(name) for name in pair])
        if f"eval/{together}/{method}{two_feedbacks.SUFFIX[how]}" in missing:
            alike[method, how].append(pair)
    known: dict[str, estimate.Sampled] = {}
    for (method, how), pairs in alike.items():
        for pair in (counted := pairs[:COUNTED]):
            known |= {name: estimate.sampling(config, name)[0] for name in pair if name not in known}
            parts = estimate.of_two_feedbacks(config, pair, method, how, [known[name] for name in pair])
            yield len(pairs) / len(counted), parts


def _add(sums: dict[tuple[str, bool], Estimate], kind: str, parts: Iterable[estimate.Part], times: float) -> None:
    for _, model, takes in parts:
        sums[kind, model.startswith("openai:")] += _times(takes, times)


def _times(one: Estimate, factor: float) -> Estimate:
    counts = (round(factor * value) for value in (one.calls, one.stored, one.prompt_tokens, one.answer_tokens))
    return Estimate(*counts, None if one.usd is None else factor * one.usd)
