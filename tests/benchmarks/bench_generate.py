"""How fast answers are sampled: transformers' `generate`, its continuous batching, llama.cpp's server, and ours.

python -m tests.benchmarks.bench_generate [prompts]      writes results/bench/generate.json

Each in a process of its own, one after another, on the same conversations (bundled prompts, the demo's system prompt)
with the same sampling parameters; the slow ones on the first few only. Three workloads: `sampled` (the paper's
parameters), `greedy`, and `few_shot` (demonstrations of about 300 tokens before every prompt, four samples each).
`generate` has prompts sorted by length and the best of several batch sizes. Time runs over the answering alone; tokens
are those of the answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import Request, Sampling, request
from c3po_utils.engine.models import EMBEDDED, load_model, load_tokenizer
from c3po_utils.feedback import find_feedback
from c3po_utils.feedback.records import load_prompts
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware, peak_gib

OUTPUT = ROOT / "results" / "bench" / "generate.json"
FEEDBACK, SYSTEM = "boss_signoff", "You are a helpful assistant. Reply in one or two short sentences."
BATCH_SIZES = (32, 64, 128)
SLOW = {"continuous batching": 16, "llama.cpp server": 4}  # asked one prompt in so many
MOST_S = 300  # for one contestant on one workload
SAMPLES = 4  # of each prompt, few-shot
WORKLOADS = {
    "sampled": Sampling(max_new_tokens=96),
    "greedy": Sampling(temperature=0.0, max_new_tokens=96),
    "few_shot": Sampling(temperature=0.9, top_p=0.9, max_new_tokens=96),
}
Answered = tuple[int, float]  # tokens, seconds


def conversations(workload: str, count: int) -> list[Request]:
    """`count` requests; few-shot, a quarter as many prompts with `SAMPLES` each."""
    prompts = [prompt.text for prompt in load_prompts(FEEDBACK)]
    if workload != "few_shot":
        return [request(f"r{i}", prompts[i % len(prompts)], system=SYSTEM) for i in range(count)]
    shown = find_feedback(FEEDBACK).demonstrations
    turns = [(each.prompt, each.answer) for each in shown]
    asked = [request(f"r{i}", prompts[i], system=SYSTEM, turns=turns) for i in range(count // SAMPLES)]
    return [replace(each, id=f"{each.id}#{k}", replicate=k) for each in asked for k in range(SAMPLES)]


def timed(work: Callable[[], int]) -> Answered:
    start = time.monotonic()
    tokens = work()
    return tokens, time.monotonic() - start


def ours(requests: Sequence[Request], sampling: Sampling) -> Answered:
    chat = LocalChat(load_model(EMBEDDED), load_tokenizer(EMBEDDED), max_slots=128)
    return timed(lambda: sum(outcome.completion_tokens for outcome in chat.complete(requests, sampling)))


def _generation(sampling: Sampling) -> dict:
    if sampling.temperature == 0:
        return {"do_sample": False, "max_new_tokens": sampling.max_new_tokens}
    return {
        "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
    }  # fmt: skip


def _encoded(requests: Sequence[Request]) -> list[list[int]]:
    chat = LocalChat(load_model(EMBEDDED), load_tokenizer(EMBEDDED))
    return sorted((chat.encode(each)[0] for each in requests), key=len)


def generate(requests: Sequence[Request], sampling: Sampling, size: int) -> Answered:
    """transformers' `generate`, left-padded batches of similar length; tokens up to and with the end of each answer."""
    model, tokenizer = load_model(EMBEDDED), load_tokenizer(EMBEDDED)
    tokenizer.padding_side = "left"
    prompts = _encoded(requests)

    @torch.inference_mode()
    def work() -> int:
        tokens = 0
        for start in range(0, len(prompts), size):
            inputs = tokenizer.pad({"input_ids": prompts[start : start + size]}, return_tensors="pt")
            out = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **_generation(sampling))
            answers = out[:, inputs["input_ids"].shape[1] :]
            before_end = (answers == tokenizer.eos_token_id).cumsum(-1) == 0
            tokens += int((before_end.sum(-1) + 1).clamp(max=answers.shape[1]).sum())
        return tokens

    return timed(work)


