"""Conversations as the tokens that a model is given, and why some cannot be answered: alike for every engine."""

from __future__ import annotations

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from c3po_utils.chat.types import EMPTY, NO_ROOM, REFUSED, Request
from c3po_utils.engine import templates


def encode(tokenizer: PreTrainedTokenizerBase, context: int, request: Request) -> tuple[list[int], str]:
    """The prompt's tokens, and why it cannot be answered within `context` tokens, if so."""
    if not request.messages or not request.messages[-1]["content"].strip():
        return [], EMPTY
    try:
        prompt = templates.encode(tokenizer, request.messages, add_generation_prompt=True)
    except TemplateError as error:
        return [], f"{REFUSED}: {error}"
    full = len(prompt) >= context
    return prompt, f"prompt of {len(prompt)} tokens {NO_ROOM} context of {context}" * full
