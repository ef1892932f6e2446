"""The implicit reward of eq. 6: how much likelier an answer is under one policy than under another, token by token.

r(x, y) = log pi_plus(y | x) - log pi_minus(y | x). With pi_0 alone, pi_plus is pi_0 that has the feedback in its
prompt; after training it is the adapter, and r is what DPO multiplies by beta.

`measure` compares the two (appendix C): the true reward log pi+/pi-, with pi+ the model that has the feedback's
examples in its prompt, which wrote the revised answers (that only those were kept which pass the metric adds a constant
per prompt), and what training learned of it, log pi_theta/pi_0. It is stored, so that it is drawn without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from c3po_utils import engine, training  # as rooms: their heavy parts are imported when they are used
from c3po_utils.feedback import Feedback
from c3po_utils.runs import progress, stage
from c3po_utils.sampling import answers, load_rows, stored_feedback, stored_settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_PER_PASS = 4096
MEASURED = (
    ("in_scope", "revised"), ("in_scope", "baseline"), ("near_scope", "baseline"), ("out_of_scope", "baseline"),
)  # fmt: skip
Context = Literal["sentence", "demonstrations"]


@dataclass(frozen=True)
class AnswerReward:
    """The implicit reward of one answer.

    `tokens`: the answer's N tokens as text, the end-of-turn token last where the answer ended; joined they are the
    answer. `values`: (N,), r of each token in nats, positive where pi_plus is surer of it than pi_minus.
    """

    tokens: list[str]
    values: NDArray[np.float64]

    @property
    def total(self) -> float:
        """log pi_plus(y|x) / pi_minus(y|x), in nats."""
        return float(self.values.sum())


def adapter_rewards(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    system: str = "",
    ended: Sequence[bool] | None = None,
    ids: Sequence[str] | None = None,
) -> list[AnswerReward]:
    """r = log pi_adapter(y | x) / pi_0(y | x) of each token of each answer: what training changed, and where.

    Args:
        policy: the model with its adapter active (adapters.load_adapter); pi_0 is the same model without it.
        pairs: (prompt, answer) each.
        system: the system prompt that the answers were sampled with (SampleSettings.system_prompt).
        ended: for each pair, whether the answer closes with the end-of-turn token (status `ok`); all, if left out.
        ids: for each pair, what errors call it; its prompt, if left out.

    Returns:
        One AnswerReward for each pair, in order.

    Raises:
        ValueError: a pair is longer than the model's context.
    """
    examples = told(tokenizer, pairs, ended, ids=ids, system=system)
    plus = answer_logps(policy, examples)
    with policy.disable_adapter():
        minus = answer_logps(policy, examples)
    return _rewards(tokenizer, examples, plus, minus)


def in_context_rewards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    feedback: Feedback,
    *,
    context: Context = "sentence",
    system: str = "",
    ended: Sequence[bool] | None = None,
    ids: Sequence[str] | None = None,
) -> list[AnswerReward]:
    """r = log pi_0(y | x, feedback) / pi_0(y | x) of each token of each answer: no training, no API (eq. 6).

    Args:
        model: pi_0.
        context: how pi_plus is told: `sentence`, the in-context baseline's prompt, or `demonstrations`, the
            feedback's example turns, which is how the strategy `demonstrate` samples y+.

    The other arguments and the result are those of `adapter_rewards`.

    Raises:
        ValueError: demonstrations are asked for and the feedback has none.
    """
    plain = told(tokenizer, pairs, ended, ids=ids, system=system)
    informed = told(tokenizer, pairs, ended, ids=ids, system=system, feedback=feedback, context=context)
    return _rewards(tokenizer, plain, answer_logps(model, informed), answer_logps(model, plain))


def told(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    ended: Sequence[bool] | None = None,
    *,
    ids: Sequence[str] | None = None,
    system: str = "",
    feedback: Feedback | None = None,
    context: Context = "sentence",
) -> list[training.data.Example]:
    """The pairs as token ids, with the feedback in their context where one is given; see `in_context_rewards`."""
    ends = [True] * len(pairs) if ended is None else ended
    names = [f"answer to {prompt[:60]!r}" for prompt, _ in pairs] if ids is None else ids
    turns: list[tuple[str, str]] = []
    if feedback and context == "demonstrations":
        turns = [(shown.prompt, shown.answer) for shown in feedback.demonstrations]
        if not turns:
            raise ValueError(f"feedback {feedback.id!r} has no demonstrations: expected some, or context 'sentence'")
    elif feedback:
        pairs = [(answers.in_context_prompt(prompt, feedback), answer) for prompt, answer in pairs]
    return [
        training.data.encode(tokenizer, name, prompt, answer, ended=end, system=system, turns=turns)
        for name, (prompt, answer), end in zip(names, pairs, ends, strict=True)
    ]


def answer_logps(
    model: PreTrainedModel | PeftModel, examples: Sequence[training.data.Example]
) -> list[NDArray[np.float64]]:
    """log pi of every completion token of every example, (N,) each, with the trainer's forward pass.

    Answers to one prompt go through the model together, so that the prompt does so once.

    Raises:
        ValueError: an example is longer than the model's context.
    """
    import torch  # here, so that what is stored can be drawn without it

    if not examples:
        return []
    order = sorted(range(len(examples)), key=lambda i: examples[i].prompt_ids)
    rows = [{"chosen_prompt_ids": examples[i].prompt_ids, "chosen_ids": examples[i].completion_ids} for i in order]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    most = engine.models.context_length(base.config)
    for example in examples:
        if (length := len(example.prompt_ids) + len(example.completion_ids)) > most:
            raise ValueError(f"{example.id}: {length} tokens of prompt and answer, more than the context of {most}")
    found: list[torch.Tensor] = []
    with torch.no_grad(), engine.fused(base):
        batches = training.objective.collate(rows, TOKENS_PER_PASS)
        for batch in progress.bar(iterable=batches, desc="log-probs", leave=False):
            lengths = batch.sequence_N.bincount().tolist()
            logps_N = training.objective.completion_logps(base, batch.to(base.device))
            found += logps_N.double().cpu().split(lengths)
    return [found[place].numpy() for place in np.argsort(order)]


def _rewards(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[training.data.Example], plus: Sequence, minus: Sequence
) -> list[AnswerReward]:
    """The rewards from both policies' log-probabilities, an array (N,) of each for every example."""
    tokens = [_pieces(tokenizer, example.completion_ids) for example in examples]
    return [AnswerReward(pieces, a - b) for pieces, a, b in zip(tokens, plus, minus, strict=True)]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's text. A character that several tokens make up stands with the last of them."""
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        whole = end == len(ids) or not text.endswith("\ufffd")
        pieces.append(text[len(done) :] if whole else "")
        done = text if whole else done
    return pieces


