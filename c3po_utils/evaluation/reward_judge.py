"""An embedded judge without an API: an answer and its baseline compared by the implicit reward of eq. 6.

How well it agrees with the metrics, at thresholds that other feedbacks' metrics gave, is measured by

    python -m c3po_utils.evaluation.reward_judge results/embedded
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.engine import load_tokenizer, shared_model
from c3po_utils.evaluation.calibration import SEES, calibration, kappa
from c3po_utils.evaluation.evaluate import collect
from c3po_utils.evaluation.implicit_reward import Context, answer_logps, told
from c3po_utils.feedback import Feedback
from c3po_utils.runs import files, progress, run_folder
from c3po_utils.sampling import load_rows, stored_feedback, stored_settings

METHODS = ("scd", "c3po")  # whose answers are judged: with and without the effect, in scope and elsewhere
COMMAND = "python -m c3po_utils.evaluation.reward_judge"
NAME = "implicit_reward"  # of the report
YARDSTICK = "shorter"  # log(len(baseline) / len(answer)) in the place of a margin


def reward_margins(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    feedback: Feedback,
    *,
    system: str = "",
) -> dict[Context, NDArray[np.float64]]:
    """The judge's evidence: the implicit reward of each row's answer minus that of its baseline, in nats per token.

    Above 0, the answer looks more like one written under the feedback than the baseline does. NaN where one of the
    two texts is missing. By context, how pi_plus is told of the feedback; see implicit_reward.in_context_rewards.

    Args:
        rows: dicts with `prompt`, `answer`, `status`, `baseline` and `baseline_status`.
    """
    answers = [(row["prompt"], row["answer"], row["status"] == "ok") for row in rows]
    baselines = [(row["prompt"], row["baseline"], row["baseline_status"] == "ok") for row in rows]
    texts = sorted({text for text in (*answers, *baselines) if text[1]})
    pairs, ended = [text[:2] for text in texts], [text[2] for text in texts]
    plain = answer_logps(model, told(tokenizer, pairs, ended, system=system))
    margins = {}
    for context in get_args(Context):
        informed = answer_logps(model, told(tokenizer, pairs, ended, system=system, feedback=feedback, context=context))
        rewards = {text: float((a - b).mean()) for text, a, b in zip(texts, informed, plain, strict=True)}
        margins[context] = np.array(
            [rewards.get(a, math.nan) - rewards.get(b, math.nan) for a, b in zip(answers, baselines, strict=True)]
        )
    return margins


def scores(margins: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """The judge's scores in [-1, 1]: a margin at the threshold gets what counts as seen (calibration.SEES)."""
    return np.tanh(np.arctanh(SEES) * margins / threshold)


def calibrate(margins: NDArray[np.float64], gold: NDArray[np.float64]) -> float:
    """The threshold at which the judge agrees best with the metric's score `gold`, by Cohen's kappa.

    To be used on feedbacks other than those it was calibrated on. ValueError where no margin has a score beside it.
    """
    known = ~(np.isnan(margins) | np.isnan(gold))
    margins, gold = margins[known], gold[known]
    if not margins.any():
        raise ValueError("no margin to calibrate on: expected answers of another feedback that has a metric")
    sizes = np.unique(np.quantile(np.abs(margins[margins != 0]), np.linspace(0, 1, 101), method="nearest"))
    tried = (sizes[1:] + sizes[:-1]) / 2  # between margins, as far from both as can be
    return float(max(tried, key=lambda threshold: np.nan_to_num(kappa(gold, scores(margins, threshold)), nan=-1)))


def with_margins(run: Path | str) -> pd.DataFrame:
    """A run's stored answers of `METHODS`, with `metric_score`, margins for each context, and `shorter`."""
    answers = collect(run)
    answers = answers[answers["method"].isin(METHODS)]
    of_judged = answers.get("metric_score", np.nan)
    gold = np.where(answers["scored_by"] == "metric", answers["score"], of_judged).astype(float)
    answers = answers.assign(metric_score=gold)
    if answers["metric_score"].isna().all():
        raise ValueError(f"{run}: no answer of {', '.join(METHODS)} has a metric's score for the judge to agree with")
    parts = []
    for id, own in progress.bar(iterable=answers.groupby("feedback", sort=False), desc="feedbacks"):
        settings = stored_settings(run, id)
        model, tokenizer = shared_model(settings.model), load_tokenizer(settings.model)
        status = {row["id"]: row["baseline_status"] for row in load_rows(run, id, "test")}
        rows = own.assign(baseline_status=own["prompt_id"].map(status)).to_dict("records")
        margins = reward_margins(model, tokenizer, rows, stored_feedback(run, id), system=settings.system_prompt)
        parts.append(own.assign(**margins))
    table = pd.concat(parts, ignore_index=True)
    lengths = [table[column].str.len().where(table[column] != "") for column in ("baseline", "answer")]
    return table.assign(**{YARDSTICK: np.log(lengths[0] / lengths[1])})


