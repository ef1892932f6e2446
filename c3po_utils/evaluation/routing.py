"""Which model answers which request: pi_0 with an adapter merged into it, or, behind a gate, pi_0 or that, by prompt.

A gate stands before the ledger: an answer is kept under the name of the model that gave it. So where a gate is closed
the answer is pi_0's own, bit for bit, and one gate is never served what another one let through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_utils import chat, engine, training  # as rooms: their heavy parts are imported when they are used
from c3po_utils.runs import LEDGER
from c3po_utils.training import adapter_folder, adapter_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Open = tuple[str, ...]  # the feedbacks whose gates are open
Answerer = Callable[[Open], AbstractContextManager[chat.ChatModel]]


class RoutedChat:
    """A chat model in which gates decide, request by request, which adapters are added to pi_0.

    Args:
        name: for messages.
        gates: by feedback.
        pi_0: the local model that the gates read; it holds no adapter while they do.
        answerer: opens the model that has the adapters of some feedbacks; of none, pi_0.
    """

    def __init__(self, name: str, gates: dict[str, training.gate.Gate], pi_0: chat.local.LocalChat, answerer: Answerer):
        self.name, self.gates, self.pi_0, self.answerer = name, gates, pi_0, answerer
        self.opened: dict[str, Open] = {}  # by the id of each request so far

    def routes(self, requests: Sequence[chat.types.Request]) -> dict[Open, list[chat.types.Request]]:
        """The requests by which gates are open for them; what cannot be read goes to pi_0, which says why."""
        encoded = [self.pi_0.encode(request) for request in requests]
        prompts = [ids for ids, reason in encoded if not reason]
        opens = {id: iter(gate.opens(self.pi_0.model, prompts)) for id, gate in self.gates.items()}
        routes = defaultdict(list)
        for request, (_, reason) in zip(requests, encoded, strict=True):
            self.opened[request.id] = () if reason else tuple(id for id, found in opens.items() if next(found))
            routes[self.opened[request.id]].append(request)
        return dict(sorted(routes.items()))

    def complete(
        self, requests: Sequence[chat.types.Request], sampling: chat.Sampling, *, desc: str = ""
    ) -> Iterator[chat.Outcome]:
        for together, own in self.routes(requests).items():
            with self.answerer(together) as model:
                who = "+".join(together) or "gate closed"
                yield from model.complete(own, sampling, desc=desc and f"{desc} ({who})")


def gates(run: Path | str, ids: Sequence[str], method: str, model: PreTrainedModel) -> dict[str, training.gate.Gate]:
    """The gates of a gated method, by feedback; none of another method. Errors as in `training.gate.load_gate`."""
    folders = {id: adapter_folder(run, id, method) for id in ids}
    gated = {id: folder for id, folder in folders.items() if training.stage.gated_folder(folder)}
    return {id: training.gate.load_gate(folder, model) for id, folder in gated.items()}


@contextmanager
def adapted(
    run: Path | str,
    ids: Sequence[str],
    method: str,
    name: str,
    notes: dict[str, Any] | None = None,
    server: chat.vllm.Engine | None = None,
) -> Iterator[chat.ChatModel]:
    """pi_0, a local model by its name, with the feedbacks' adapters of a method, behind the run's ledger.

    Of several feedbacks the adapters are added. Of a gated method, each feedback's gate decides at each request
    whether its adapter is among them.

    Args:
        notes: gets `difference_from_sum`, of several adapters; see `training.adapters.add_adapters`.
        server: has pi_0 and the adapter, of one feedback, and answers instead of a model here; gates are read here.

    Raises:
        FileNotFoundError: an adapter or gate is not trained yet; says how it is.
    """
    folders = [adapter_folder(run, id, method) for id in ids]
    for folder in folders:
        adapter_hash(folder)

    def answerer(together: Open) -> AbstractContextManager[chat.ChatModel]:
        return _with_adapters(run, together, method, name, {} if notes is None else notes, server)

    if any(map(training.stage.gated_folder, folders)):
        base = engine.shared_model(name)
        pi_0 = chat.local.LocalChat(base, engine.load_tokenizer(name), name=name)
        yield RoutedChat(f"{name} and {method}", gates(run, ids, method, base), pi_0, answerer)
    else:
        with answerer(tuple(ids)) as model:
            yield model


@contextmanager
def _with_adapters(
    run: Path | str, ids: Open, method: str, name: str, notes: dict[str, Any], server: chat.vllm.Engine | None
) -> Iterator[chat.ChatModel]:
    """pi_0 with the adapters of none, one or several feedbacks, whether or not they have gates."""
    ledger = Path(run) / LEDGER
    folders = [training.stage.weights_folder(adapter_folder(run, id, method)) for id in ids]
    known_as = training.adapters.known_as(name, folders)
    if server:
        yield server.chat(known_as, training.served.served_name(folders[0]) if folders else chat.vllm.BASE, ledger)
    elif not ids:
        yield chat.open_chat(name, ledger)
    elif len(ids) == 1:
        with training.adapters.answering(name, folders[0], ledger) as model:
            yield model
    else:
        policy, notes["difference_from_sum"] = training.adapters.load_added(run, ids, method, name)
        yield chat.remembered(policy.merge_and_unload(), engine.load_tokenizer(name), known_as, ledger)
