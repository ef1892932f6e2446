"""Tables to read: Table 2, comparisons, a judge's calibration, side effects; and the files that 05_figures leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from c3po_utils.evaluation import SCORES, calibration, interval_note, judge, scores
from c3po_utils.feedback import SPLITS
from c3po_utils.figures import plain_text
from c3po_utils.figures.plain_text import styled
from c3po_utils.figures.style import REFERENCES, look, ordered, save
from c3po_utils.runs import BUNDLED, Stage, done_stages, files, stage

PAPER_CSV = BUNDLED / "results" / "paper" / "table2.csv"
SHOWS = ("methods", "uncertainty", "paper", "compare", "sweep")  # 05_figures' parameters of what it shows
PAIR_TEXTS = ["method", "split", "prompt", "baseline", "answer"]
ARROWS = {"S_in": "↑", "S_near": "↓", "S_general": "↓", "S_out": "↓", "S_overall": "↑", "S_kept": "↑"}


def paper_table2(path: Path | str = PAPER_CSV) -> pd.DataFrame:
    """The paper's Table 2: means and standard errors over 100 feedbacks, by our method names."""
    return pd.read_csv(path)


def cell(row: pd.Series, score: str, uncertainty: scores.Uncertainty) -> str:
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
    """Two decimals, a real minus sign, and no negative zero; a dash where there is none."""
    if pd.isna(value):
        return "–"
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def fewer(table: pd.DataFrame) -> pd.Series:
    """` (16 of 26)` where a row is a mean over fewer feedbacks than another, which it is not compared with; else ``."""
    counts = table.get("n_feedbacks", pd.Series(1, table.index))
    return counts.map(lambda count: f" ({count} of {counts.max()})" if count < counts.max() else "")


