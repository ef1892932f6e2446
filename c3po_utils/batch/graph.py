"""A run's jobs as a graph: what there is to do, in which order, and what of it is done.

A node is light, so a run of thousands is laid out in a moment; its job, which looks at what earlier ones wrote, is
made when it is asked for. Names are those of the folders that are filled:

    sample/<feedback>                        01_sample
    train/<feedback>/<method>                02_train; `<a>+<b>` for one adapter of two feedbacks
    eval/<feedback>/<method>                 03_evaluate, of one trained method
    eval/<feedback>/prompted                 03_evaluate, of all methods that need no training
    eval/<a>+<b>/<method>@added (or @joint)  04_two_feedbacks
    compare/<feedback>                       03_evaluate once more, on all methods side by side
    figures                                  05_figures
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from c3po_utils.evaluation import two_feedbacks
from c3po_utils.feedback import records
from c3po_utils.runs import jobs, nearest
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import DamagedFile
from c3po_utils.runs.jobs import Job
from c3po_utils.runs.stage import MANIFEST, run_folder
from c3po_utils.training import trained_methods
from c3po_utils.training.methods import Method

Kind = Literal["sample", "train", "evaluate", "two_feedbacks", "compare", "figures"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPTED = "prompted"  # the job, and the folder of its executed copy, for a feedback's methods without training


@dataclass(frozen=True)
class Node:
    """One job of a run: what must be done before it, the folders of the stages that it fills, and how it is made."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    folders: tuple[Path, ...]
    make: Callable[[], Job]

    @property
    def done(self) -> bool:
        """Whether manifests say that its stages are finished, for the inputs that lie there now."""
        return self._says(lambda job: job.done)

    def has_done(self, folder: Path) -> bool:
        """The same of the stage in one of its folders."""
        return self._says(lambda job: any(stage.folder == folder and stage.done for stage in job.stages), folder)

    @property
    def made(self) -> bool:
        """Whether they were finished for these inputs, whatever has become of their products."""
        return self._says(lambda job: job.made)

    def _says(self, question: Callable[[Job], bool], *folders: Path) -> bool:
        if not all((folder / MANIFEST).exists() for folder in folders or self.folders):
            return False  # known without making the job
        try:
            return question(self.make())
        except (FileNotFoundError, DamagedFile):  # an input is to be made, or to be made again
            return False


Nodes = dict[str, Node]  # by name, each after those that it needs


def graph(config: RunConfig, kinds: Collection[str] = KINDS) -> Nodes:
    """The run's jobs of these kinds, each after those that it needs; what comes first should start first.

    What a job needs that is not among them is taken as done. Within a feedback long trainings come before short ones,
    so that the last to end is a short one. Nothing is read but the feedbacks' records.

    Raises:
        ParameterError, ValueError, KeyError: settings that `check` refuses.
    """
    nodes: Nodes = {}
    for node in _Layout(config, run_folder(config.run)).all():
        if node.kind in kinds:
            nodes[node.name] = node
    return {name: replace(node, needs=tuple(filter(nodes.__contains__, node.needs))) for name, node in nodes.items()}


def find(nodes: Nodes, name: str, run: str) -> Node:
    """One node of a run's graph. Raises KeyError, with the nearest name, when there is none."""
    if name not in nodes:
        raise KeyError(f"no job {name!r} in {run} ({nearest(name, nodes)})")
    return nodes[name]


def finished(nodes: Nodes) -> set[str]:
    """The names of those that are done. One that needs an undone one counts as undone: it may have to be made anew."""
    done: set[str] = set()
    after = dependants(nodes)
    for node in nodes.values():
        if done.issuperset(node.needs) and (node.done or spared(node, nodes, after)):
            done.add(node.name)
    return done


def spared(node: Node, nodes: Nodes, after: Mapping[str, Sequence[str]]) -> bool:
    """Whether a training that has lost its adapter need not be done again: all that needed it is done, as in a
    checkout that keeps answers and no adapters.

    Args:
        after: see `dependants`; a run of trainings alone has none, and makes the adapter.
    """
    if node.kind != "train" or not after[node.name] or not node.made:
        return False
    needed_by = (nodes[name] for name in after[node.name])
    return all(other.done or spared(other, nodes, after) for other in needed_by)


