"""Modal's own package builds the app without an account; a stand-in takes the place of the started function."""

import contextlib
import threading
import time

import pytest

from c3po_utils.batch import Outcome, Task
from c3po_utils.runs.parameters import ParameterError

pytestmark = pytest.mark.modal
TASK = Task({}, "one", store="s3://bucket/run")


class StandIn:
    """Of Modal's function and its calls: answers, raises, or waits for ever."""

    def __init__(self, answer):
        self.answer = answer

    def spawn(self, task):
        return self

    def get(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            threading.Event().wait()
        return self.answer


@pytest.fixture
def modal(monkeypatch, tmp_path):
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    from c3po_utils.batch.modal_executor import ModalExecutor

    return ModalExecutor(gpu="A100-80GB", secrets=["keys"])


def started(executor, answer, monkeypatch):
    monkeypatch.setattr(executor.app, "run", contextlib.nullcontext)
    executor.function = StandIn(answer)
    return executor


def test_the_function_is_built_but_to_start_it_needs_an_account(modal):
    assert type(modal.function).__name__ == "Function"
    assert modal.slots == 10
    with pytest.raises(ParameterError, match="needs an account with Modal"):
        modal.submit(TASK)


def test_a_run_without_a_store_is_refused(modal):
    assert "needs `store`" in modal.submit(Task({}, "one")).result(0).error


def test_outcomes_come_back_and_what_modal_ends_is_lost(modal, monkeypatch):
    done = Outcome("one", "done", host="container")
    assert started(modal, done, monkeypatch).submit(TASK).result(5) == done
    lost = started(modal, modal.modal.exception.FunctionTimeoutError("limit"), monkeypatch).submit(TASK).result(5)
    assert (lost.status, lost.error) == ("lost", "FunctionTimeoutError: limit")


def test_stop_gives_up_what_runs(modal, monkeypatch):
    future = started(modal, None, monkeypatch).submit(TASK)
    start = time.monotonic()
    modal.stop()
    modal.stop()
    assert time.monotonic() - start < 5
    assert future.result(0).status == "lost"
    assert modal.submit(TASK).result(0).status == "lost"
