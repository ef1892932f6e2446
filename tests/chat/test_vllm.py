"""The engine's name in settings, vLLM's command line, and a server as a child process."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from c3po_utils.chat.vllm import Engine, child, command, printed, program, read_engine
from c3po_utils.chat.vllm.child import Child, environment, free_port
from tests.asking import ambient_headers
from tests.fake_vllm import vllm_environment

ADAPTERS = {"boss/c3po": Path("train/boss/c3po"), "boss/scd@lr=2e-4": Path("train/boss/scd@lr=2e-4")}


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("C3PO_VLLM", str(vllm_environment(tmp_path / "vllm")))
    for name in ("C3PO_API_KEY", "C3PO_API_KEY_127_0_0_1"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("engine", "url"),
    [("local", None), ("vllm", ""), ("vllm@http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1")],
)
def test_an_engine_is_here_a_child_or_at_a_url(engine, url):
    assert read_engine(engine) == url


@pytest.mark.parametrize(
    "engine", ["", "vlm", "local@http://h/v1", "vllm@", "vllm@127.0.0.1:8000", "vllm@http://u:p@h/v1"]
)
def test_another_engine_is_refused(engine):
    with pytest.raises(ValueError, match="engine: expected 'local', 'vllm', or 'vllm@http"):
        read_engine(engine)


def option(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


@pytest.mark.parametrize(("rank", "given"), [(1, "1"), (3, "8"), (64, "64"), (65, "128"), (192, "256"), (512, "512")])
def test_the_command_has_a_rank_that_vllm_takes(rank, given):
    line = command("vllm", "m", ADAPTERS, rank, "127.0.0.1", 8000)
    assert option(line, "--max-lora-rank") == given
    assert (option(line, "--served-model-name"), option(line, "--generation-config")) == ("base", "vllm")
    assert line[-1] == '{"name": "boss/scd@lr=2e-4", "path": "train/boss/scd@lr=2e-4"}'
    assert "api-key" not in " ".join(line)


def test_a_rank_above_all_of_vllms_is_refused():
    with pytest.raises(ValueError, match="rank 513: vLLM takes at most 512"):
        command("vllm", "m", ADAPTERS, 513, "127.0.0.1", 8000)


def test_a_model_without_adapters_is_served_without_them():
    assert not [part for part in command("vllm", "m", {}, 0, "127.0.0.1", 8000) if "lora" in part]


@pytest.mark.parametrize("count", [2, 20])
def test_on_a_cpu_a_slot_stays_empty_and_no_prompt_is_read_in_parts(vllm, tiny_folder, tmp_path, monkeypatch, count):
    adapters = {f"a{n}/scd": tmp_path / str(n) for n in range(count)}
    own = Engine(str(tiny_folder), tmp_path, adapters=adapters, rank=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = own.command("127.0.0.1", 8000)
    assert "--no-enable-chunked-prefill" in line
    assert (option(line, "--max-loras"), option(line, "--max-cpu-loras")) == (str(count + 1), str(count + 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = own.command("127.0.0.1", 8000)
    assert "--no-enable-chunked-prefill" not in line
    assert (option(line, "--max-loras"), option(line, "--max-cpu-loras")) == (str(min(count, 8)), str(count))


def test_the_printed_command_is_what_a_shell_reads_as_the_same(tmp_path):
    line = command(sys.executable, "my model", ADAPTERS, 8, "127.0.0.1", 8000)
    script = "import json, os, sys; print(json.dumps([os.environ['VLLM_API_KEY'], *sys.argv[1:]]))"
    line[1:1] = ["-c", script]
    shell = {**os.environ, "C3PO_API_KEY": "a key"}
    done = subprocess.run(["sh", "-c", printed(line)], capture_output=True, text=True, check=True, env=shell)
    assert done.stdout.strip() == json.dumps(["a key", *line[3:]])
    assert "a key" not in printed(line)


def test_without_vllm_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("C3PO_VLLM", str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"not installed: expected {tmp_path}/bin/vllm. `make vllm` installs it"):
        program()


def test_the_child_gets_our_key_as_its_own_and_no_other(monkeypatch):
    for name, value in (
        ("OPENAI_API_KEY", "sk-1"),
        ("C3PO_API_KEY_H", "k2"),
        ("VLLM_API_KEY", "old"),
        ("PYTHONPATH", "/x"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("C3PO_API_KEY", "k1")
    own = environment("http://127.0.0.1:8000/v1", "/scratch")
    assert own["VLLM_API_KEY"] == "k1"
    assert not own.keys() & {"OPENAI_API_KEY", "C3PO_API_KEY", "C3PO_API_KEY_H", "PYTHONPATH"}
    monkeypatch.delenv("C3PO_API_KEY")
    assert "VLLM_API_KEY" not in environment("http://127.0.0.1:8000/v1", "/scratch")


def test_the_child_keeps_few_compiled_products_unless_told_otherwise(monkeypatch):
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert [environment("http://127.0.0.1:8000/v1", "/scratch")[name] for name in names] == ["16", "16"]
    monkeypatch.setenv(names[0], "1024")
    assert environment("http://127.0.0.1:8000/v1", "/scratch")[names[0]] == "1024"


def test_the_child_has_a_malloc_without_holes_where_there_is_one_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(child, "find_library", {"tcmalloc_minimal": "libtcmalloc_minimal.so.4"}.get)
    assert environment("http://127.0.0.1:8000/v1", "/scratch")["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"
    monkeypatch.setenv("LD_PRELOAD", "")
    assert environment("http://127.0.0.1:8000/v1", "/scratch")["LD_PRELOAD"] == ""
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(child, "find_library", {}.get)
    assert "LD_PRELOAD" not in environment("http://127.0.0.1:8000/v1", "/scratch")


def test_a_child_that_dies_at_its_start_is_told_with_the_end_of_its_log(vllm, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "die")
    with (
        Engine(str(tiny_folder), tmp_path / "run") as server,
        pytest.raises(
            RuntimeError, match=r"ended at its start, with status 1. The end of .*vllm.log:(\n.*)*No available memory"
        ),
    ):
        server.open()
    assert server.child is None


def test_a_child_that_is_never_ready_is_ended(vllm, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "hang")
    child = Child([str(program()), "serve", "m"], "127.0.0.1", free_port(), tmp_path / "log")
    with pytest.raises(RuntimeError, match="was not ready after 1 s"):
        child.wait(1)
    assert child.process.poll() is not None


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_all_processes_of_a_child_end_within_five_seconds_and_leave_nothing(vllm, tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    port = free_port()
    child = Child(
        [str(program()), "serve", str(tiny_folder), "--host", "127.0.0.1", "--port", str(port)],
        "127.0.0.1",
        port,
        tmp_path / "log",
    )
    while not (found := re.search(r"child (\d+)", (tmp_path / "log").read_text())):
        time.sleep(0.05)
    scratch, start = Path(child._scratch.name), time.monotonic()
    assert scratch.exists()
    child.stop()
    assert time.monotonic() - start < 5
    assert gone(child.process.pid)
    assert gone(int(found[1]))
    assert not scratch.exists()


def test_a_killed_parent_takes_the_child_along(vllm, tmp_path):
    code = (
        "import sys; from pathlib import Path; from c3po_utils.chat.vllm.child import Child, free_port;"
        f"child = Child(['sleep', '600'], '127.0.0.1', free_port(), Path({str(tmp_path / 'log')!r}));"
        "print(child.process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    pid = int(parent.stdout.readline())
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):  # what binds it to us has not run yet
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(pid)


def test_a_port_that_is_taken_is_refused_before_anything_starts(vllm, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"cannot listen at 127.0.0.1:{port} .*: choose another by --port"):
            Child(["true"], "127.0.0.1", port, tmp_path / "log")


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=IPV6)])
def test_all_the_world_needs_a_key(vllm, tmp_path, host):
    with pytest.raises(RuntimeError, match=rf"at {host} others can ask it: set C3PO_API_KEY"):
        Child(["true"], host, free_port(), tmp_path / "log")


@IPV6
@pytest.mark.parametrize(("host", "asked"), [("::", "127.0.0.1"), ("::1", "[::1]")])
def test_a_child_that_listens_at_an_address_of_ipv6_is_asked_there(vllm, tmp_path, monkeypatch, host, asked):
    monkeypatch.setenv("C3PO_API_KEY", "key")
    answer = "self.send_response(200); self.send_header('content-length', '0'); self.end_headers()"
    code = (
        "import socket, sys; from http.server import *\n"
        f"class Answer(BaseHTTPRequestHandler):\n def do_GET(self): {answer}\n"
        "class Server(HTTPServer): address_family = socket.AF_INET6\n"
        "Server((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()"
    )
    port = free_port()
    child = Child([sys.executable, "-c", code, host, str(port)], host, port, tmp_path / "log")
    try:
        assert child.endpoint == f"http://{asked}:{port}/v1"
        child.wait(30)
        with pytest.raises(RuntimeError, match=rf"cannot listen at \[{host}\]:{port} "):
            Child(["true"], host, port, tmp_path / "log")
    finally:
        child.stop()


@IPV6
def test_a_port_that_is_taken_in_ipv4_is_not_free_for_every_address(vllm, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"cannot listen at \[::\]:{port} .Address already in use"):
            Child(["true"], "::", port, tmp_path / "log")


def test_a_server_that_is_joined_gets_no_header_of_openais_and_is_not_followed_elsewhere(tmp_path, monkeypatch):
    ambient_headers(monkeypatch)
    monkeypatch.setenv("C3PO_API_KEY", "its-own")
    seen = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers)
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RuntimeError, match="302"):
            Engine("m", tmp_path, f"http://127.0.0.1:{server.server_port}/v1").open()
        server.shutdown()
    (headers,) = seen
    assert headers["authorization"] == "Bearer its-own"
    assert not {name.lower() for name in headers} & {"openai-organization", "x-gateway-key"}


def test_a_quantized_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'m@4bit': vLLM is given whole weights"):
        Engine("m@4bit", tmp_path)
