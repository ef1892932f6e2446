"""Jobs on Modal (extra `modal`), which needs an account: `modal setup`, or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET.

Not run by this project, which has no account: tests build the app, its image and its function with the real package,
and let a stand-in for the started function answer. What only Modal can show (the image's build, GPUs, preemption) is
untried.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from c3po_utils.batch.tasks import Outcome, Task, stopped
from c3po_utils.batch.work import run_task
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.stage import ROOT

SLOTS = 10
CHECKOUT = "/c3po"  # of this repository, in a container
MODELS = "/models"
LOCK = "requirements.lock"
LEFT_OUT = [".git", ".venv", "results/*", "!results/paper", "**/__pycache__", "build"]


class ModalExecutor:
    """Runs each task in a container of its own. Results travel through the run's store: a container keeps nothing.

    Args:
        slots: containers at one time; 0: 10. Modal starts them as they are needed, and bills each by the second.
        gpu: as Modal names it (A100-80GB, H100, L40S), for every task; empty: none.
        cpus, memory_gib: of a container, as a reservation.
        timeout_min: limit of each task; at the limit it is lost, and tried again by the driver.
        secrets: names of Modal's secrets that hold keys: the store's (AWS_ACCESS_KEY_ID, ...), OPENAI_API_KEY,
            HF_TOKEN.
        models: name of the volume that keeps downloaded models from one container to the next.
        body: what is done with a task, in the container.

    Raises:
        ModuleNotFoundError: Modal's package is not installed.
        ParameterError: no checkout of the repository, whose lock says what the image holds; at the first task, no
            account.
    """

    def __init__(
        self,
        slots: int = 0,
        *,
        gpu: str = "",
        cpus: float = 4,
        memory_gib: float = 16,
        timeout_min: int = 240,
        secrets: list[str] | None = None,
        models: str = "c3po-models",
        body: Callable[[Task], Outcome] = run_task,
    ):
        import modal

        self.modal, self.slots = modal, slots or SLOTS
        self.app = modal.App("c3po", image=_image(modal))
        self.function = self.app.function(
            gpu=gpu or None,
            cpu=cpus,
            memory=int(memory_gib * 1024),
            timeout=timeout_min * 60,
            max_containers=self.slots,
            volumes={MODELS: modal.Volume.from_name(models, create_if_missing=True)},
            secrets=[modal.Secret.from_name(name) for name in secrets or ()],
            retries=0,
            include_source=False,
            serialized=True,
            name="run_task",
        )(body)
        self._running: dict[Future[Outcome], tuple[Task, Any]] = {}
        self._changed, self._started, self._stopped = threading.Lock(), False, False
        self._session = contextlib.ExitStack()

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if not task.store:
            future.set_result(Outcome(task.name, "failed", "executor 'modal' needs `store`: containers share no disk"))
            return future
        with self._changed:
            call = None if self._stopped else self._spawn(task)
            if call is None:
                future.set_result(stopped(task))
                return future
            self._running[future] = (task, call)
        threading.Thread(target=self._attend, args=(task, call, future), daemon=True).start()
        return future

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            running, self._running = self._running, {}
        for future, (task, _) in running.items():
            future.set_result(stopped(task))
        self._session.close()  # an app that ends takes its containers along

    def _spawn(self, task: Task) -> Any:
        """The app starts with its first task: that is when its image is built, and an account is needed."""
        if not self._started:
            try:
                self._session.enter_context(self.app.run())
            except self.modal.exception.AuthError as error:
                raise ParameterError(f"executor 'modal' needs an account with Modal: {error}") from error
            self._started = True
        return self.function.spawn(task)

    def _attend(self, task: Task, call: Any, future: Future[Outcome]) -> None:
        try:
            outcome = call.get()
        except Exception as error:  # of Modal's: a time limit, a container that was taken away, no connection
            outcome = Outcome(task.name, "lost", f"{type(error).__name__}: {error}")
        with self._changed:
            if self._running.pop(future, None) is None:
                return
        future.set_result(outcome)


def _image(modal: Any) -> Any:
    """The lock's packages, and this checkout beside them: changed code needs no new image."""
    if not (ROOT / LOCK).exists():
        raise ParameterError(
            f"executor 'modal' needs a checkout of the repository: expected {LOCK}, found none in {ROOT}"
        )
    environment = {"PYTHONPATH": CHECKOUT, "HF_HOME": MODELS, "TOKENIZERS_PARALLELISM": "false"}
    image = modal.Image.debian_slim().pip_install_from_requirements(str(ROOT / LOCK)).env(environment)
    return image.workdir(CHECKOUT).add_local_dir(ROOT, CHECKOUT, ignore=LEFT_OUT)
