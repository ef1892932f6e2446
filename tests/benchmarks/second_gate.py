"""What results/benchmark says of the second gate and its tables do not; from stored rows and answers, no training.

`python -m tests.benchmarks.second_gate [run] [first|second|manners]...`, about 25 minutes on 2 cores for all three:
the first gate, the second, also with thresholds that let less pass (`gate_leak`), and the second fitted on prompts in
other manners, too. How often they open at test prompts, what every stored method would score behind each (its answers
where the gate is open, pi_0's second ones elsewhere), and, where the second gate has run, its lead over SCD + Negatives
with 97.5% intervals, as it is the second look.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from c3po_utils.engine import load_tokenizer, shared_model
from c3po_utils.evaluation import collect, comparison, scores
from c3po_utils.runs import run_folder
from c3po_utils.sampling import load_rows, stored_settings
from c3po_utils.training import BASE_RESAMPLED, gate
from c3po_utils.training import probe as probes
from c3po_utils.training.methods import METHODS

FIRST = METHODS["scd_gated"]
SECOND_GATE = replace(FIRST, gate_all=True, gate_l2=0.1)
GATES = {"first": FIRST, "second": SECOND_GATE, "manners": replace(SECOND_GATE, gate_manners=True)}
LEAKS = {"second": (0.1, 0.05, 0.02, 0.01)}  # other thresholds: shares out of scope that may pass in cross-validation
SECOND, REFERENCE, LEVEL = "scd_gated@all", "scd_negatives", 0.975


def opened(run: Path, feedback: str, names: Collection[str]) -> Iterator[dict]:
    """A row per gate, threshold and test prompt of a feedback: whether the gate, fitted on the training fold, opens."""
    rows, settings = load_rows(run, feedback), stored_settings(run, feedback)
    model, tokenizer = shared_model(settings.model), load_tokenizer(settings.model)
    train, test = ([row for row in rows if row["fold"] == fold] for fold in gate.FOLDS)
    encode = partial(gate.prompt_ids, tokenizer, system=settings.system_prompt)
    held = [encode(row["prompt"]) for row in test]
    splits = [row["split"] for row in train]
    for name in names:
        fitted, _, train_N = gate.fit_gate(model, encode, train, GATES[name])
        thresholds = {
            f"{name}, {leak:g}": probes.choose_threshold(train_N, splits, leak) for leak in LEAKS.get(name, ())
        }
        scores_N = fitted.scores(model, held)
        for called, threshold in {name: fitted.threshold, **thresholds}.items():
            for row, score in zip(test, scores_N, strict=True):
                yield {
                    "gate": called,
                    "feedback": feedback,
                    "prompt_id": row["id"],
                    "split": row["split"],
                    "open": bool(score > threshold),
                }


def behind(answers: pd.DataFrame, opens: pd.DataFrame) -> pd.DataFrame:
    """S_in to S_overall of each method of `answers` behind one gate."""
    key = ["feedback", "prompt_id"]
    base = answers[answers["method"] == BASE_RESAMPLED].set_index(key)["score"].rename("closed")
    composed = answers.merge(opens[[*key, "open"]], on=key).join(base, on=key)
    composed["score"] = composed["score"].where(composed["open"], composed["closed"])
    return scores.method_scores(composed).set_index("method")[list(scores.SCORES)]


def main(run: Path, names: Collection[str]) -> None:
    answers = collect(run)
    opens = pd.DataFrame(row for id in sorted(answers["feedback"].unique()) for row in opened(run, id, names))
    print(opens.groupby(["gate", "feedback", "split"])["open"].mean().groupby(["gate", "split"]).mean().round(2))
    for name, own in opens.groupby("gate"):
        print(f"behind the {name} gate\n{behind(answers, own).round(3).to_string()}")
    if {SECOND, REFERENCE} <= set(answers["method"]):
        lead = comparison.feedback_differences(answers, SECOND, REFERENCE).to_numpy()
        test = stats.ttest_1samp(lead, 0)
        drawn = stats.bootstrap((lead,), np.mean, n_resamples=comparison.RESAMPLES, confidence_level=LEVEL, rng=0)
        print(f"{SECOND} less {REFERENCE}: {lead.mean():.3f}, twice p = {2 * test.pvalue:.1g}")
        print(f"{LEVEL:.1%}: t {test.confidence_interval(LEVEL)}, BCa {drawn.confidence_interval}")


if __name__ == "__main__":
    folder, *chosen = sys.argv[1:] or ["results/benchmark"]
    main(run_folder(folder), chosen or GATES)