def measure(adapter: Path | str) -> dict[str, Any]:
    """The true and the learned reward of the test prompts' answers that `MEASURED` names.

    Minutes on a CPU for 72 short answers of the embedded model, in float32.

    Args:
        adapter: the folder of a finished training stage, `<run>/train/<feedback>/<method>`; its feedback needs
            demonstrations.

    Raises:
        ValueError: a gate lies there, or no in-scope test prompt has a revised answer.

    Returns:
        JSON-serializable: what was measured; `answers`, totals in nats of every answer; `maps`, the rewards of
        each token of a typical prompt's answers in each split (see `typical`).
    """
    adapter = Path(adapter)
    if gated := training.stage.gated_folder(adapter):
        raise ValueError(f"{adapter} is a gate: expected the folder of an adapter, such as {gated}")
    run, feedback_id = adapter.parents[2], adapter.parent.name
    settings, feedback = stored_settings(run, feedback_id), stored_feedback(run, feedback_id)
    rows = [
        {key: row[key] for key in ("id", "split", "prompt")}
        | {"answer": column, "text": row[column], "ended": row[f"{column}_status"] == "ok"}
        for split, column in MEASURED
        for row in load_rows(run, feedback_id, "test")
        if row["split"] == split and row.get(column)
    ]
    if not any(row["answer"] == "revised" for row in rows):
        raise ValueError(f"{feedback_id!r}: expected a revised answer to an in-scope test prompt of {run}, found none")
    pairs = [(row["prompt"], row["text"]) for row in rows]
    known = {"system": settings.system_prompt, "ended": [row["ended"] for row in rows]}
    known["ids"] = [f"{row['id']} ({row['answer']})" for row in rows]

    model, tokenizer = engine.load_model(settings.model, dtype="float32"), engine.load_tokenizer(settings.model)
    true = in_context_rewards(model, tokenizer, pairs, feedback, context="demonstrations", **known)
    learned = adapter_rewards(training.adapters.load_adapter(model, adapter), tokenizer, pairs, **known)
    measured = list(zip(rows, true, learned, strict=True))
    totals = [_totals(*row) for row in measured]
    chosen = typical(totals)
    return {
        "model": settings.model, "feedback": feedback_id, "content": feedback.content, "method": adapter.name,
        "adapter": training.adapter_hash(adapter), "packages": stage.packages(), "answers": totals,
        "maps": [_map(*row, tokenizer.eos_token) for row in measured if row[0]["id"] == chosen[row[0]["split"]]],
    }  # fmt: skip


def _totals(row: dict, true: AnswerReward, learned: AnswerReward) -> dict:
    kept = {key: row[key] for key in ("id", "split", "answer")}
    return kept | {"tokens": len(true.tokens), "true": round(true.total, 2), "learned": round(learned.total, 2)}


def _map(row: dict, true: AnswerReward, learned: AnswerReward, eos: str) -> dict:
    kept = {key: row[key] for key in ("id", "split", "answer", "prompt")}
    tokens = [token.replace(eos, "[end]") for token in true.tokens]
    values = {"true": true.values, "learned": learned.values}
    return kept | {"tokens": tokens} | {name: [round(float(x), 2) for x in found] for name, found in values.items()}


def typical(totals: list[dict]) -> dict[str, str]:
    """By rule, the id of one prompt per split: the one with the median learned reward.

    In scope that is the margin between the revised and the baseline answer; prompts without either are left out.
    """
    table = pd.DataFrame(totals)
    inside, revised = table["split"] == "in_scope", table["answer"] == "revised"
    table["margin"] = table["learned"].where(~inside | revised, -table["learned"])
    whole = table[~inside | table["id"].isin(table.loc[revised, "id"])]
    ranked = whole.groupby(["split", "id"], sort=False)["margin"].sum().reset_index().sort_values(["margin", "id"])
    return {split: ids.iloc[len(ids) // 2] for split, ids in ranked.groupby("split")["id"]}
