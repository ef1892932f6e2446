"""Conversations as a model's own chat template spells them: one way, whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

PROBE = "a message of the system's"


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
    """The conversation through the model's own chat template.

    Where the template refuses a system message (Gemma's) or passes over it, it opens the first user turn, in every
    conversation of the model alike.

    Raises:
        TemplateError: the template refuses the conversation.
    """
    first, *rest = messages
    if first["role"] == "system" and rest and not _knows_system(tokenizer):
        messages = [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs)


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> list[int]:
    """The token ids of `render`'s text."""
    return tokenizer(render(tokenizer, messages, **kwargs), add_special_tokens=False).input_ids


def _knows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template spells a system message out.

    Asked with an answer at the end, and with none: some place it in the last user turn, if that is the last of all
    (Mistral's later ones), so that an answer would change the prompt before it.
    """
    asked = [{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}]
    answered = [*asked, {"role": "assistant", "content": "!"}]
    try:
        return all(PROBE in tokenizer.apply_chat_template(one, tokenize=False) for one in (asked, answered))
    except TemplateError:
        return False
