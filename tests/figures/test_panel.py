"""The playground's panel, clicked without a browser; its cards; its notebook without clicks."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from c3po_utils.chat import Outcome
from c3po_utils.evaluation.playground import Answer, open_playground
from c3po_utils.figures import cards
from c3po_utils.figures.panel import Panel
from c3po_utils.runs.check import check_notebook
from c3po_utils.runs.parameters import ParameterError, resolve
from tests.stored_run import store_playground, store_sample

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "08_playground.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return store_playground(tmp_path_factory.mktemp("runs") / "first", str(tiny_folder))


@pytest.fixture(scope="module")
def other_run(run, tiny_folder):
    """Nothing is trained in it."""
    store_sample(run.parent / "second", "plain", str(tiny_folder))
    return run.parent / "second"


@pytest.fixture
def panel(run) -> Panel:
    return Panel(open_playground(run, "short", ["c3po"]))


def titles(page: str) -> list[str]:
    return re.findall(r'<div class="c3po-card"[^>]*><b>(.*?)</b>', page)


def test_a_panel_begins_with_what_the_notebook_asks_for(run):
    panel = Panel(open_playground(run, "short", ["c3po"]), {"c3po": 0.5, "shouted/c3po": 1})
    assert (panel.run.value, panel.feedback.value, panel.methods.value) == (str(run), "short", ("c3po",))
    assert panel.methods.options == ("in_context", "c3po", "scd", "shouted/c3po")
    assert panel.mix.value == "c3po=0.5, shouted/c3po=1"
    assert panel.test_prompt.label == "(or type one below)"
    assert "Be short about tea." in panel.heading.value


def test_a_click_answers_in_a_card_for_each_method_while_they_grow(panel):
    seen = []
    panel.answers.observe(lambda change: seen.append(change["new"]), "value")
    panel.prompt.value = "Is tea hot?"
    panel.mix.value = "c3po=0.5, shouted/c3po=0.5"
    panel.button.click()
    assert titles(panel.answers.value) == ["Base", "C3PO", "0.5*c3po + 0.5*shouted/c3po"]
    assert len(seen) > 10
    assert "…" in seen[0]
    assert "…" not in seen[-1]
    play = open_playground(panel.run.value, "short", ["c3po"])
    for answer in play.answers("Is tea hot?"):
        assert answer.verdict in panel.answers.value
    assert (panel.status.value, panel.button.disabled) == ("", False)


def test_choices_fill_one_another(panel, other_run):
    panel.test_prompt.value = panel.test_prompt.options[1][1]
    assert panel.prompt.value == "What about short/in_scope/price/0?"
    panel.feedback.value = "shouted"
    assert panel.methods.options == ("in_context", "c3po", "short/c3po", "short/scd")
    assert panel.methods.value == ("in_context", "c3po")
    asked = "What about shouted/in_scope/price/0?"
    assert panel.test_prompt.options[1] == (f"in scope: {asked}", asked)
    panel.run.options = [*panel.run.options, ("second", str(other_run))]
    panel.run.value = str(other_run)
    assert panel.feedback.options == ("plain",)
    assert panel.heading.value.count("plain") == 1
    assert panel.methods.options == ("in_context",)


@pytest.mark.parametrize(
    ("prompt", "mix", "message"),
    [
        (" ", "", "type a prompt, or choose a test prompt"),
        ("Hello?", "c3p0=1", "unknown adapter &#x27;c3p0&#x27; (did you mean &#x27;c3po&#x27;?)"),
        ("Hello?", "c3po", "expected ADAPTER=WEIGHT"),
    ],
)
def test_what_cannot_be_asked_is_told_in_the_panel(panel, prompt, mix, message):
    panel.prompt.value, panel.mix.value = prompt, mix
    panel.button.click()
    assert message in panel.status.value
    assert not panel.button.disabled


def test_texts_in_cards_are_escaped():
    bad = "<script>alert(1)</script>"
    answer = Answer(bad, Outcome("x", "failed", reason=bad), None, None)
    made = cards.cards({bad: "", "c3po": bad}, {bad: answer})
    assert "<script>" not in made
    assert made.count("&lt;script&gt;") == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"feedback": "shot"}, "08_playground.ipynb: unknown feedback 'shot'"),
        ({"feedback": "short", "methods": ["c3p0"]}, "did you mean 'c3po'"),
        ({"feedback": "short", "prompts": ["Is it?", 3]}, "prompts: expected texts, found 3"),
    ],
)
def test_wrong_parameters_are_told_before_a_kernel_starts(run, given, message):
    with pytest.raises(ParameterError, match=message):
        check_notebook(NOTEBOOK.name, resolve(NOTEBOOK, {"run": str(run), **given}))


def test_the_notebook_writes_a_page_without_clicks(run, tmp_path):
    prompts = ["Is tea hot?", "Is <i>coffee</i>?"]
    given = {"run": str(run), "feedback": "short", "methods": ["c3po"], "mix": {"c3po": 0.5}, "prompts": prompts}
    papermill.execute_notebook(NOTEBOOK, tmp_path / "done.ipynb", given, cwd=NOTEBOOK.parent, progress_bar=False)
    page = (run / "playground" / "short.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert titles(page) == ["Base", "C3PO", "0.5*c3po"] * 2
    assert ">Is &lt;i&gt;coffee&lt;/i&gt;?</h3>" in page
    outputs = [out for cell in nbformat.read(tmp_path / "done.ipynb", 4).cells for out in cell.get("outputs", [])]
    assert "application/vnd.jupyter.widget-view+json" in {kind for out in outputs for kind in out.get("data", ())}
    assert any(str(run / "playground" / "short.html") in out.get("text", "") for out in outputs)
