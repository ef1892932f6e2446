"""Appendix C on a real model: the reward behind the preferences, and what training learned of it, token by token.

The true reward is log pi+/pi-, with pi+ the model that has the feedback's examples in its prompt, which wrote the
revised answers. (That only those were kept which pass the metric adds a constant per prompt.) The learned one is
log pi_theta/pi_0, with an adapter and without. What is measured is stored, so that it is drawn without a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from c3po_utils.engine import load_model, load_tokenizer
from c3po_utils.evaluation.implicit_reward import AnswerReward, adapter_rewards, in_context_rewards
from c3po_utils.runs import stage as runs_stage
from c3po_utils.sampling import load_rows, stored_feedback, stored_settings
from c3po_utils.training import adapter_hash, adapters

ANSWERS = (
    ("in_scope", "revised"),
    ("in_scope", "baseline"),
    ("near_scope", "baseline"),
    ("out_of_scope", "baseline"),
)


def measure(adapter: Path | str) -> dict[str, Any]:
    """Both rewards of the test prompts' answers, revised and baseline in scope and baseline elsewhere.

    Minutes on a CPU for 72 short answers of the embedded model, in float32.

    Args:
        adapter: the folder of a finished training stage, `<run>/train/<feedback>/<method>`; its feedback needs
            demonstrations.

    Returns:
        JSON-serializable: what was measured; `answers`, totals in nats of every answer; `maps`, the rewards of
        each token of a typical prompt's answers in each split (see `typical`).
    """
    adapter = Path(adapter)
    run, feedback_id = adapter.parents[2], adapter.parent.name
    settings = stored_settings(run, feedback_id)
    feedback = stored_feedback(run, feedback_id)
    answers = _answers(load_rows(run, feedback_id, "test"))
    pairs = [(answer["prompt"], answer["text"]) for answer in answers]
    known = {"system": settings.system_prompt, "ended": [answer["ended"] for answer in answers]}

    model, tokenizer = load_model(settings.model, dtype=torch.float32), load_tokenizer(settings.model)
    true = in_context_rewards(model, tokenizer, pairs, feedback, context="demonstrations", **known)
    learned = adapter_rewards(adapters.load_adapter(model, adapter), tokenizer, pairs, **known)
    totals = [_totals(*row) for row in zip(answers, true, learned, strict=True)]
    chosen = typical(totals)
    shown = [i for i, answer in enumerate(totals) if answer["id"] == chosen[answer["split"]]]
    return {
        "model": settings.model, "feedback": feedback_id, "content": feedback.content, "method": adapter.name,
        "adapter": adapter_hash(adapter), "packages": runs_stage.packages(), "answers": totals,
        "maps": [_map(answers[i], true[i], learned[i], tokenizer.eos_token) for i in shown],
    }  # fmt: skip


def _answers(rows: list[dict]) -> list[dict]:
    """The answers that there are, in the order of `ANSWERS`."""
    return [
        {key: row[key] for key in ("id", "split", "prompt")}
        | {"answer": column, "text": row[column], "ended": row[f"{column}_status"] == "ok"}
        for split, column in ANSWERS
        for row in rows
        if row["split"] == split and row[column]
    ]


def _totals(answer: dict, true: AnswerReward, learned: AnswerReward) -> dict:
    kept = {key: answer[key] for key in ("id", "split", "answer")}
    return kept | {"tokens": len(true.tokens), "true": round(true.total, 2), "learned": round(learned.total, 2)}


def _map(answer: dict, true: AnswerReward, learned: AnswerReward, eos: str) -> dict:
    kept = {key: answer[key] for key in ("id", "split", "answer", "prompt")}
    tokens = [token.replace(eos, "[end]") for token in true.tokens]
    return kept | {"tokens": tokens, "true": _rounded(true.values), "learned": _rounded(learned.values)}


def _rounded(values: NDArray) -> list[float]:
    return [round(float(value), 2) for value in values]


def typical(totals: list[dict]) -> dict[str, str]:
    """By rule, the id of one prompt per split: the one with the median learned reward.

    In scope that is the margin between the revised and the baseline answer; prompts without either are left out.
    """
    margins: dict[str, dict[str, float]] = {}
    whole = {answer["id"] for answer in totals if answer["answer"] == "revised"}
    for answer in totals:
        if answer["split"] != "in_scope" or answer["id"] in whole:
            sign = -1 if (answer["split"], answer["answer"]) == ANSWERS[1] else 1
            of_split = margins.setdefault(answer["split"], {})
            of_split[answer["id"]] = of_split.get(answer["id"], 0.0) + sign * answer["learned"]
    ranked = {split: sorted(found, key=lambda id: (found[id], id)) for split, found in margins.items()}
    return {split: ids[len(ids) // 2] for split, ids in ranked.items()}
