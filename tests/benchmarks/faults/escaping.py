"""Texts made to be read as HTML, in every display that is HTML or Markdown: shown as the text that they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser

from c3po_utils.evaluation import scores
from c3po_utils.figures import tables
from tests.benchmarks.faults.line import Line
from tests.figures.test_plain_text import TEXT, all_of, cards, pages

PLAIN = "some words"
HOSTILE = [
    TEXT, "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table><script>alert(1)</script>",
    "<svg/onload=alert(1)>", "\"'><iframe src=javascript:alert(1)>", "<style>*{display:none}</style>",
    "<a href=javascript:alert(1)>here</a>", "<!-- the rest is gone", "</style><b>bold", "<ScRiPt\t>alert(1)</sCrIpT\n>",
    "&lt;script&gt;alert(1)&lt;/script&gt;", "<math><mtext></p><mglyph><style><img src onerror=alert(1)>",
]  # fmt: skip


class Raw(HTMLParser):
    """What a browser would take for more than text: tags, comments, and attributes that run code."""

    def __init__(self, page: str):
        super().__init__()
        self.found: Counter[str] = Counter()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found += Counter(f"{tag} {name}" for name, _ in attrs if name.startswith("on") or name == "href")

    def handle_comment(self, data: str) -> None:
        self.found["comment"] += 1


def displays(text: str) -> Iterator[tuple[str, Counter[str]]]:
    rows = all_of(text)
    for number, table in enumerate(pages(rows, text)):
        yield f"table {number}", Raw(table._repr_html_()).found
    for number, card in enumerate(cards(rows, text)):
        yield f"card {number}", Raw(card).found
    yield "Markdown", Raw(tables.table2_markdown(scores.method_scores(rows))).found


def trial(seed: int) -> Iterator[Line]:
    """Each display beside the same one of a harmless text: what it has more of are raw tags."""
    line, own = (
        Line("escaping: hostile texts in every table, card and Markdown", unit="raw tags"),
        dict(displays(PLAIN)),
    )
    for text in HOSTILE:
        for display, found in displays(text):
            raw = found - own[display]
            line.add(f"{text} in {display}: {dict(raw)}", not raw, raw.total(), raw_tags=raw.total())
    yield line
