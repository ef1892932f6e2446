"""Side effects of training: is the model, where the feedback does not apply, still the model that it was?

Scores look at one property of an answer, so an adapter that has fallen apart can score as harmless: one word over and
over does not show the effect either. Length, repetition and perplexity say so at a glance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils import training  # as a room: its heavy parts are imported when they are used
from c3po_utils.engine import load_tokenizer, shared_model
from c3po_utils.evaluation import routing
from c3po_utils.evaluation.evaluate import eval_stage
from c3po_utils.evaluation.implicit_reward import answer_logps, told
from c3po_utils.evaluation.quality import distinct, words
from c3po_utils.runs import files, once
from c3po_utils.sampling import load_rows, stored_settings
from c3po_utils.training import BASE_RESAMPLED, trained_methods

STORED = "perplexity.json"  # beside a method's answers
LIMITS = {  # beyond them, look at the answers: the adapter may have collapsed
    "length_elsewhere": (0.5, 2.0),
    "repetition_change": (-1.0, 0.15),
    "empty": (0.0, 0.05),
    "perplexity_factor": (0.0, 2.0),
}


def repetition_rate(text: str, n: int = 4) -> float:
    """The share of the text's n-grams of words that occurred in it before (seq-rep-n, Welleck et al. 2020).

    0 where nothing repeats and for texts of fewer than n words; near 1 where one phrase goes on and on.
    """
    return 1 - distinct([text], n)


def perplexity(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], system: str = ""
) -> float:
    """exp of the mean negative log-likelihood, per token, of the rows' baselines; those without one are left out.

    Args:
        rows: sampled rows of general prompts (see sampling/rows.py).
        system: the system prompt that the answers were sampled with.

    Raises:
        ValueError: no row has a baseline, or one is longer than the model's context.
    """
    return math.exp(-np.concatenate(_baseline_logps(model, tokenizer, _answered(rows), system)).mean())


def _answered(rows: Sequence[dict]) -> list[dict]:
    answered = [row for row in rows if row["baseline"]]
    if not answered:
        raise ValueError(f"perplexity: none of the {len(rows)} rows has a baseline answer, expected one or more")
    return answered


def _baseline_logps(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], system: str
) -> list[np.ndarray]:
    """log pi of every token of the rows' baselines."""
    ended = [row["baseline_status"] == "ok" for row in rows]
    pairs, ids = [(row["prompt"], row["baseline"]) for row in rows], [row["id"] for row in rows]
    return answer_logps(model, told(tokenizer, pairs, ended, ids=ids, system=system))


def perplexities(run: Path | str, feedback_id: str, methods: Sequence[str]) -> pd.DataFrame:
    """`method`, `perplexity` of pi_0's answers to the general test prompts, for pi_0 and every trained method.

    `base_resampled` is pi_0 itself. Stored with the evaluation that it belongs to, and read back from there.
    """
    rows = [
        {"method": method, "perplexity": _stored_perplexity(run, feedback_id, method)}
        for method in (BASE_RESAMPLED, *trained_methods(methods))
    ]
    return pd.DataFrame(rows).assign(feedback=feedback_id)


def _stored_perplexity(run: Path | str, feedback_id: str, method: str) -> float:
    stage = eval_stage(run, feedback_id, method)
    path = stage.path(STORED)
    known = files.remembered(path) or {}
    if known.get("identity") == stage.identity:
        return known["perplexity"]
    rows = [row for row in load_rows(run, feedback_id, "test") if row["split"] == "out_of_scope"]
    if not rows:  # the test prompts have no general ones
        return math.nan
    value = _general_perplexity(run, feedback_id, method, _answered(rows))
    files.write_json(path, {"identity": stage.identity, "perplexity": value})
    return value


def _general_perplexity(run: Path | str, feedback_id: str, method: str, rows: Sequence[dict]) -> float:
    """That of the rows' baselines: pi_0's is made once in a run for all feedbacks that test on the same answers."""

    def measured() -> float:
        return math.exp(-np.concatenate(_method_logps(run, feedback_id, method, rows)).mean())

    if method != BASE_RESAMPLED:
        return measured()
    settings = stored_settings(run, feedback_id)
    told = [[row["prompt"], row["baseline"], row["baseline_status"]] for row in rows]
    return once.made_once(
        Path(run) / "references", "perplexity", [settings.model, settings.system_prompt, told], measured
    )


def _method_logps(run: Path | str, feedback_id: str, method: str, rows: Sequence[dict]) -> list[np.ndarray]:
    """As `_baseline_logps`, of a method: pi_0's where that is what it is, or its gate is closed, else its adapter's."""
    settings = stored_settings(run, feedback_id)
    base, tokenizer, system = shared_model(settings.model), load_tokenizer(settings.model), settings.system_prompt
    opens_N = np.full(len(rows), method != BASE_RESAMPLED)
    if method != BASE_RESAMPLED:
        for gate in routing.gates(run, [feedback_id], method, base).values():
            opens_N = gate.opens(base, [training.gate.prompt_ids(tokenizer, row["prompt"], system) for row in rows])
    closed, opened = ([row for row, found in zip(rows, opens_N, strict=True) if found == wanted] for wanted in (0, 1))
    found = _baseline_logps(base, tokenizer, closed, system)
    if opened:
        folder = training.stage.weights_folder(training.adapter_folder(run, feedback_id, method))
        with training.merged(base, folder) as tuned:
            found = found + _baseline_logps(tuned, tokenizer, opened, system)
    return found


def side_effects(answers: pd.DataFrame, perplexities: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per feedback and method, with `beyond`: the columns that are outside their LIMITS.

    Lengths are all answers' words over all baselines' words, in scope, where the feedback may ask for a change, and
    elsewhere; repetition is the mean `repetition_rate`, its change that against the baselines. `answers` is the tidy
    table of scores.py; `perplexities` may be of several feedbacks.
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
        base = perplexities[perplexities["method"] == BASE_RESAMPLED].set_index("feedback")["perplexity"]
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
