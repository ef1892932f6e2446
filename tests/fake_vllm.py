"""A stand-in for the `vllm` program: it takes the same command line, and serves a tiny model with peft.

`vllm_environment(folder)` makes an environment that has it, for $C3PO_VLLM. What it does wrong is said in the variable
FAKE_VLLM: `base` (every adapter's name is pi_0), `swap` (each name is another adapter), `die`, `hang`, `stubborn` (it
has a child, and neither minds a SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAULT = os.environ.get("FAKE_VLLM", "")


def vllm_environment(folder: Path) -> Path:
    program = folder / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.fake_vllm import main; main()"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    return folder


class Model:
    """A model with adapters, by their names; `base` has none."""

    def __init__(self, folder: str, adapters: dict[str, str]):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.lock, self.tokenizer = threading.Lock(), AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.names = dict(zip(adapters, range(len(adapters)), strict=True))
        for name, path in adapters.items():
            add = (
                self.model.load_adapter
                if self.names[name]
                else lambda *args, **kw: PeftModel.from_pretrained(self.model, *args, **kw)
            )
            made = add(path, adapter_name=f"a{self.names[name]}")
            self.model = self.model if self.names[name] else made
        if FAULT == "swap":
            self.names = dict(zip(adapters, reversed(self.names.values()), strict=True))

    def complete(self, body: dict) -> dict:
        with self.lock:
            if body["model"] == "base" or FAULT == "base":
                if not self.names:
                    return self._complete(body)
                with self.model.disable_adapter():
                    return self._complete(body)
            self.model.set_adapter(f"a{self.names[body['model']]}")
            return self._complete(body)

    def _complete(self, body: dict) -> dict:
        import torch

        answer, logprobs, ends = [], None, {2, *body.get("stop_token_ids", ())}
        while len(answer) < body["max_tokens"] and not (answer and answer[-1] in ends):
            with torch.no_grad():
                logits = self.model(torch.tensor([body["prompt"] + answer])).logits[0, -1]
            if body.get("logprobs") and not answer:
                top = logits.log_softmax(-1).topk(body["logprobs"])
                pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                logprobs = {"top_logprobs": [{f"token_id:{id}": logp for id, logp in pairs}]}
            answer.append(int(logits.argmax()))
        finish = "stop" if answer[-1] in ends else "length"
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(answer)}
        usage["total_tokens"] = sum(usage.values())
        shell = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        return {**shell, "choices": [choice], "usage": usage}


def handler(model: Model, root: str, key: str | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                return self.answer(200, {})
            roots = {"base": root, **dict.fromkeys(model.names, "an adapter's folder")}
            data = [
                {"id": id, "object": "model", "created": 1, "owned_by": "vllm", "root": of} for id, of in roots.items()
            ]
            return self.answer(200, {"object": "list", "data": data})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = body["model"] in ("base", *model.names)
            return self.answer(200, model.complete(body)) if known else self.answer(404, {"error": {"message": "no"}})

        def answer(self, status: int, value: dict) -> None:
            if key and self.path != "/health" and self.headers.get("authorization") != f"Bearer {key}":
                status, value = 401, {"error": {"message": "Unauthorized"}}
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--lora-modules", nargs="*", default=[], type=json.loads)
    given, others = parser.parse_known_args()
    print("fake vllm", given.model, others, flush=True)
    if FAULT == "die":
        sys.exit("ValueError: No available memory for the cache blocks")
    if FAULT == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        print("child", subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
    if FAULT == "hang":
        time.sleep(600)
    model = Model(given.model, {adapter["name"]: adapter["path"] for adapter in given.lora_modules})
    served = handler(model, given.model, os.environ.get("VLLM_API_KEY"))
    ThreadingHTTPServer((given.host, given.port), served).serve_forever()
