"""Keys that a server gives back, in every form and place of a reply: found in nothing that is shown or kept."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat

from tests.benchmarks.faults.line import Line
from tests.chat.test_keys import FORMS, KEY, parts_of_the_key
from tests.servers import Asked, Reply, error, scripted

ENDS = ["", "\r", "\n", "\r\n"]  # of the key in the environment
PLACES = {  # where in a reply; most of them where messages are cut
    "error": lambda said: error(400, f"no: {said}"),
    "cut error": lambda said: error(400, "m" * 480 + said),
    "answer": lambda said: Reply(f"I saw {said}"),
    "broken body": lambda said: Reply(body=b"b" * 60 + said.encode(), kind="text/x"),
    "finish": lambda said: Reply("", finish="f" * 470 + said),
    "refusal": lambda said: Reply(text=None, refusal="r" * 480 + said),
}
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
CASES = list(itertools.product(FORMS, PLACES))
NOTEBOOK = [
    "url, ledger, count = '', '', 0",
    "import os\nfrom c3po_utils.chat import open_chat\nfrom c3po_utils.chat.types import Sampling, request",
    "key, said = os.environ['CANARY'], []",
    """for number, end in enumerate({ends!r}):
    os.environ["C3PO_API_KEY"] = key + end
    chat = open_chat(f"openai:m@{{url}}", ledger, max_attempts=1)
    said += chat.complete([request(f"{{number}}/{{n}}", f"{{number}} {{n}}") for n in range(count)], Sampling())""",
    "for outcome in said:\n    print(outcome)",
    "print(len(said), 'outcomes')\nraise RuntimeError(' '.join(outcome.reason for outcome in said))",
]


def script(asked: Asked) -> Reply:
    end, case = map(int, asked.prompt.split())
    form, place = CASES[case]
    return PLACES[place](FORMS[form](KEY + ENDS[end]))


def trial(seed: int) -> Iterator[Line]:
    """A notebook that prints and raises whatever came back, executed by papermill in a process of its own."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, scripted(script) as server:
        folder = Path(name)
        cells = [
            nbformat.v4.new_code_cell(source.format(ends=ENDS) if "{ends" in source else source) for source in NOTEBOOK
        ]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), folder / "in.ipynb")
        given = {"url": server.url, "ledger": str(folder / "calls.sqlite"), "count": str(len(CASES))}
        arguments = [word for pair in given.items() for word in ("-p", *pair)]
        done = subprocess.run(
            [sys.executable, "-m", "papermill", "--log-output", "in.ipynb", "out.ipynb", *arguments],
            cwd=folder, env=os.environ | {"CANARY": KEY, "OPENAI_LOG": "debug"}, capture_output=True, text=True,
        )  # fmt: skip
        assert (folder / "out.ipynb").exists(), done.stderr[-2000:]
        shown = {
            "output of the process": done.stdout + done.stderr,
            "executed notebook": (folder / "out.ipynb").read_text(),
            "ledger": b"".join(path.read_bytes() for path in folder.glob("calls.sqlite*")).decode("latin-1"),
        }  # fmt: skip
    tried = len(CASES) * len(ENDS)
    assert f"{tried} outcomes" in shown["output of the process"], done.stderr[-2000:]
    for place, text in shown.items():
        leaks = parts_of_the_key(text)
        held = 0 if leaks or "[key]" not in text else tried
        counts = {"pieces_of_the_key": len(leaks)}
        yield Line(f"keys: given back by a server, {place}", tried, held, time.monotonic() - start, counts=counts)
