"""Fixtures that are dear to make: one tiny model for the session."""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of two processes that share two cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from c3po_utils.engine import fast_paths
from c3po_utils.runs.files import write_json
from tests.devices import DEVICE
from tests.object_store import KEY, client, s3_server
from tests.tiny import save_tiny

# A machine that others use stalls for seconds, so an example's time says nothing.
hypothesis.settings.register_profile("c3po", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("c3po")
# Started with `&` from a script, everything ignores interrupts; the tests that send them need processes that do not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported stays: looking it over took a second of each of the many collections that trainers ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device() -> str:
    """Where numerical tests run: the first GPU, else the CPU."""
    return DEVICE


@pytest.fixture(scope="session", autouse=True)
def every_fast_path():
    """Fast paths are tested, also on a machine where `c3po doctor` has switched one off."""
    with fast_paths.only(*fast_paths.FAST_PATHS):
        yield


@pytest.fixture
def as_stored(tmp_path, monkeypatch):
    """Fast paths as they are stored in a cache of the test's own: all on, until something is switched off."""
    monkeypatch.setattr(fast_paths, "_trial", None)
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))
    fast_paths.switched_off.cache_clear()
    yield
    fast_paths.switched_off.cache_clear()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Llama that knows little more than to end its answers, with a tokenizer and a chat template."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", steps=30)


OWN = """
feedbacks:
  - id: wordy
    content: Write at least two words when I ask about tea.
    domain: questions about tea
    effect: the answer has at least two words
    source: human
    kind: style
    metric: {name: words_at_least, value: 2}
    demonstrations: [{prompt: "Is tea hot?", answer: "Yes, it is."}]
"""


def store_own_feedback(folder: Path) -> str:
    """The name of a feedback of the tests' own, written to a folder; even a random model can pass its metric."""
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(OWN)
    categories = [
        {
            "name": name,
            "in_scope": [f"Tea {name} {n}?" for n in "abcd"],
            "near_scope": [f"Coffee {name} {n}?" for n in "abcd"],
        }
        for name in ("colour", "taste", "price")
    ]
    write_json(folder / "prompts" / "wordy.json", {"feedback": "wordy", "categories": categories})
    return f"{folder / 'own.yaml'}#wordy"


@pytest.fixture(scope="session")
def own_feedback(tmp_path_factory) -> str:
    return store_own_feedback(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def s3_port():
    """The port of a real S3 server."""
    pytest.importorskip("moto")
    with s3_server() as port:
        yield port


@pytest.fixture
def connect(s3_port, monkeypatch) -> Callable[..., None]:
    """Lead all clients of S3, and of processes started from here, to a port, with the server's key or another."""
    s3fs = pytest.importorskip("s3fs")

    def connect(port: int, **key: str) -> None:
        for name, value in {**KEY, **key, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    connect(s3_port)
    return connect


@pytest.fixture
def url(s3_port, connect) -> str:
    """A folder in a bucket of its own."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    client("s3", s3_port).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/run"