def judged(answers: pd.DataFrame, context: str) -> pd.DataFrame:
    """The answers with the judge's `score`, each feedback at the `threshold` that is best on all others."""
    parts = []
    for id, own in answers.groupby("feedback", sort=False):
        others = answers[answers["feedback"] != id]
        threshold = calibrate(others[context].to_numpy(), others["metric_score"].to_numpy())
        parts.append(own.assign(score=scores(own[context].to_numpy(), threshold), threshold=threshold))
    return pd.concat(parts, ignore_index=True)


def agreement(answers: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """A row per column of margins and feedback, and for all: `kappa` and `auc` with 95% bounds (calibration.py)."""
    rows = []
    for context in (*get_args(Context), YARDSTICK):
        table = judged(answers, context)
        for id, own in [*table.groupby("feedback", sort=False), ("all", table)]:
            found = calibration(own, draws).loc[["auc", "kappa"]]
            bounds = {f"{name}{end}": row[key] for name, row in found.iterrows()
                      for end, key in (("", "value"), ("_lo", "low"), ("_hi", "high"))}  # fmt: skip
            row = {"context": context, "feedback": id, "n": len(own), "gained": int((own["metric_score"] == 1).sum())}
            threshold = own["threshold"].iloc[0] if id != "all" else math.nan
            rows.append(row | bounds | {"threshold": threshold, "warning": " ".join(found["warning"]).strip()})
    return pd.DataFrame(rows)


REPORT = """# The embedded judge beside the metrics

Made by `{command} {run}` from {n} stored answers of {methods}.

The judge compares an answer with its baseline by the implicit reward of eq. 6, with pi_0 alone:
log pi_0(y | x, feedback) - log pi_0(y | x), in nats per token. The feedback is told as in the in-context baseline
(`sentence`) or by its example turns (`demonstrations`); in the rows `shorter`, a yardstick, the shorter text wins.
`gained`: answers that show the effect where the baseline does not. A difference above the threshold, which is the best
for all other feedbacks, counts as a gain. Chance is an AUC of 0.5 and a kappa of 0; 95% intervals, bootstrapped over
prompts.

{table}

{reading}

The methods judged here were trained on answers that were sampled in the context `demonstrations`; other answers may
be harder to judge.
"""


def report(table: pd.DataFrame, run: str) -> str:
    """The table of `agreement` as Markdown, with what to think of it."""
    shown = table[["context", "feedback", "n", "gained"]].copy()
    for name in ("auc", "kappa"):
        shown[name] = [
            f"{row[name]:.2f} [{row[f'{name}_lo']:.2f}, {row[f'{name}_hi']:.2f}]" for _, row in table.iterrows()
        ]
    shown["threshold"] = table["threshold"].map("{:.2f}".format).replace("nan", "–")
    contexts = table[table["context"] != YARDSTICK].groupby("context", sort=False)
    total = table.loc[table["feedback"] == "all", "n"].iloc[0]
    return REPORT.format(
        command=COMMAND, run=run, n=total, methods=", ".join(METHODS), table=shown.to_markdown(index=False),
        reading="\n".join(_reading(name, part) for name, part in contexts),
    )  # fmt: skip


def _reading(context: str, table: pd.DataFrame) -> str:
    """What to think of one context: of all answers together, and of the feedbacks apart."""
    whole, apart = table[table["feedback"] == "all"].iloc[0], table[table["feedback"] != "all"]
    doubted = apart.loc[apart["warning"] != "", "feedback"]
    text = f"- {context}: {whole['warning'] or 'It sees most of what the metric sees.'}"
    return text + (f" Not to be trusted on {', '.join(doubted)}." if len(doubted) else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a run with finished evaluations, such as results/embedded")
    parser.add_argument("--output", help="folder of the report; the run's own if left out")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    options = parser.parse_args(arguments)
    table = agreement(with_margins(run_folder(options.run)), options.draws)
    folder = run_folder(options.output or options.run)
    files.write_atomic(folder / f"{NAME}.csv", table.to_csv(index=False, float_format="%.4f"))
    files.write_atomic(folder / f"{NAME}.md", report(table, options.run))
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
