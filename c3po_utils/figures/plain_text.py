"""Text from outside (answers, prompts, names, labels) shown as it is: no tags, mathematics, Markdown or formulas."""

from __future__ import annotations

import html
import re
from typing import Any

import pandas as pd
from pandas.api.types import is_scalar
from pandas.io.formats.style import Styler

from c3po_utils.figures.text_layout import drawable

NO_MATHJAX = "tex2jax_ignore mathjax_ignore"  # classes: notebooks set $...$ as mathematics elsewhere
_FORMULA = re.compile(r"[=+\-@\t\r]")  # with which a spreadsheet's formula begins
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside of a word is none


class PlainStyler(Styler):
    """A table for a notebook whose cells, headings and caption are text, whatever they hold; pandas' own are HTML."""

    def __init__(self, table: pd.DataFrame):
        super().__init__(table)
        for axis in (0, 1):
            self.format_index(escape="html", axis=axis)
        self.set_table_attributes(f'class="{NO_MATHJAX}"')

    def format(self, *args: Any, **kwargs: Any) -> PlainStyler:
        return super().format(*args, **{**kwargs, "escape": "html"})

    def set_caption(self, caption: str) -> PlainStyler:
        return super().set_caption(html.escape(caption))


def styled(table: pd.DataFrame) -> PlainStyler:
    """The table, to be formatted further as pandas' `style` is."""
    names = {"index": table.index.names, "columns": table.columns.names}
    escaped = {axis: [html.escape(str(name)) if name else None for name in of_axis] for axis, of_axis in names.items()}
    texts = table.map(lambda value: value if is_scalar(value) else str(value))  # as pandas escapes texts alone
    return PlainStyler(texts.rename_axis(**escaped))


def label(text: str) -> str:
    """One line for a figure, in which matplotlib finds no mathematics, and no characters that its font lacks."""
    return drawable(" ".join(text.split())).replace("$", r"\$")


def markdown(text: str) -> str:
    """One line in a Markdown table's cell."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def csv(table: pd.DataFrame, float_format: str) -> str:
    """A table without its index as CSV; an apostrophe stands before a text that a spreadsheet would compute."""
    return table.map(no_formula).to_csv(index=False, float_format=float_format)


def no_formula(value: Any) -> Any:
    """A cell of a CSV, with an apostrophe before a text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
