"""Table 2 to read: cells with their uncertainty, the paper's numbers beside ours, the best in bold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from c3po_utils.figure_style import REFERENCES, look, ordered
from c3po_utils.intervals import SPLITS
from c3po_utils.scores import SCORES, interval_note

PAPER_CSV = Path(__file__).parents[1] / "results" / "paper" / "table2.csv"
ARROWS = {"S_in": "↑", "S_near": "↓", "S_general": "↓", "S_out": "↓", "S_overall": "↑"}
Uncertainty = Literal["interval", "se"]


def paper_table2(path: Path | str = PAPER_CSV) -> pd.DataFrame:
    """The paper's Table 2: means and standard errors over 100 feedbacks, by our method names."""
    return pd.read_csv(path)


def cell(row: pd.Series, score: str, uncertainty: Uncertainty) -> str:
    """`0.56 [0.50, 0.61]` with bounds or `0.56 ± .03` with a standard error; bare where there is none."""
    if pd.isna(row.get(score)):
        return "–"
    text, low, error = readable_number(row[score]), row.get(f"{score}_lo"), row.get(f"{score}_se")
    if uncertainty == "interval" and pd.notna(low):
        text += f" [{readable_number(low)}, {readable_number(row[f'{score}_hi'])}]"
    elif uncertainty == "se" and pd.notna(error):
        text += " ± " + readable_number(error).removeprefix("0")
    return text


def readable_number(value: float) -> str:
    """Two decimals, a real minus sign, and no negative zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _cells(
    method_scores: pd.DataFrame, paper: pd.DataFrame | None, scores: Sequence[str], uncertainty: Uncertainty
) -> pd.DataFrame:
    """The table's texts, a row per method under its display name."""
    rows = method_scores.set_index("method").loc[ordered(method_scores["method"])]
    table = pd.DataFrame({"method": [look(method).name for method in rows.index]}, index=rows.index)
    for score in scores:
        table[f"{score} {ARROWS[score]}"] = [cell(row, score, uncertainty) for _, row in rows.iterrows()]
        if paper is not None and score in paper:
            published = paper.set_index("method").reindex(rows.index)
            table[f"{score}, paper"] = [cell(row, score, "se") for _, row in published.iterrows()]
    return table


def _best(method_scores: pd.DataFrame, score: str) -> list[str]:
    """The contestants (not base nor revised) with the best score as printed; none when there is only one."""
    column = method_scores.set_index("method")[score].drop(list(REFERENCES), errors="ignore").dropna().round(2)
    if len(column) < 2:
        return []
    return list(column.index[column == (column.max() if ARROWS[score] == "↑" else column.min())])


def table2(
    method_scores: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    scores: Sequence[str] = SCORES,
    uncertainty: Uncertainty = "interval",
) -> Styler:
    """Table 2 for a notebook; the caption says what the uncertainty is."""
    table = _cells(method_scores, paper, scores, uncertainty)
    bold = {(best, f"{score} {ARROWS[score]}") for score in scores for best in _best(method_scores, score)}
    styles = pd.DataFrame(
        [["font-weight: bold" * ((row, column) in bold) for column in table] for row in table.index],
        table.index, table.columns,
    )  # fmt: skip
    return (
        table.style.apply(lambda _: styles, axis=None).hide(axis="index").set_caption(_note(method_scores, uncertainty))
    )


def _note(method_scores: pd.DataFrame, uncertainty: Uncertainty) -> str:
    return interval_note(method_scores) if uncertainty == "interval" else "± standard error over feedbacks"


def table2_markdown(
    method_scores: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    scores: Sequence[str] = SCORES,
    uncertainty: Uncertainty = "interval",
) -> str:
    """Table 2 for a README, with a line below it that says what the uncertainty is."""
    table = _cells(method_scores, paper, scores, uncertainty)
    for score in scores:
        column, best = f"{score} {ARROWS[score]}", _best(method_scores, score)
        table.loc[best, column] = "**" + table.loc[best, column] + "**"
    return f"{table.to_markdown(index=False)}\n\n{_note(method_scores, uncertainty).capitalize()}.\n"


def differences_table(differences: pd.DataFrame, scores: Sequence[str] = SCORES) -> Styler:
    """scores.paired_differences for a notebook: `0.31 [0.10, 0.52]` above `p = 0.03`, bold where adjusted p < 0.05."""
    rows = [row for _, row in differences.iterrows()]
    table = pd.DataFrame({"less": [look(row["reference"]).name for row in rows]})
    for score in scores:
        table[score] = [f"{cell(row, score, 'interval')}\n{_p_value(row[f'{score}_p_holm'])}" for row in rows]
    bold = (differences[[f"{score}_p_holm" for score in scores]] < 0.05).to_numpy()
    styles = pd.DataFrame(np.where(bold, "font-weight: bold", ""), table.index, list(scores))
    names = [look(method).name for method in differences["method"].unique()]
    caption = f"{', '.join(names)}, less each other method; 95% intervals; p adjusted over the methods (Holm)"
    style = table.style.apply(lambda _: styles, axis=None, subset=list(scores)).hide(axis="index")
    return style.set_properties(**{"white-space": "pre"}).set_caption(caption)


def _p_value(p: float) -> str:
    return "" if pd.isna(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def means_table(means: pd.DataFrame, columns: Sequence[str] = SPLITS) -> Styler:
    """scores.split_means for a notebook."""
    rows = means.set_index("method").loc[ordered(means["method"])]
    table = pd.DataFrame({"method": [look(method).name for method in rows.index]}, index=rows.index)
    for column in columns:
        table[column] = [cell(row, column, "interval") for _, row in rows.iterrows()]
    return table.style.hide(axis="index").set_caption(interval_note(means))


def bounds_table(bounds: pd.DataFrame, scores: Sequence[str] = SCORES) -> Styler:
    """scores.missing_bounds for a notebook: `worst … best`, one number where nothing is missing."""
    rows = bounds.set_index("method").loc[ordered(bounds["method"])]
    table = pd.DataFrame({"method": [look(method).name for method in rows.index]}, index=rows.index)
    for score in scores:
        ends = zip(rows[f"{score}_worst"].map(readable_number), rows[f"{score}_best"].map(readable_number), strict=True)
        table[f"{score} {ARROWS[score]}"] = [worst if worst == best else f"{worst} … {best}" for worst, best in ends]
    table["missing"] = [f"{missing} of {n}" for missing, n in zip(rows["n_missing"], rows["n_prompts"], strict=True)]
    caption = "Had every missing score been the worst, or the best, it could be"
    return table.style.hide(axis="index").set_caption(caption)


def reading_table(rows: pd.DataFrame) -> Styler:
    """Rows with texts, for a notebook: from the left, so that they can be read."""
    style = rows.style.format(precision=2, na_rep="–").hide(axis="index")
    heads = [{"selector": "th", "props": [("text-align", "left")]}]
    return style.set_properties(**{"text-align": "left", "vertical-align": "top"}).set_table_styles(heads)
