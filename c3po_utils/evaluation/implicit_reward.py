"""The implicit reward of eq. 6: how much likelier an answer is under one policy than under another, token by token.

r(x, y) = log pi_plus(y | x) - log pi_minus(y | x). With pi_0 alone, pi_plus is pi_0 that has the feedback in its
prompt; after training it is the adapter, and r is what DPO multiplies by beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.engine import fused
from c3po_utils.feedback import Feedback
from c3po_utils.sampling import answers
from c3po_utils.training import data, objective

TOKENS_PER_PASS = 4096
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

    @property
    def mean(self) -> float:
        """The length-normalized reward, in nats per token."""
        return float(self.values.mean())


def adapter_rewards(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    system: str = "",
    ended: Sequence[bool] | None = None,
) -> list[AnswerReward]:
    """r = log pi_adapter(y | x) / pi_0(y | x) of each token of each answer: what training changed, and where.

    Args:
        policy: the model with its adapter active (adapters.load_adapter); pi_0 is the same model without it.
        pairs: (prompt, answer) each, at least one.
        system: the system prompt that the answers were sampled with (SampleSettings.system_prompt).
        ended: for each pair, whether the answer closes with the end-of-turn token (status `ok`); all, if left out.

    Returns:
        One AnswerReward for each pair, in order.
    """
    examples = told(tokenizer, pairs, ended, system=system)
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
    plain = told(tokenizer, pairs, ended, system=system)
    informed = told(tokenizer, pairs, ended, system=system, feedback=feedback, context=context)
    return _rewards(tokenizer, plain, answer_logps(model, informed), answer_logps(model, plain))


def told(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    ended: Sequence[bool] | None = None,
    *,
    system: str = "",
    feedback: Feedback | None = None,
    context: Context = "sentence",
) -> list[data.Example]:
    """The pairs as token ids, with the feedback in their context where one is given; see `in_context_rewards`."""
    ends = [True] * len(pairs) if ended is None else ended
    turns: list[tuple[str, str]] = []
    if feedback and context == "demonstrations":
        turns = [(shown.prompt, shown.answer) for shown in feedback.demonstrations]
        if not turns:
            raise ValueError(f"feedback {feedback.id!r} has no demonstrations: expected some, or context 'sentence'")
    elif feedback:
        pairs = [(answers.in_context_prompt(prompt, feedback), answer) for prompt, answer in pairs]
    return [
        data.encode(tokenizer, f"answer {i}", prompt, answer, ended=end, system=system, turns=turns)
        for i, ((prompt, answer), end) in enumerate(zip(pairs, ends, strict=True))
    ]


@torch.no_grad()
def answer_logps(
    model: PreTrainedModel | PeftModel, examples: Sequence[data.Example], tokens_per_pass: int = TOKENS_PER_PASS
) -> list[NDArray[np.float64]]:
    """log pi of every completion token of every example, (N,) each, with the trainer's forward pass.

    Answers to one prompt go through the model together, so that the prompt does so once.
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].prompt_ids)
    rows = [{"chosen_prompt_ids": examples[i].prompt_ids, "chosen_ids": examples[i].completion_ids} for i in order]
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found: list[torch.Tensor] = []
    with fused(base):
        for batch in tqdm(objective.collate(rows, tokens_per_pass), desc="log-probs", leave=False):
            lengths = torch.bincount(batch.sequence_N).tolist()
            found += objective.completion_logps(base, batch.to(base.device)).double().cpu().split(lengths)
    return [found[place].numpy() for place in np.argsort(order)]


def _rewards(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[data.Example],
    plus: Sequence[NDArray[np.float64]],
    minus: Sequence[NDArray[np.float64]],
) -> list[AnswerReward]:
    return [
        AnswerReward(_pieces(tokenizer, example.completion_ids), a - b)
        for example, a, b in zip(examples, plus, minus, strict=True)
    ]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's text. A character that several tokens make up stands with the last of them."""
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        whole = end == len(ids) or not text.endswith("\ufffd")
        pieces.append(text[len(done) :] if whole else "")
        done = text if whole else done
    return pieces
