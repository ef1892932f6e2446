"""What travels between a machine and its run's store: stages before and after a job, paid answers all the while."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from c3po_utils.batch.graph import Node, Nodes, graph
from c3po_utils.chat.exchange import Exchange, letter_name
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import DamagedFile, remembered
from c3po_utils.runs.stage import LEDGER, MANIFEST, run_folder
from c3po_utils.runs.store import Manifest, Store

CALLS = "calls"  # in the store: the ledgers' letters
LETTERS = 100  # of them that are in memory at one time
EXCHANGE_S = 30.0  # a machine that is gone for ever takes the answers of at most so many seconds with it


def ancestors(nodes: Nodes, name: str) -> list[Node]:
    """What a node needs, and what that needs, in the graph's order."""
    wanted = {name}
    for each in reversed(nodes):
        if each in wanted:
            wanted.update(nodes[each].needs)
    return [node for each, node in nodes.items() if each in wanted and each != name]


class Share:
    """A run's folder here and its store. Raises as `Store` does."""

    def __init__(self, url: str, run: Path):
        self.store, self.ledger = Store(url, run), run / LEDGER

    def bring(self, nodes: Iterable[Node], heavy: bool = True, remade: bool = False) -> None:
        """Have here what the store has of these nodes, and there what was done here and never arrived.

        Where both have a stage, and each its own, the store's is the run's, unless only ours has today's settings and
        inputs: its upload failed.

        Args:
            heavy: with files that are large, such as adapters; without them such stages are not done here.
            remade: whether a stage that is damaged in the store is left to be made anew, with a warning.

        Raises:
            DamagedFile: a stage is damaged in the store.
        """
        nodes = list(nodes)
        known = self.store.manifests(folder for node in nodes for folder in node.folders)
        for node in nodes:
            for folder in node.folders:
                try:
                    self._bring(node, folder, known.get(folder), heavy)
                except DamagedFile as error:
                    remote, manifest = self.store.remote, f"{self.store.name(folder)}/{MANIFEST}"
                    if not remade:
                        raise DamagedFile(
                            f"{error}. Remove {remote.url}/{manifest}, and run again: it is put there, or made, anew"
                        ) from None
                    remote.remove(manifest)  # else what is made anew, in the same second, may pass for what lies there
                    warnings.warn(f"{error}. It is made anew", stacklevel=2)

    def _bring(self, node: Node, folder: Path, theirs: Manifest | None, heavy: bool) -> None:
        ours = remembered(folder / MANIFEST)
        differs = ours and (theirs is None or theirs.get("identity") != ours.get("identity"))
        if differs and node.has_done(folder):
            self.store.publish(folder, theirs)
        elif theirs:
            self.store.fetch(folder, theirs, heavy)

    def publish(self, node: Node) -> None:
        """Put a node's finished stages there, those that are not there yet."""
        known = self.store.manifests(node.folders)
        for folder in node.folders:
            self.store.publish(folder, known.get(folder))

    def exchange(self) -> None:
        """Send the answers that were paid for here, and take those of other machines.

        What others spent counts for the budget from then on: machines at work at the same time may pass it together
        by what the others spend between two exchanges.
        """
        remote = self.store.remote
        there = {Path(name).name for name in remote.names(CALLS)}
        if not there and not self.ledger.exists():
            return
        with contextlib.closing(Exchange(self.ledger)) as ledger:
            ledger.write_letter()
            for name, content in ledger.unsent().items():
                remote.write(f"{CALLS}/{name}", content)
                ledger.sent(name)
            news = [f"{CALLS}/{name}" for name in sorted(there - ledger.known())]
            for start in range(0, len(news), LETTERS):
                for place, content in sorted(remote.read_all(news[start : start + LETTERS]).items()):
                    if letter_name(content) == Path(place).name:
                        ledger.take(content)
                    else:
                        warnings.warn(f"{remote.url}/{place}: damaged in the store; it is left out", stacklevel=2)

    @contextlib.contextmanager
    def exchanging(self, every_s: float = EXCHANGE_S) -> Iterator[None]:
        """Exchange answers before, now and then during, and after; what cannot be sent meanwhile is sent at the end."""
        self.exchange()
        ended = threading.Event()

        def keep_on() -> None:
            while not ended.wait(every_s):
                try:
                    self.exchange()
                except Exception as error:
                    warnings.warn(f"{error}; it is tried again", stacklevel=2)

        thread = threading.Thread(target=keep_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.exchange()


@contextlib.contextmanager
def around_job(url: str, run: Path, nodes: Nodes, node: Node) -> Iterator[Callable[[], None]]:
    """Around a job: what it needs is here, and its own stage if that is done; the call publishes what it made.

    Raises:
        StoreError, DamagedFile: see `Share`.
    """
    share = Share(url, run)
    with share.exchanging():
        share.bring(ancestors(nodes, node.name), heavy=node.kind != "figures")
        share.bring([node], remade=True)
        yield lambda: share.publish(node)


def stored(config: RunConfig, nodes: Nodes) -> set[str]:
    """The names of the nodes all of whose stages lie in the run's store, whatever their settings; none without one.

    Raises:
        StoreError: see `Share`.
    """
    if not config.store:
        return set()
    known = Store(config.store, run_folder(config.run)).manifests(
        folder for node in nodes.values() for folder in node.folders
    )
    return {name for name, node in nodes.items() if known.keys() >= set(node.folders)}


@contextlib.contextmanager
def around_run(config: RunConfig) -> Iterator[None]:
    """Around a driver: at both ends the run's folder here and its store, if it has one, have the same stages.

    Raises:
        StoreError: see `Share`.
    """
    if not config.store:
        yield
        return
    share, nodes = Share(config.store, run_folder(config.run)), graph(config)

    def both_ways() -> None:
        share.exchange()
        share.bring(nodes.values(), remade=True)

    both_ways()
    try:
        yield
    except Exception:  # jobs failed: the others' results are wanted all the same
        both_ways()
        raise
    both_ways()
