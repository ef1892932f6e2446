"""A server with weights of ours, for as long as a stage needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import openai

from c3po_utils import engine  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat.ledger import Ledger
from c3po_utils.chat.openai import ServedChat
from c3po_utils.chat.openai.transport import client_settings
from c3po_utils.chat.vllm.child import HERE, Child, free_port
from c3po_utils.chat.vllm.command import BASE, FOLDER, check_weights, command, program
from c3po_utils.runs import nearest

LOG = "vllm.log"
TIMEOUT_S = 300.0
Prove = Callable[[openai.OpenAI], list[str]]


class Engine:
    """A server of pi_0 and adapters: one that runs already, or a child that is started when it is first needed.

    Use as a context manager: the child ends with the block, and is started again if it is needed again.

    Args:
        model: pi_0's name.
        run: the run's folder, where the child's log goes.
        url: of a server that runs already.
        adapters: folders by name, and their largest `rank`.
        prove: given a client once the server answers, says which adapters could not be told from pi_0 (`unproved`);
            raises RuntimeError where it does not serve what it should.

    Raises:
        ValueError: a model that is to be loaded with fewer bits.
    """

    def __init__(
        self,
        model: str,
        run: Path,
        url: str = "",
        adapters: Mapping[str, Path] | None = None,
        rank: int = 0,
        prove: Prove = lambda client: [],
    ):
        check_weights(model)
        self.model, self.log, self.url, self.prove = model, run / FOLDER / LOG, url, prove
        self.adapters, self.rank = adapters or {}, rank
        self.endpoint, self.unproved = "", []
        self.child: Child | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        child, self.child, self.endpoint = self.child, None, ""
        if child:
            child.stop()

    def chat(self, name: str, served_as: str, ledger: Path | str) -> ServedChat:
        """The model under a name on the server; `name` stands for its weights in the ledger."""
        return ServedChat(name, self.model, served_as, Ledger(ledger), self.open)

    def open(self) -> str:
        """The server's base URL; a child is started if need be, also where one has died. Raises as `start`."""
        if self.child and self.child.process.poll() is not None:
            self.close()
        if not self.endpoint:
            self.start(HERE, free_port())
        return self.endpoint

    def start(self, host: str, port: int) -> None:
        """Have the server answer, a child at this host and port, and prove what it serves.

        Raises:
            RuntimeError: it cannot be started, has not all names, or another model as `base`; or as `prove` says.
        """
        try:
            if not self.url:
                self.child = Child(self.command(host, port), host, port, self.log)
                self.child.wait()
            endpoint = self.url or self.child.endpoint
            self._check(endpoint)
            self.endpoint = endpoint
        except BaseException:
            self.close()
            raise

    def command(self, host: str, port: int) -> list[str]:
        """The child's command line. Raises RuntimeError where there is no vLLM."""
        import torch  # takes seconds, which joining a server need not wait

        model, gpu = engine.models.resolve(self.model), torch.cuda.is_available()
        return command(program(), model, self.adapters, self.rank, host, port, gpu)

    def _check(self, endpoint: str) -> None:
        http = openai.DefaultHttpxClient(follow_redirects=False)  # the key would go along
        try:
            with openai.OpenAI(**client_settings(endpoint), timeout=TIMEOUT_S, http_client=http) as client:
                roots = {model.id: (model.model_extra or {}).get("root") for model in client.models.list()}
                self._refuse_other(endpoint, roots)
                self.unproved = self.prove(client)
        except openai.OpenAIError as error:
            key = "; its key is taken from C3PO_API_KEY" if isinstance(error, openai.AuthenticationError) else ""
            raise RuntimeError(f"{endpoint}: {error}{key}") from None

    def _refuse_other(self, endpoint: str, roots: Mapping[str, str | None]) -> None:
        for name in (BASE, *self.adapters):
            if name not in roots:
                raise RuntimeError(f"{endpoint} serves no {name!r} ({nearest(name, roots)}): start it again with that")
        if (wanted := engine.models.resolve(self.model)) != roots[BASE]:
            raise RuntimeError(f"{endpoint} serves {roots[BASE]!r} as {BASE!r}: expected {wanted!r}")
