"""Greedy answers of this kit's loops against transformers' `generate`, told apart from near ties by a reference.

In 16 bits, two right ways of computing can pick different tokens where two are nearly as likely. So what is asked is
whether each token is the best one in float32, or as near to it as the type's own error allows: with logits that are
off by at most e, the one picked is at most 2 e worse than the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.chat.decoding import Row
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import Outcome, Sampling, request
from c3po_utils.engine import fast_paths, models
from c3po_utils.feedback import records
from c3po_utils.runs import findings

TRIED = {  # the fast paths of answering, and what they need
    "slots": (),
    "packed_linears": (),
    "decoder_layers": ("slots",),
    "streams": ("slots",),
}
PLAIN = "generate"
LIKELY = 4
TIMES = 2.0  # a fast path's logits may be off by so many times what the plain ones are
LEAST = {
    torch.float32: 1e-3,
    torch.float16: 0.05,
}  # of a logit; else 0.25: bfloat16 numbers near 16 lie 0.125 apart

Answers = dict[str, tuple[list[int], list[int]]]  # prompt and answer as tokens, by the request's id


class _Kept(LocalChat):
    """A chat model that keeps its answers' tokens."""

    kept: Answers

    def outcome(self, row: Row, status: str, text: str, reason: str = "") -> Outcome:
        self.kept[row.request.id] = (row.prompt, list(row.answer))
        return super().outcome(row, status, text, reason)


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 4, tokens: int = 12) -> Answers:
    """Greedy answers to some of the bundled general prompts, by the ways that are on."""
    prompts = [prompt.text for prompt in records.load_general_prompts()[:count]]
    chat = _Kept(model, tokenizer)
    chat.kept = {}
    asked = [request(f"{place}", text) for place, text in enumerate([*prompts, prompts[0]])]
    list(chat.complete(asked, Sampling(temperature=0, max_new_tokens=tokens)))
    return chat.kept


@torch.no_grad()
def generated(model: PreTrainedModel, known: Answers, tokens: int = 12) -> Answers:
    """What transformers' `generate` answers to the same prompts, one at a time."""
    found = {}
    with models.plain_generation(model):
        for id, (prompt, _) in known.items():
            ids = torch.tensor([prompt], device=model.device)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
            found[id] = (prompt, out[0, len(prompt) :].tolist())
    return found


@torch.no_grad()
def answer_logits(model: PreTrainedModel, known: Answers) -> list[torch.Tensor]:
    """(tokens, V), float32, at each answer's tokens, by plain forward passes."""
    with fast_paths.only():
        return [
            model(torch.tensor([prompt + answer], device=model.device)).logits[0, len(prompt) - 1 : -1].float().cpu()
            for prompt, answer in known.values()
        ]


def regret(logits: Sequence[torch.Tensor], known: Answers) -> float:
    """By how much the worst of the answers' tokens falls short of the best one."""
    return max(
        float((own.amax(-1) - own.gather(-1, torch.tensor(answer)[:, None])[:, 0]).max())
        for own, (_, answer) in zip(logits, known.values(), strict=True)
    )


def _off(logits_NV: torch.Tensor, exact_NV: torch.Tensor) -> float:
    """The largest error among the tokens that could be picked: the most likely ones."""
    likely = exact_NV.topk(LIKELY, -1).indices
    return float((logits_NV.gather(-1, likely) - exact_NV.gather(-1, likely)).abs().max())


def greedy_findings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reference: PreTrainedModel
) -> list[findings.Finding]:
    """Answers of each fast path, of none, and of transformers' `generate`; `reference` is the model in float32."""
    with fast_paths.only():
        known = dict(sorted(answers(model, tokenizer).items()))
        theirs = generated(model, known)
    exact = answer_logits(reference, theirs)
    off = max(_off(own, other) for own, other in zip(answer_logits(model, theirs), exact, strict=True))
    most = max(2 * TIMES * off, LEAST.get(model.dtype, 0.25))
    found = [_finding(PLAIN, known, theirs, regret(answer_logits(reference, known), known), most)]
    for name, needs in TRIED.items():
        with fast_paths.only(name, *needs) as taken:
            try:
                ours = dict(sorted(answers(model, tokenizer).items()))
            except Exception as error:  # whatever a fast path raises here, it is of no use here
                found.append(
                    findings.Finding(name, False, f"{type(error).__name__}: {error}", findings.SWITCHED_OFF, name)
                )
                continue
        if name in taken:
            found.append(_finding(name, ours, theirs, regret(answer_logits(reference, ours), ours), most))
    return found


def _finding(name: str, ours: Answers, theirs: Answers, worst: float, most: float) -> findings.Finding:
    same = sum(ours[id] == theirs[id] for id in theirs)
    what = (
        f"{same} of {len(theirs)} greedy answers are generate's, tokens short of the best by {worst:.2g} ({most:.2g})"
    )
    if name == PLAIN:
        return findings.Finding(name, worst <= most, what, "do not trust answers of this machine: try --dtype float32")
    return findings.Finding(name, worst <= most, what, findings.SWITCHED_OFF, name)
