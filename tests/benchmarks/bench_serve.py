"""vLLM's server and our own sampling, with the same weights and conversations: how alike, and how fast.

python -m tests.benchmarks.bench_serve [conversations] [rounds]      writes results/bench/serve.json

Needs vLLM (`make vllm`). Both answer in bfloat16, after a warm-up, one after the other in turns: sampled (the paper's
parameters) and greedy, on a quiet machine and beside two processes that never rest. Time runs over the answering alone;
tokens are those of the answers. Agreement is of greedy answers, and says at how near a tie the others part.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from c3po_utils.chat import Sampling, ask
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import ChatModel, Request, request
from c3po_utils.chat.vllm import BASE, Engine
from c3po_utils.engine.models import EMBEDDED, load_model, load_tokenizer
from c3po_utils.feedback.records import load_general_prompts, load_prompts
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware
from tests.serve.agreement import agreement

OUTPUT = ROOT / "results" / "bench" / "serve.json"
SYSTEM = "You are a helpful assistant. Reply in one or two short sentences."
CONVERSATIONS, TOKENS, ROUNDS, AGREEING = 128, 128, 3, 200
WORKLOADS = {"sampled": Sampling(max_new_tokens=TOKENS), "greedy": Sampling(temperature=0.0, max_new_tokens=TOKENS)}
BUSY = {"quiet": 0, "beside two busy processes": 2}


def conversations(count: int, name: str) -> list[Request]:
    """Bundled prompts, of a feedback and then general ones; the ids are `name`'s own, so that no ledger knows them."""
    prompts = [prompt.text for prompt in (*load_prompts("boss_signoff"), *load_general_prompts())]
    return [request(f"{name}/{n}", prompts[n % len(prompts)], system=SYSTEM) for n in range(count)]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never rest; they end with the block.

    Each is a session of its own: Linux shares cores between sessions first (autogroup, man 7 sched), and one that is
    shared with ours alone would halve ours and leave vLLM, which is another session, as it is.
    """
    never = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(never, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def tokens_per_s(model: ChatModel, requests: list[Request], sampling: Sampling) -> float:
    start = time.monotonic()
    outcomes = ask(model, requests, sampling)
    assert all(outcome.usable for outcome in outcomes.values())
    return sum(outcome.completion_tokens for outcome in outcomes.values()) / (time.monotonic() - start)


def measure(models: dict[str, ChatModel], workload: str, load: str, count: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of each, the medians of some rounds, in which they take turns."""
    found: dict[str, list[float]] = {who: [] for who in models}
    with busy(BUSY[load]):
        for number, (who, model) in product(range(rounds), models.items()):
            asked = conversations(count, f"{load}/{workload}/{number}")
            found[who].append(round(tokens_per_s(model, asked, WORKLOADS[workload]), 1))
    middle = {who: statistics.median(speeds) for who, speeds in found.items()}
    ratio = round(middle["ours"] / middle["vllm"], 2)
    return {"workload": workload, "load": load, "tokens_per_s": middle, "rounds": found, "ratio": ratio}


def compare(count: int = CONVERSATIONS, rounds: int = ROUNDS, url: str = "") -> dict[str, Any]:
    """Everything, with a server of its own, or one with the embedded model that runs at `url`."""
    with tempfile.TemporaryDirectory() as scratch, Engine(EMBEDDED, Path(scratch), url) as server:
        start = time.monotonic()
        server.open()
        started_s = round(time.monotonic() - start, 1)
        local = LocalChat(load_model(EMBEDDED), load_tokenizer(EMBEDDED), name="ours")
        models = {"vllm": server.chat("vllm", BASE, Path(scratch) / "calls.sqlite"), "ours": local}
        for model in models.values():
            tokens_per_s(model, conversations(16, "warm-up"), WORKLOADS["sampled"])
        alike = agreement(local, models["vllm"], conversations(AGREEING, "alike"), WORKLOADS["greedy"])
        print({key: value for key, value in alike.items() if key != "parted"}, flush=True)
        rows = []
        for load, workload in product(BUSY, WORKLOADS):
            rows.append(measure(models, workload, load, count, rounds))
            print(rows[-1], flush=True)
    return {
        "machine": hardware(), "commit": git_commit(), "conversations": count, "start_s": started_s,
        "agreement": alike, "rows": rows,
    }  # fmt: skip


if __name__ == "__main__":
    compared = compare(*map(int, sys.argv[1:3]))
    write_json(OUTPUT, compared)
    print(f"{OUTPUT.relative_to(ROOT)}: ours / vllm = {[row['ratio'] for row in compared['rows']]}")
