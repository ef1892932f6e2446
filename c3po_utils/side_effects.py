"""Side effects of training: is the model, where the feedback does not apply, still the model that it was?

Scores look at one property of an answer, so an adapter that has fallen apart can score as harmless: one word over and
over does not show the effect either. Length, repetition and perplexity say so at a glance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.adapters import merged
from c3po_utils.data import encode
from c3po_utils.evaluate import adapter_folder, eval_stage, trained_methods
from c3po_utils.figure_style import FLOOR, look, ordered
from c3po_utils.implicit_reward import answer_logps
from c3po_utils.models import load_tokenizer, shared_model
from c3po_utils.runs import read_json, write_json
from c3po_utils.sample import load_rows, stored_settings
from c3po_utils.score_table import readable_number

STORED = "perplexity.json"  # beside a method's answers
WORD = re.compile(r"\w+|[^\w\s]")
LIMITS = {  # beyond them, look at the answers: the adapter may have collapsed
    "length_elsewhere": (0.5, 2.0),
    "repetition_change": (-1.0, 0.15),
    "empty": (0.0, 0.05),
    "perplexity_factor": (0.0, 2.0),
}
HEADERS = {
    "length_in_scope": "length in scope, × baseline",
    "length_elsewhere": "length elsewhere, × baseline",
    "repetition": "repeated 4-grams",
    "repetition_change": "their change",
    "empty": "empty answers",
    "perplexity": "perplexity of pi_0's answers",
    "perplexity_factor": "× pi_0's",
}


def words(text: str) -> list[str]:
    """Words in lower case, and each punctuation mark by itself."""
    return WORD.findall(text.lower())


def repetition_rate(text: str, n: int = 4) -> float:
    """The share of the text's n-grams of words that occurred in it before (seq-rep-n, Welleck et al. 2020).

    0 where nothing repeats and for texts of fewer than n words; near 1 where one phrase goes on and on.
    """
    found = words(text)
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def perplexity(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], system: str = ""
) -> float:
    """exp of the mean negative log-likelihood, per token, of the rows' baseline answers.

    Args:
        rows: sampled rows with a `baseline`, of general prompts (see sample.py); those without an answer are left out.
        system: the system prompt that the answers were sampled with.
    """
    examples = [
        encode(
            tokenizer, row["id"], row["prompt"], row["baseline"], ended=row["baseline_status"] == "ok", system=system
        )
        for row in rows
        if row["baseline"]
    ]
    return math.exp(-np.concatenate(answer_logps(model, examples)).mean())


def perplexities(run: Path | str, feedback_id: str, methods: Sequence[str]) -> pd.DataFrame:
    """`method`, `perplexity` of pi_0's answers to the general test prompts, for pi_0 and every trained method.

    `base_resampled` is pi_0 itself. Stored with the evaluation that it belongs to, and read back from there.
    """
    rows = [
        {"method": method, "perplexity": _stored_perplexity(run, feedback_id, method)}
        for method in (FLOOR, *trained_methods(methods))
    ]
    return pd.DataFrame(rows).assign(feedback=feedback_id)


def _stored_perplexity(run: Path | str, feedback_id: str, method: str) -> float:
    stage = eval_stage(run, feedback_id, method)
    path = stage.path(STORED)
    known = read_json(path) if path.exists() else {}
    if known.get("identity") == stage.identity:
        return known["perplexity"]
    settings = stored_settings(run, feedback_id)
    base = shared_model(settings.model)
    rows = [row for row in load_rows(run, feedback_id, "test") if row["split"] == "out_of_scope"]
    with nullcontext(base) if method == FLOOR else merged(base, adapter_folder(run, feedback_id, method)) as model:
        value = perplexity(model, load_tokenizer(settings.model), rows, settings.system_prompt)
    write_json(path, {"identity": stage.identity, "perplexity": value})
    return value


def side_effects(answers: pd.DataFrame, perplexities: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per feedback and method, with `beyond`: the columns that are outside their LIMITS.

    Lengths are all answers' words over all baselines' words, in scope, where the feedback may ask for a change, and
    elsewhere; repetition is the mean `repetition_rate`, its change that against the baselines.

    Args:
        answers: the tidy answers table (see scores.py).
        perplexities: from `perplexities`, of one or more feedbacks.
    """
    rows = answers.assign(inside=answers["split"] == "in_scope")
    for name in ("answer", "baseline"):
        texts = rows[name].fillna("")
        rows[f"{name}_words"] = texts.map(lambda text: len(words(text)))
        rows[f"{name}_repetition"] = texts.map(repetition_rate)
    rows["empty"] = rows["answer"].fillna("") == ""
    table = pd.DataFrame([_measured(*key, own) for key, own in rows.groupby(["feedback", "method"], sort=False)])
    if perplexities is not None:
        table = table.merge(perplexities, on=["feedback", "method"], how="left")
        base = perplexities[perplexities["method"] == FLOOR].set_index("feedback")["perplexity"]
        table["perplexity_factor"] = table["perplexity"] / table["feedback"].map(base)
    return table.assign(beyond=[_outside(row) for _, row in table.iterrows()])


def _measured(feedback: str, method: str, rows: pd.DataFrame) -> dict:
    inside, outside = rows[rows["inside"]], rows[~rows["inside"]]
    return {
        "feedback": feedback,
        "method": method,
        "length_in_scope": inside["answer_words"].sum() / max(inside["baseline_words"].sum(), 1),
        "length_elsewhere": outside["answer_words"].sum() / max(outside["baseline_words"].sum(), 1),
        "repetition": rows["answer_repetition"].mean(),
        "repetition_change": (rows["answer_repetition"] - rows["baseline_repetition"]).mean(),
        "empty": rows["empty"].mean(),
    }


def _outside(row: pd.Series) -> list[str]:
    return [name for name, (low, high) in LIMITS.items() if name in row and (row[name] < low or row[name] > high)]


def side_effects_table(table: pd.DataFrame) -> Styler:
    """The table to read, with what is outside its limits marked."""
    shown = [name for name in HEADERS if name in table]
    rows = table.set_index("method").loc[ordered(table["method"])]
    marks = np.array([["background-color: #f6c5bf; font-weight: bold" * (name in row) for name in shown]
                      for row in rows["beyond"]])  # fmt: skip
    readable = rows[shown].set_axis([look(method).name for method in rows.index]).rename(columns=HEADERS)
    styles = pd.DataFrame(marks, range(len(readable)), readable.columns)
    return (
        readable.rename_axis("method")
        .reset_index()
        .style.apply(lambda _: styles.reindex(columns=["method", *readable.columns], fill_value=""), axis=None)
        .format(readable_number, na_rep="–", subset=[*readable.columns])
        .hide(axis="index")
        .set_caption("marked: beyond the limits; read some answers, the adapter may have collapsed")
    )
