"""Greedy answers of two engines with the same weights: how many are equal, and how near a tie the others part.

In bfloat16 two engines that add in another order part somewhere in most longer answers: logits of 16 to 32 are
multiples of an eighth, so ties are common, and what follows a tie is another text. Hence tokens are compared too, each
after what was answered before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from c3po_utils.chat import Sampling, ask
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import ChatModel, Request


def agreement(local: LocalChat, served: ChatModel, requests: Sequence[Request], sampling: Sampling) -> dict[str, Any]:
    """Counts of equal answers, and for each other the tie at which it parts (see `parting`); and of equal tokens, where
    ours reads their answer (see `same_tokens`)."""
    ours, theirs = (ask(model, requests, sampling) for model in (local, served))
    tokens = [same_tokens(local, each, theirs[each.id].text) for each in requests]
    parted = [
        {"id": each.id, **parting(local, each, ours[each.id].text, theirs[each.id].text)}
        for each in requests
        if ours[each.id].text != theirs[each.id].text
    ]
    return {
        "asked": len(requests),
        "equal": len(requests) - len(parted),
        "tokens": sum(map(len, tokens)),
        "same_tokens": sum(map(sum, tokens)),
        "answered": sum(outcome.usable for outcome in theirs.values()),
        "same_status": sum(ours[id].status == theirs[id].status for id in ours),
        "parted": sorted(parted, key=lambda each: -each["gap"]),
    }


@torch.inference_mode()
def same_tokens(local: LocalChat, request: Request, theirs: str) -> list[bool]:
    """For each token of an answer, whether the local model too would choose it after those before."""
    (prompt, _), answer = local.encode(request), local.tokenizer(theirs, add_special_tokens=False).input_ids
    ids = torch.tensor([prompt + answer], device=local.model.device)
    logits_TV = local.model(ids).logits[0, len(prompt) - 1 : -1]
    return (logits_TV.argmax(-1).cpu() == torch.tensor(answer)).tolist()


@torch.inference_mode()
def parting(local: LocalChat, request: Request, ours: str, theirs: str) -> dict[str, Any]:
    """Where two answers part: after how many tokens, and by how much the local model prefers its own token there.

    `gap` is log p(our token) - log p(their token), `top2` that of its two likeliest tokens.
    """
    first, second = (
        [*local.tokenizer(text, add_special_tokens=False).input_ids, min(local.eos)] for text in (ours, theirs)
    )
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    prompt, _ = local.encode(request)
    logits_V = local.model(torch.tensor([prompt + first[:common]], device=local.model.device)).logits[0, -1].float()
    logps_V = logits_V.log_softmax(-1)
    best, next_best = logps_V.topk(2).values.tolist()
    gap = (logps_V[first[common]] - logps_V[second[common]]).item()
    return {"after": common, "gap": round(gap, 4), "top2": round(best - next_best, 4)}
