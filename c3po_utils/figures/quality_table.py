"""Whether answers are still answers: evaluation.quality, to read."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from c3po_utils.evaluation import quality
from c3po_utils.figures.plain_text import styled
from c3po_utils.figures.tables import by_method, readable_number

HEADERS = {
    "kept_in_scope": "above the floor, in scope",
    "kept_elsewhere": "elsewhere",
    "excess_in_scope": "excess nats/token, in scope",
    "excess_elsewhere": "elsewhere ",
    "length_in_scope": "length, in scope",
    "length_elsewhere": "elsewhere  ",
    "distinct_2": "distinct\N{NON-BREAKING HYPHEN}2",
    "distinct_3": "distinct\N{NON-BREAKING HYPHEN}3",
    "distinct_2_all": "distinct\N{NON-BREAKING HYPHEN}2 over answers",
}


def quality_section(qualities: pd.DataFrame) -> Iterator[Markdown | Styler]:
    """Whether answers are still answers, from quality.qualities; nothing where nothing was measured."""
    if qualities.empty:
        return
    yield Markdown(READING)
    rows, table = by_method(quality.by_method(qualities))
    for name, header in HEADERS.items():
        table[header] = rows[name].map(readable_number)
    yield styled(table).hide(axis="index").set_caption("means over feedbacks; excess and length against the references")


READING = r"""## Quality kept
Each answer against the references, the revised answers in scope and $\pi_0$'s own elsewhere: how much less likely
$\pi_0$ finds it (log-ratio of perplexities), how long it is, how much it repeats itself. Those below the floor
(`quality.FLOOR`, the same for every method) earn nothing in $S_\text{kept}$, which else is $S_\text{overall}$."""
