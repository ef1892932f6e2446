"""Text from outside is text wherever it is shown: in tables, cards, figures, Markdown and CSV."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from c3po_utils.evaluation import scores, side_effects
from c3po_utils.figures import (
    answer_card,
    outcomes,
    paper_figures,
    plain_text,
    reward_map,
    sweeps,
    tables,
    text_layout,
    tradeoff,
)
from c3po_utils.figures.curves import training_curves
from c3po_utils.runs.files import read_json
from c3po_utils.runs.stage import ROOT
from tests.speed import within
from tests.synthetic import answers

TEXT = "<script>alert('x')</script> <img src=x onerror=y> $\\frac{$ a|b `c` *d* [e](f) _g_ \\ ^ & =1\n# h"


def methods(text: str) -> tuple[str, ...]:
    return "in_context", "c3po@" + text, "c3po@$x_{$,^_", "<b>_$own$"


METHODS = methods(TEXT)
TAGS = {"style", "table", "caption", "thead", "tbody", "tr", "th", "td", "small", "br", "span", "p", "sub"}


class Tags(HTMLParser):
    """The tags that a browser would see."""

    def __init__(self, page: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.add(tag)


def all_of(text: str) -> pd.DataFrame:
    """Answers whose every text, feedbacks and methods too, has it in it."""
    rows = answers(2, methods(text), prompts=6, categories=3)
    renamed = rows["feedback"].unique().tolist()
    names = {renamed[0]: "f" + text, renamed[1]: "g" + text}
    texts = {name: text + " " + rows[name] for name in ("prompt", "answer", "baseline", "category", "prompt_id")}
    return rows.assign(**texts, feedback=rows["feedback"].map(names), status="ok")


@pytest.fixture(scope="module")
def hostile() -> pd.DataFrame:
    return all_of(TEXT)


def pages(rows: pd.DataFrame, text: str = TEXT):
    by_method, differences = scores.method_scores(rows), scores.paired_differences(rows, methods(text)[1])
    yield tables.table2(by_method, tables.paper_table2())
    yield tables.table2(scores.feedback_scores(rows[rows.feedback == rows.feedback[0]])).set_caption(text)
    yield tables.differences_table(differences)
    yield tables.means_table(scores.split_means(rows, "score"))
    yield tables.bounds_table(scores.missing_bounds(rows))
    yield tables.side_effects_table(side_effects.side_effects(rows))
    yield tables.reading_table(rows.head(3), text)
    yield tables.reading_table(pd.DataFrame({text: [{"a": text}, [text], None, 0.5]}), text)
    yield sweeps.sweep_table(by_method.assign(**{text: [text, "b", "c", "d"]}), text)
    yield plain_text.styled(rows.groupby("category").first().rename_axis(text)).format(precision=2, na_rep="–")
    yield plain_text.styled(rows.pivot_table(index="category", columns="method", values="score")).format("{:.0%}")


def test_tables_hold_no_tags_but_their_own(hostile):
    for table in pages(hostile):
        page = table._repr_html_()
        assert Tags(page).found <= TAGS
        assert "&lt;script&gt;" in page
        assert plain_text.NO_MATHJAX in page


def cards(rows: pd.DataFrame, text: str = TEXT):
    stored = read_json(ROOT / "results" / "theory" / "token_rewards.json")
    stored["method"] = methods(text)[1]
    for answer in stored["maps"]:
        answer["prompt"], answer["tokens"] = text, [text] * len(answer["tokens"])
    yield from (answer_card.fig5_html(rows), reward_map.reward_map_html(stored))


def test_cards_hold_no_tags_but_their_own(hostile):
    for page in cards(hostile):
        assert Tags(page).found <= TAGS
        assert "&lt;script&gt;" in page
        assert plain_text.NO_MATHJAX in page


def figures(rows: pd.DataFrame):
    by_method, by_feedback = scores.method_scores(rows), scores.feedback_scores(rows)
    stored = read_json(ROOT / "results" / "theory" / "token_rewards.json") | {"method": METHODS[1]}
    values = pd.DataFrame({"learning_rate": [1.0, 2.0], "dpo": [1.0, 2.0]})
    shares = scores.application_share(rows)
    yield answer_card.fig5(rows)
    yield outcomes.score_intervals(scores.feedback_scores(rows[rows.feedback == rows.feedback[0]]))[0]
    yield outcomes.hit_grid(rows[rows.feedback == rows.feedback[0]])[0]
    yield paper_figures.fig2(by_feedback, METHODS)[0]
    yield paper_figures.fig6(shares)
    yield paper_figures.fig7(shares.assign(setting=TEXT))[0]
    yield tradeoff.tradeoff(sweeps.by_family(by_method), "variant")
    yield sweeps.sweep(by_method.assign(**{TEXT: [TEXT, "$b$", "_c", "d"]}), TEXT, paper=TEXT)[0]
    yield training_curves(values, METHODS[1])[0]
    yield reward_map.reward_map(stored)


OURS = {"S_", "pi", "y^", "log"}  # what the kit's own mathematics is about


def test_figures_are_drawn_with_the_text_as_it_is(hostile):
    shown = plain_text.label("C3PO, " + TEXT.replace(",", ", "))
    for ax in figures(hostile):
        figure = ax.figure
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(plt.Text) if text.get_text()]
        if not any("script" in text.get_text() for text in texts):
            pytest.fail(f"{figure}: the text is not there")
        for text in texts:
            if "$" in text.get_text() and text.get_parse_math() and text._preprocess_math(text.get_text())[1]:
                assert any(part in text.get_text() for part in OURS), text.get_text()
        plt.close(figure)
    assert shown.replace(r"\$", "$") == "C3PO, " + " ".join(TEXT.split())


def test_method_names_stay_in_their_cell_of_a_markdown_table(hostile):
    page = tables.table2_markdown(scores.method_scores(hostile))
    header, rule, *rows = page.split("\n\n")[0].splitlines()
    assert len(rows) == len(METHODS)
    assert {row.replace("\\|", "").count("|") for row in (header, rule, *rows)} == {7}
    assert Tags(page).found == set()
    (row,) = (row for row in rows if "script" in row)
    for written in (r"a\|b", r"\`c\`", r"\*d\*", r"\[e\](f)", r"\_g\_", r"\$\\frac{\$", "&amp;", "=1 # h"):
        assert written in row


def test_markdown_leaves_ordinary_names_alone():
    for name in ("C3PO, near=1, epochs=3", "SCD + Neg.", "lr=1e-4", "near_weight=0.5", "DPO-KL (a)"):
        assert plain_text.markdown(name) == name


def test_bare_scores_keep_their_two_decimals():
    table = pd.DataFrame({"method": ["c3po", "scd"], "S_in": [0.5, 0.25], "n_feedbacks": 1})
    assert "| 0.25" in (page := tables.table2_markdown(table, scores=("S_in",), uncertainty="se"))
    assert "**0.50**" in page


def test_a_csv_holds_nothing_that_a_spreadsheet_computes():
    table = pd.DataFrame({"method": ["=cmd|' /C calc'!A0", "@x", "+1", "-2", "\tx", "c3po"], "S_in": [-0.5] * 6})
    text = plain_text.csv(table, "%.4f")
    back = pd.read_csv(io.StringIO(text))
    assert back["method"].tolist() == ["'=cmd|' /C calc'!A0", "'@x", "'+1", "'-2", "'\tx", "c3po"]
    assert back["S_in"].tolist() == [-0.5] * 6


@pytest.mark.parametrize("piece", ["x", "x ", "x\n", "\U0001f984", "\u200b", "你 "])
def test_a_long_answer_is_cut_at_once(piece):
    with within(1):
        lines = text_layout.wrap(piece * 100_000, 2.0, 7)
    assert len(lines) <= 7
