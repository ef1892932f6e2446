"""Answers of a playground as cards side by side, in HTML: while they grow, and as a page of their own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from c3po_utils.evaluation import playground
from c3po_utils.figures.plain_text import NO_MATHJAX
from c3po_utils.figures.style import look
from c3po_utils.runs import files

CSS = """<style>
.c3po-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 12px;
  margin: 8px 0 20px; font: 14px/1.45 sans-serif; }
.c3po-card { border: 1px solid #bbb; border-top: 5px solid; border-radius: 4px; padding: 8px 12px; background: white;
  color: #222; }
.c3po-card b { display: block; margin-bottom: 6px; overflow-wrap: anywhere; }
.c3po-card p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 3em; }
.c3po-card small { display: block; margin-top: 8px; color: #555; }
.c3po-card small.passes { color: #00664a; font-weight: bold; }
</style>"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body style="font: 15px/1.5 sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em">
<h1>{title}</h1>
{heading}
{body}
</body></html>
"""
Asked = Iterable[tuple[str, Sequence[playground.Answer]]]  # prompts, and every method's answer
MIXED = "#555555"  # the colour of mixtures and of other feedbacks' adapters, which no figure knows


def _card(method: str, text: str, verdict: str, passes: bool | None) -> str:
    known = not set(method) & set("/*")
    name, color = (look(method).name, look(method).color) if known else (method, MIXED)
    note = (
        f'<small class="passes">{html.escape(verdict)}</small>' if passes else f"<small>{html.escape(verdict)}</small>"
    )
    style = f"border-top-color: {color}"
    return f'<div class="c3po-card" style="{style}"><b>{html.escape(name)}</b><p>{html.escape(text)}</p>{note}</div>'


def heading(play: playground.Playground) -> str:
    """What is asked of which model, for a notebook."""
    return f'<div style="white-space: pre-wrap; line-height: 1.4; margin: 4px 0">{html.escape(play.heading)}</div>'


def problem(error: Exception) -> str:
    """An error as a notebook shows it."""
    return f'<span style="color: #b00020">{html.escape(str(error))}</span>'


def cards(texts: Mapping[str, str], answers: Mapping[str, playground.Answer]) -> str:
    """A card for each method in `texts` (its answer so far); those in `answers` are done, and have their verdict."""
    made = []
    for method, text in texts.items():
        if done := answers.get(method):
            made.append(_card(method, done.outcome.text, done.verdict, done.passes))
        else:
            made.append(_card(method, text, "…", None))
    return f'<div class="c3po-cards {NO_MATHJAX}">{"".join(made)}</div>'


def sections(play: playground.Playground, asked: Asked) -> str:
    """The answers to several prompts, each below its prompt; every text is escaped."""
    parts = [CSS]
    for prompt, found in asked:
        split = play.row(prompt).get("split", "")
        done = {answer.method: answer for answer in found}
        note = f" <small>({html.escape(split)})</small>" if split else ""
        parts += [f'<h3 class="{NO_MATHJAX}">{html.escape(prompt)}{note}</h3>', cards(dict.fromkeys(done, ""), done)]
    return "\n".join(parts)


def write_page(play: playground.Playground, asked: Asked) -> Path:
    """Write `sections` as a page of their own: `playground/<feedback>.html` in the run's folder."""
    title = html.escape(f"{play.run.name}: {play.record.id}")
    made = PAGE.format(title=title, heading=heading(play), body=sections(play, asked))
    return files.write_atomic(play.run / "playground" / f"{play.record.id}.html", made)