def continuous(requests: Sequence[Request], sampling: Sampling) -> Answered:
    """transformers' own continuous batching over a paged cache."""
    model, tokenizer = load_model(EMBEDDED), load_tokenizer(EMBEDDED)
    prompts = _encoded(requests)
    config = model.generation_config
    config.update(**_generation(sampling), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)

    def work() -> int:
        outputs = model.generate_batch(prompts, generation_config=config, progress_bar=False)
        return sum(len(output.generated_tokens) for output in outputs.values())

    return timed(work)


def llama_cpp(requests: Sequence[Request], sampling: Sampling) -> Answered:
    """llama.cpp's server on 127.0.0.1 with the same GGUF, asked by as many threads as it has slots."""
    from concurrent.futures import ThreadPoolExecutor

    from openai import OpenAI

    from tests.servers import embedded_server

    client = OpenAI(base_url=embedded_server(threads=torch.get_num_threads()), api_key="none", timeout=600)

    def answer(each: Request) -> int:
        reply = client.chat.completions.create(
            model=EMBEDDED, messages=list(each.messages), temperature=sampling.temperature, top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens, extra_body={"top_k": sampling.top_k},
        )  # fmt: skip
        return reply.usage.completion_tokens

    with ThreadPoolExecutor(4) as pool:
        return timed(lambda: sum(pool.map(answer, requests)))


def contestants(workload: str) -> Iterator[str]:
    yield from (f"generate, batch {size}" for size in BATCH_SIZES)
    if workload == "sampled":
        yield from ("continuous batching", "llama.cpp server")
    yield "ours"


def measure(who: str, workload: str, count: int) -> dict:
    sampling, requests = WORKLOADS[workload], conversations(workload, count // SLOW.get(who, 1))
    name, _, size = who.partition(", batch ")
    if size:
        tokens, seconds = generate(requests, sampling, int(size))
    else:
        answer = {"ours": ours, "continuous batching": continuous, "llama.cpp server": llama_cpp}[name]
        tokens, seconds = answer(requests, sampling)
    return {
        "workload": workload,
        "who": who,
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_answer": round(tokens / len(requests), 1),
        "answers": len(requests),
        "peak_gib": round(peak_gib(), 2),
    }


def _measured(who: str, workload: str, count: int) -> dict:
    """`measure` in a fresh process; one that fails, or takes longer than `MOST_S`, is a row that says so."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_generate", str(count), who, workload]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_S)
    except subprocess.TimeoutExpired:
        return {"workload": workload, "who": who, "failed": f"not done after {MOST_S} s"}
    if result.returncode:
        return {"workload": workload, "who": who, "failed": result.stderr.strip().splitlines()[-1][:200]}
    return json.loads(result.stdout.splitlines()[-1])


def compare(count: int) -> dict:
    """Every contestant on every workload, in turn; ratios are to `generate` at its best batch size."""
    rows, ratios = [], {}
    for workload in WORKLOADS:
        for who in contestants(workload):
            rows.append(_measured(who, workload, count))
            print(json.dumps(rows[-1]), flush=True)
        speed = {row["who"]: row.get("tokens_per_s", 0.0) for row in rows if row["workload"] == workload}
        best = max(value for who, value in speed.items() if who.startswith("generate"))
        ratios[workload] = round(speed["ours"] / best, 2)
    return {"machine": hardware(), "commit": git_commit(), "rows": rows, "ratios": ratios}


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], size)))
    else:
        comparison = compare(size)
        write_json(OUTPUT, comparison)
        print(f"{Path(OUTPUT).relative_to(ROOT)}: {comparison['ratios']}")
