"""Notebook 08 as a person uses it: JupyterLab in Chromium, driven by Playwright. `make test-browser` runs this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook

from c3po_utils.evaluation.playground import open_playground
from c3po_utils.runs.files import write_json
from tests.stored_run import store_playground

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "08_playground.ipynb"
SETTINGS = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
NOTICES = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
START_MS = 120_000  # of a kernel that imports torch beside other work
WATCH = """() => {
    window.seen = new Set();
    new MutationObserver(() => document.querySelectorAll('.c3po-cards').forEach(one => window.seen.add(one.innerText)))
        .observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
DONE = "() => [...document.querySelectorAll('.c3po-card small')].every(one => one.innerText != '…')"


def prepare(folder: Path, **given: object) -> None:
    """The notebook in a folder of its own, with these parameters."""
    folder.mkdir()
    write_ipynb(parameterize_notebook(load_notebook_node(str(NOTEBOOK)), given), str(folder / NOTEBOOK.name))


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab at a folder, with nobody's settings; yields the notebook's address."""
    own = {name: str(folder / ".jupyter" / name) for name in SETTINGS}
    write_json(Path(own["JUPYTERLAB_SETTINGS_DIR"]) / NOTICES, {"fetchNews": "false"})  # it asks whether it may
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1"]
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen([*command, f"--ServerApp.root_dir={folder}"], env=os.environ | own, stderr=log)
    try:
        yield _address(Path(own["JUPYTER_RUNTIME_DIR"]), process)
    finally:
        process.terminate()
        process.wait(30)


def _address(runtime: Path, process: subprocess.Popen) -> str:
    end = time.monotonic() + START_MS / 1000
    while not (found := list(runtime.glob("jpserver-*.json"))):
        assert process.poll() is None, "JupyterLab did not start"
        assert time.monotonic() < end, "JupyterLab is not there yet"
        time.sleep(0.1)
    server = json.loads(found[0].read_text())
    return f"{server['url']}lab/tree/{NOTEBOOK.name}?token={server['token']}"


@contextmanager
def browser_page() -> Iterator:
    from playwright.sync_api import sync_playwright  # in an environment of its own, see the Makefile

    chromium = shutil.which("chromium")  # Debian's; else what `playwright install chromium` fetched
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.set_default_timeout(START_MS)
        yield page
        browser.close()


def run_all(page, address: str) -> None:
    page.goto(address)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    page.get_by_text("(ipykernel) | Idle").wait_for()  # else it asks which kernel to take
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_role("button", name="Ask").wait_for()


def ask(page, prompt: str) -> list[str]:
    """Type a prompt and click; the cards' texts when all have their verdict."""
    page.get_by_placeholder("Type a prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()
    page.locator(".c3po-card").first.wait_for()
    page.wait_for_function(DONE)
    return page.locator(".c3po-card").all_inner_texts()


def test_a_person_asks_and_reads_answers_that_grow(tmp_path, tiny_folder):
    run = store_playground(tmp_path / "first", str(tiny_folder))
    prepare(tmp_path / "lab", run=str(run), feedback="short", methods=["c3po", "scd"])
    with lab(tmp_path / "lab") as address, browser_page() as page:
        run_all(page, address)
        page.evaluate(WATCH)
        texts = ask(page, "Is tea hot?")
        page.screenshot(path=tmp_path / "playground.png")
        assert page.evaluate("() => window.seen.size") > 5
    found = list(open_playground(run, "short", ["c3po", "scd"]).answers("Is tea hot?"))
    assert [text.splitlines()[0] for text in texts] == ["Base", "C3PO", "SCD"]
    for text, answer in zip(texts, found, strict=True):
        assert text.splitlines()[-1] == answer.verdict
        assert answer.outcome.text.split()[0] in text
    assert (tmp_path / "playground.png").stat().st_size > 20_000
    print(f"screenshot: {tmp_path / 'playground.png'}")