class _Layout:
    def __init__(self, config: RunConfig, run: Path):
        self.config, self.run = config, run
        self.feedbacks = jobs.feedback_names(config)
        self.pairs = jobs.two_feedbacks_runs(config)
        trained, together = trained_methods(config.methods), dict.fromkeys(method for _, method, _ in self.pairs)
        self.objectives = {method: self._objective(method) for method in dict.fromkeys([*trained, *together])}
        self.methods, self.together = self._in_order(trained), self._in_order(together)

    def all(self) -> Iterator[Node]:
        """Every node; what one needs may be a method that this run does not have."""
        nodes = [node for name in self.feedbacks for node in self._of_feedback(name)]
        ordered = [pair for method in self.together for pair in self.pairs if pair[1] == method]
        nodes += [node for pair in ordered for node in self._of_two(*pair)]
        yield from nodes
        yield self._figures(node.name for node in nodes if node.kind in ("evaluate", "two_feedbacks"))

    def _objective(self, method: str) -> Method:
        """What a method asks for; the same for every feedback."""
        return jobs.train_settings(jobs.train_values(self.config, self.feedbacks[0], method)).objective

    def _in_order(self, methods: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The trained methods, the longest first but after those that they need, with the methods that each needs."""
        ordered: dict[str, tuple[str, ...]] = {}

        def add(method: str) -> None:
            needs = tuple(other for other in self.objectives[method].needs.values() if other in methods)
            for other in needs:
                add(other)
            ordered.setdefault(method, needs)

        for method in sorted(methods, key=lambda method: -len(self.objectives[method].segments)):
            add(method)
        return ordered

    def _node(self, name: str, kind: Kind, needs: Iterable[str], make: Callable[..., Job], *arguments: object) -> Node:
        return Node(name, kind, tuple(needs), (self.run / name,), partial(make, self.config, self.run, *arguments))

    def _of_feedback(self, name: str) -> Iterator[Node]:
        id = records.feedback_id(name)
        sample = f"sample/{id}"
        yield self._node(sample, "sample", (), jobs.sample_job, name)
        for method, others in self.methods.items():
            yield self._train(name, method, [sample, *(f"train/{id}/{other}" for other in others)])
        yield from self._evaluations(name, id, sample)

    def _train(self, name: str, method: str, needs: Iterable[str]) -> Node:
        return self._node(f"train/{records.feedback_id(name)}/{method}", "train", needs, jobs.train_job, name, method)

    def _weights(self, id: str, method: str) -> list[str]:
        """The trainings that an answer needs: a gate may lie there without the adapter that it adds."""
        return [f"train/{id}/{part}" for part in (method, self.objectives[method].gated) if part]

    def _evaluations(self, name: str, id: str, sample: str) -> Iterator[Node]:
        made = []
        if prompted := [method for method in self.config.methods if method not in self.methods]:
            make = partial(jobs.evaluate_job, self.config, self.run, name, prompted, PROMPTED)
            folders = tuple(self.run / "eval" / id / method for method in prompted)
            made.append(Node(f"eval/{id}/{PROMPTED}", "evaluate", (sample,), folders, make))
        for method in self.methods:
            needs, own = [sample, *self._weights(id, method)], f"eval/{id}/{method}"
            made.append(self._node(own, "evaluate", needs, jobs.evaluate_job, name, [method], method))
        yield from made
        yield self._node(f"compare/{id}", "compare", [node.name for node in made], jobs.compare_job, name)

    def _of_two(self, names: list[str], method: str, how: two_feedbacks.How) -> Iterator[Node]:
        ids = [records.feedback_id(name) for name in names]
        together = two_feedbacks.joint_id(ids)
        needs = [f"eval/{id}/{part}" for id in ids for part in (PROMPTED, method)]
        if how == "joint":
            before = [f"sample/{id}" for id in ids] + [f"train/{together}/{other}" for other in self.together[method]]
            yield self._train(two_feedbacks.joint_name(names), method, before)
        for id in [together] if how == "joint" else ids:
            needs += self._weights(id, method)
        own = f"eval/{together}/{method}{two_feedbacks.SUFFIX[how]}"
        yield self._node(own, "two_feedbacks", needs, jobs.two_feedbacks_job, names, method, how)

    def _figures(self, scored: Iterable[str]) -> Node:
        """After every evaluation; its folder is a setting of its own."""
        folder = run_folder(jobs.figures_values(self.config)["output"])
        return Node("figures", "figures", tuple(scored), (folder,), partial(jobs.figures_job, self.config))


def dependants(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """By name, those that need it."""
    found: dict[str, list[str]] = {name: [] for name in nodes}
    for node in nodes.values():
        for need in node.needs:
            if need in found:
                found[need].append(node.name)
    return found