def by_method(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows in the methods' order, and a table of the methods' display names to put them in."""
    rows = table.set_index("method").loc[ordered(table["method"])]
    names = [look(method).name + mark for method, mark in fewer(rows).items()]
    return rows, pd.DataFrame({"method": names}, index=rows.index)


def _cells(
    method_scores: pd.DataFrame, paper: pd.DataFrame | None, scores: Sequence[str], uncertainty: scores.Uncertainty
) -> pd.DataFrame:
    """The table's texts, a row per method under its display name."""
    rows, table = by_method(method_scores)
    for score in scores:
        table[f"{score} {ARROWS[score]}"] = [cell(row, score, uncertainty) for _, row in rows.iterrows()]
        if paper is not None and score in paper:
            published = paper.set_index("method").reindex(rows.index)
            table[f"{score}, paper"] = [cell(row, score, "se") for _, row in published.iterrows()]
    return table


def _best(method_scores: pd.DataFrame, score: str) -> list[str]:
    """The contestants (not base nor revised) with the best score as printed; none when there is only one.

    Those over fewer feedbacks than others are none: these may be the easier ones.
    """
    whole = method_scores[fewer(method_scores) == ""]
    column = whole.set_index("method")[score].drop(list(REFERENCES), errors="ignore").dropna().round(2)
    if len(column) < 2:
        return []
    return list(column.index[column == (column.max() if ARROWS[score] == "↑" else column.min())])


def table2(
    method_scores: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    scores: Sequence[str] = (),
    uncertainty: scores.Uncertainty = "interval",
) -> Styler:
    """Table 2 for a notebook, of all scores that the table has or of some; the caption says what the uncertainty is."""
    scores = scores or _scores(method_scores)
    table = _cells(method_scores, paper, scores, uncertainty)
    bold = {(best, f"{score} {ARROWS[score]}") for score in scores for best in _best(method_scores, score)}
    styles = pd.DataFrame(
        [["font-weight: bold" * ((row, column) in bold) for column in table] for row in table.index],
        table.index, table.columns,
    )  # fmt: skip
    style = styled(table).apply(lambda _: styles, axis=None).hide(axis="index")
    style = style.set_properties(subset=list(table.columns[1:]), **{"white-space": "nowrap"})  # no interval in two
    return style.set_caption(_note(method_scores, paper, uncertainty))


def _scores(table: pd.DataFrame) -> list[str]:
    return [score for score in ARROWS if score in SCORES or score in table]


def _note(method_scores: pd.DataFrame, paper: pd.DataFrame | None, uncertainty: scores.Uncertainty) -> str:
    own = interval_note(method_scores) if uncertainty == "interval" else "± standard error over feedbacks"
    if (fewer(method_scores) != "").any():
        own += f"; (n of {method_scores['n_feedbacks'].max()}): over n of the feedbacks, and never in bold"
    return own if paper is None else own + "; paper: Mistral-7B, ± standard error over its 100 feedbacks"


def table2_markdown(
    method_scores: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    scores: Sequence[str] = (),
    uncertainty: scores.Uncertainty = "interval",
) -> str:
    """Table 2 for a README, with a line below it that says what the uncertainty is; `scores` as in `table2`."""
    scores = scores or _scores(method_scores)
    table = _cells(method_scores, paper, scores, uncertainty)
    table["method"] = table["method"].map(plain_text.markdown)
    for score in scores:
        column, best = f"{score} {ARROWS[score]}", _best(method_scores, score)
        table.loc[best, column] = "**" + table.loc[best, column] + "**"
    note = _note(method_scores, paper, uncertainty)
    return f"{table.to_markdown(index=False, disable_numparse=True)}\n\n{note[0].upper() + note[1:]}.\n"


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
    style = styled(table).apply(lambda _: styles, axis=None, subset=list(scores)).hide(axis="index")
    return style.set_properties(**{"white-space": "pre"}).set_caption(caption)


def leads_table(leads: pd.DataFrame) -> Styler:
    """comparison.leads for a notebook."""
    return styled(_leads(leads)).hide(axis="index").set_caption(LEADS.format(method=look(leads["method"].iloc[0]).name))


LEADS = "{method}, ahead in S_overall; 95% intervals over feedbacks; p adjusted over the methods (Holm)"


def _leads(leads: pd.DataFrame) -> pd.DataFrame:
    rows = [row for _, row in leads.iterrows()]
    boot = [f"[{readable_number(row['boot_lo'])}, {readable_number(row['boot_hi'])}]" for row in rows]
    return pd.DataFrame({
        "of": [look(row["reference"]).name for row in rows],
        "by": [cell(row.add_prefix("by_").rename({"by_difference": "by"}), "by", "interval") for row in rows],
        "bootstrap": boot,
        "feedbacks ahead, behind": [f"{row['ahead']}, {row['behind']} of {row['n']}" for row in rows],
        "p": [_p_value(row["p_holm"]).removeprefix("p ").removeprefix("= ") for row in rows],
    })  # fmt: skip


def _p_value(p: float) -> str:
    return "" if pd.isna(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def means_table(means: pd.DataFrame, columns: Sequence[str] = SPLITS) -> Styler:
    """scores.split_means for a notebook."""
    rows, table = by_method(means)
    for column in columns:
        table[column] = [cell(row, column, "interval") for _, row in rows.iterrows()]
    return styled(table).hide(axis="index").set_caption(interval_note(means))


def bounds_table(bounds: pd.DataFrame, scores: Sequence[str] = SCORES) -> Styler:
    """scores.missing_bounds for a notebook: `worst … best`, one number where nothing is missing."""
    rows, table = by_method(bounds)
    for score in scores:
        ends = zip(rows[f"{score}_worst"].map(readable_number), rows[f"{score}_best"].map(readable_number), strict=True)
        table[f"{score} {ARROWS[score]}"] = [worst if worst == best else f"{worst} … {best}" for worst, best in ends]
    table["missing"] = [f"{missing} of {n}" for missing, n in zip(rows["n_missing"], rows["n_prompts"], strict=True)]
    caption = "Had every missing score been the worst, or the best, it could be"
    return styled(table).hide(axis="index").set_caption(caption)


def reading_table(rows: pd.DataFrame, caption: str = "") -> Styler:
    """Rows with texts, for a notebook: from the left and with their line breaks, so that they can be read."""
    style = styled(rows).format(precision=2, na_rep="–").hide(axis="index").set_caption(caption)
    left = [("text-align", "left")]
    looks = [{"selector": "th", "props": left}, {"selector": "caption", "props": [*left, ("font-weight", "bold")]}]
    cells = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
    return style.set_properties(**cells).set_table_styles(looks)


def judge_section(answers: pd.DataFrame) -> Iterator[Markdown | Styler]:
    """What to look at before a judge's scores are believed; nothing where the metric scored."""
    columns = [*PAIR_TEXTS, "score", "metric_score"]
    if not set(columns) <= set(answers):
        return
    yield Markdown(TRUST)
    yield calibration_table(calibration.calibration(answers))
    if answers["metric_score"].notna().any():
        yield styled(calibration.confusion_table(answers)).set_caption("verdicts of the metric and of the judge")
        yield reading_table(calibration.disagreements(answers)[columns].head(4), "where metric and judge differ most")
    reasons = {f"score_{order}_reasons": f"reasons, {order.replace('_', ' ')}" for order in judge.ORDERS}
    flipped = calibration.flips(answers)[[*PAIR_TEXTS, *reasons]].head(4).rename(columns=reasons)
    yield reading_table(flipped, "where the judge contradicted itself when the order changed")
    table = table2(scores.feedback_scores(calibration.equal_lengths(answers)))
    yield table.set_caption("the scores that the judge would have given at equal lengths")
    if "helpful" in answers:
        table = means_table(scores.split_means(answers, "helpful"))
        yield table.set_caption("helpfulness, from −1 (the baseline's answer helps more) to 1")


def calibration_table(found: pd.DataFrame) -> Styler:
    """A calibration for a notebook, with what is to be warned of in bold."""
    style = styled(found).format(precision=2, na_rep="–").hide(axis="index")
    style = style.set_caption("95% intervals; n: pairs, or verdicts, counted")
    style = style.set_properties(["check", "warning"], **{"text-align": "left"})
    return style.set_properties(["warning"], **{"font-weight": "bold"})


TRUST = """## Can the judge be trusted?
It saw each pair in both orders, and the score is the mean. On a checkable feedback its scores are held against the
metric; among the metric's ties, where neither answer gained the effect, it should not care which one is longer. Read
the pairs below before you believe any number."""
HEADERS = {
    "length_in_scope": "length in scope, × baseline",
    "length_elsewhere": "length elsewhere, × baseline",
    "repetition": "repeated 4-grams",
    "repetition_change": "their change",
    "empty": "empty answers",
    "perplexity": "perplexity of pi_0's answers",
    "perplexity_factor": "× pi_0's",
}


def side_effects_table(table: pd.DataFrame) -> Styler:
    """The table to read, with what is outside its limits marked."""
    rows, readable = by_method(table)
    shown = {name: header for name, header in HEADERS.items() if name in table}
    for name, header in shown.items():
        readable[header] = rows[name]
    marks = [["background-color: #f6c5bf; font-weight: bold" * (name in beyond) for name in ("", *shown)]
             for beyond in rows["beyond"]]  # fmt: skip
    readable = readable.reset_index(drop=True)  # of several feedbacks a method has several rows
    styles = pd.DataFrame(marks, readable.index, readable.columns)
    style = styled(readable).apply(lambda _: styles, axis=None).hide(axis="index")
    style = style.format(readable_number, na_rep="–", subset=[*shown.values()])
    return style.set_caption("marked: beyond the limits; read some answers, the adapter may have collapsed")


def figures_stage(runs: Sequence[Path | str], output: Path | str, shows: Mapping[str, Any]) -> Stage:
    """The folder of tables and figures, done when it was made from these evaluations, with these of 05's parameters."""
    evaluations = {
        stage.shown(folder): manifest["identity"] for run in runs for folder, manifest in done_stages(run, "eval")
    }
    return Stage(output, {"evaluations": evaluations, "shows": {key: shows[key] for key in SHOWS}})


def store_results(
    runs: Sequence[Path | str],
    folder: Path,
    by_method: pd.DataFrame,
    by_feedback: pd.DataFrame,
    shows: Mapping[str, Any],
    swept: dict[str, pd.DataFrame],
    card: str,
    drawn: dict[str, Axes | NDArray],
    leads: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
) -> None:
    """Everything that 05_figures made, with a manifest: tables as CSV and Markdown, figures as PNG and PDF.

    `shows`: the parameters of 05_figures, as in `SHOWS`.
    """
    with figures_stage(runs, folder, shows):
        store_tables(by_method, by_feedback, folder, shows["uncertainty"], paper)
        files.write_atomic(folder / "fig5.html", card)
        if leads is not None:
            files.write_atomic(folder / "leads.csv", plain_text.csv(leads, "%.4f"))
        for name, table in swept.items():
            files.write_atomic(folder / f"sweep_{name}.csv", plain_text.csv(table, "%.6g"))
        for name, axes in drawn.items():
            save(axes, folder, name)


def store_tables(
    by_method: pd.DataFrame,
    by_feedback: pd.DataFrame,
    folder: Path | str,
    uncertainty: scores.Uncertainty,
    paper: pd.DataFrame | None = None,
) -> None:
    """`table2.csv` and `table2.md` (a row per method, in the latter with the paper's numbers, if given), `scores.csv`
    (a row per feedback and method)."""
    folder = Path(folder)
    files.write_atomic(folder / "table2.csv", plain_text.csv(by_method, "%.4f"))
    files.write_atomic(folder / "table2.md", table2_markdown(by_method, paper, uncertainty=uncertainty))
    files.write_atomic(folder / "scores.csv", plain_text.csv(by_feedback, "%.4f"))
