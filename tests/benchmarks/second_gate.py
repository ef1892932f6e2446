"""What results/benchmark says of the second gate and its tables do not; from stored rows and answers, no training.

`python -m tests.benchmarks.second_gate [run]`, about 25 minutes on 2 cores. How often gates open at test prompts (the
first, the second, and the second fitted on prompts in other manners, too), what every stored method would score behind
each (its answers where the gate is open, pi_0's second ones elsewhere), and, where the second gate has run, its lead
over SCD + Negatives with 97.5% intervals, as it is the second look.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
from c3po_utils.training.methods import METHODS

FIRST = METHODS["scd_gated"]
SECOND_GATE = replace(FIRST, gate_all=True, gate_l2=0.1)
GATES = {"first": FIRST, "second": SECOND_GATE, "second, other manners": replace(SECOND_GATE, gate_manners=True)}
SECOND, REFERENCE, LEVEL = "scd_gated@all", "scd_negatives", 0.975


def opened(run: Path, feedback: str) -> Iterator[dict]:
    """A row per gate and test prompt of a feedback: whether the gate, fitted on the training fold, opens."""
    rows, settings = load_rows(run, feedback), stored_settings(run, feedback)
    model, tokenizer = shared_model(settings.model), load_tokenizer(settings.model)
    train, test = ([row for row in rows if row["fold"] == fold] for fold in gate.FOLDS)
    encode = partial(gate.prompt_ids, tokenizer, system=settings.system_prompt)
    held = [encode(row["prompt"]) for row in test]
    for name, method in GATES.items():
        fitted, *_ = gate.fit_gate(model, encode, train, method)
        for row, open in zip(test, fitted.opens(model, held), strict=True):
            yield {
                "gate": name,
                "feedback": feedback,
                "prompt_id": row["id"],
                "split": row["split"],
                "open": bool(open),
            }


def behind(answers: pd.DataFrame, opens: pd.DataFrame) -> pd.DataFrame:
    """S_in to S_overall of each method of `answers` behind one gate."""
    key = ["feedback", "prompt_id"]
    base = answers[answers["method"] == BASE_RESAMPLED].set_index(key)["score"].rename("closed")
    composed = answers.merge(opens[[*key, "open"]], on=key).join(base, on=key)
    composed["score"] = composed["score"].where(composed["open"], composed["closed"])
    return scores.method_scores(composed).set_index("method")[list(scores.SCORES)]


def main(run: Path) -> None:
    answers = collect(run)
    opens = pd.DataFrame(row for id in sorted(answers["feedback"].unique()) for row in opened(run, id))
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
    main(run_folder(sys.argv[1] if len(sys.argv) > 1 else "results/benchmark"))
