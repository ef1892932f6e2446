"""Figure 5: what each method answers to the same two prompts, chosen by rule; as a picture and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from c3po_utils.figures.plain_text import NO_MATHJAX
from c3po_utils.figures.style import TEXT, look, mark, ordered, style
from c3po_utils.figures.text_layout import TYPE, signed, wrap
from c3po_utils.runs import BUNDLED, documents
from c3po_utils.training import BASE_RESAMPLED

HEADINGS = {"in_scope": "In scope", "out_of_scope": "Out of scope"}
SPLIT_PAIR = tuple(HEADINGS)
RESULTS = BUNDLED / "results"
LINE, MAX_LINES = 0.13, 7  # inches a line; longer answers are cut
NAME, GAP = 1.25, 0.35  # inches of the method column, and between columns (for the score)
CSS = """<style>
.answer-card { border-collapse: collapse; font: 14px/1.4 sans-serif; }
table.answer-card th, table.answer-card td { border-top: 1px solid #bbb; padding: 6px 10px; vertical-align: top; }
table.answer-card th, table.answer-card td { text-align: left !important; white-space: pre-wrap; max-width: 28em; }
.answer-card small { color: #777; }
</style>"""


def representative(answers: pd.DataFrame, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of one typical prompt in scope and one out of scope, of one feedback, by rule; or of one split alone.

    A prompt's distance is the sum over methods of (its score - the method's mean score in that split)^2. The feedback
    is the one whose nearest prompts are nearest in sum. Only prompts that every method has a score for count, and none
    that a person rejected (`rejected_prompts`); prompts with an empty or unended answer come after all others. Ties go
    to the shortest answers, then to the first id. Where feedbacks had different methods, as in runs that were brought
    together, one with the most of them is taken.
    """
    answers = answers.dropna(subset="score")
    scored = [method for method in methods or ordered(answers["method"]) if method in set(answers["method"])]
    shown = [method for method in scored if method not in ("base", BASE_RESAMPLED)]
    rows = answers[answers["method"].isin(shown) & answers["split"].isin(SPLIT_PAIR)]
    splits = _splits(rows)
    most = rows.groupby("feedback")["method"].nunique().max()
    rows = rows[~rows["prompt_id"].isin(rejected_prompts())]
    mean = rows.groupby(["split", "method"])["score"].transform("mean")
    whole = rows["answer"].str.strip().astype(bool) & (rows["status"].eq("ok") if "status" in rows else True)
    rows = rows.assign(distance=(rows["score"] - mean) ** 2, length=rows["answer"].str.len(), unfit=~whole)
    prompts = rows.groupby(["feedback", "split", "prompt_id"], as_index=False).agg(
        unfit=("unfit", "any"), distance=("distance", "sum"), length=("length", "sum"), methods=("method", "size")
    )
    prompts["distance"] = prompts["distance"].round(9)
    prompts = prompts[prompts["methods"] == most]
    prompts = prompts.sort_values(["unfit", "distance", "length", "feedback", "prompt_id"])
    nearest = prompts.groupby(["feedback", "split"], as_index=False).first()
    complete = nearest.groupby("feedback").filter(lambda group: len(group) == len(splits))
    if complete.empty:
        raise ValueError(f"no prompt of {', '.join(SPLIT_PAIR)} has a score from each of {', '.join(shown)}")
    feedback = complete.groupby("feedback")[["unfit", "distance"]].sum().sort_values(["unfit", "distance"]).index[0]
    chosen = complete[complete["feedback"] == feedback][["feedback", "split", "prompt_id"]]
    return answers[answers["method"].isin(shown)].merge(chosen, on=["feedback", "split", "prompt_id"])


def _splits(rows: pd.DataFrame) -> list[str]:
    """Those of the card that there are."""
    return [split for split in SPLIT_PAIR if (rows["split"] == split).any()]


def rejected_prompts() -> set[str]:
    """The keys of every run's `rejected_prompts.yaml`: prompts with an answer that a person would not publish."""
    paths = RESULTS.glob("*/rejected_prompts.yaml")
    return {prompt for path in paths for prompt in documents.read(path)}


class Row(NamedTuple):
    """One row of the card, per split: a method's answers and scores (None for prompts and the base model)."""

    name: str
    method: str | None
    texts: list[str]
    scores: list[float | None]


def _rows(answers: pd.DataFrame, methods: Sequence[str] | None) -> tuple[list[str], list[Row]]:
    """The columns' headings; the feedback's prompts, the base model's answers, then each method's."""
    chosen = representative(answers, methods)
    splits = _splits(chosen)
    first = chosen.drop_duplicates("split").set_index("split").loc[splits]
    unscored = [None] * len(splits)
    rows = [
        Row(chosen["feedback"].iloc[0], None, first["prompt"].tolist(), unscored),
        Row("Base", None, first["baseline"].tolist(), unscored),
    ]
    for method in ordered(chosen["method"]):
        own = chosen[chosen["method"] == method].set_index("split").loc[splits]
        rows.append(Row(look(method).name, method, own["answer"].tolist(), own["score"].tolist()))
    return [HEADINGS[split] for split in splits], rows


@style()
def fig5(answers: pd.DataFrame, methods: Sequence[str] | None = None) -> Axes:
    """The answer card as a picture, long answers cut; arguments as in `representative`."""
    headings, rows = _rows(answers, methods)
    width = (TEXT - NAME) / len(headings) - GAP
    weights = ["bold", *["normal"] * (len(rows) - 1)]
    wrapped = [
        [wrap(text, width, MAX_LINES, weight) for text in row.texts] for row, weight in zip(rows, weights, strict=True)
    ]
    names = [wrap(row.name, NAME - 0.55, 3, "bold") for row in rows]
    heights = [max(map(len, [name, *columns])) + 0.8 for name, columns in zip(names, wrapped, strict=True)]
    total = sum(heights) + 1.2
    _, ax = plt.subplots(figsize=(TEXT, total * LINE), layout="none")
    ax.set_position([0, 0, 1, 1])
    ax.set(xlim=(0, TEXT), ylim=(total, 0))  # inches across, lines down
    ax.set_axis_off()
    for column, heading in enumerate(headings):
        ax.text(NAME + column * (width + GAP), 0.9, heading, color="#666666", **TYPE)
    top = 1.2
    for row, name, columns, weight, height in zip(rows, names, wrapped, weights, heights, strict=True):
        _draw_row(ax, top, row, name, columns, weight)
        top += height
    return ax


def _draw_row(ax: Axes, top: float, row: Row, name: list[str], columns: list[list[str]], weight: str) -> None:
    """A rule, the method's mark and name, and per split the score and the answer's lines."""
    ax.axhline(top, color="#BBBBBB", linewidth=0.5)
    if row.method:
        ax.plot(0.09, top + 0.95, ms=5, **mark(row.method))
    _write(ax, 0.2, top, name, "bold")
    for column, (lines, score) in enumerate(zip(columns, row.scores, strict=True)):
        left = NAME + column * (TEXT - NAME) / len(columns)
        _write(ax, left, top, lines, weight)
        if score is not None:
            ax.text(left - 0.05, top + 1.15, signed(score), ha="right", color="#777777", **TYPE)


def _write(ax: Axes, left: float, top: float, lines: list[str], weight: str) -> None:
    for i, line in enumerate(lines):
        ax.text(left, top + 1.15 + i, line, weight=weight, **TYPE)


def fig5_html(answers: pd.DataFrame, methods: Sequence[str] | None = None) -> str:
    """The answer card as one HTML table with whole answers; arguments as in `representative`."""
    headings, (prompts, *rows) = _rows(answers, methods)
    pairs = zip(headings, prompts.texts, strict=True)
    heads = "".join(f"<th>{heading}<br>{html.escape(text)}</th>" for heading, text in pairs)
    body = "".join(f"<tr><th>{html.escape(row.name)}</th>{_html_cells(row)}</tr>" for row in rows)
    table = f"<thead><tr><th>{html.escape(prompts.name)}</th>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'{CSS}<table class="answer-card {NO_MATHJAX}">{table}</table>'


def _html_cells(row: Row) -> str:
    scores = ["" if score is None else f"<small>{signed(score)}</small> " for score in row.scores]
    return "".join(f"<td>{score}{html.escape(text)}</td>" for score, text in zip(scores, row.texts, strict=True))
