"""Structured answers from any chat model: JSON by schema or tagged text; exact, or rejected by type."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from c3po_utils.chat.schemas import Form, Kind, Rejected, outline, own_words, parse, template
from c3po_utils.chat.types import ChatModel, Message, Outcome, Request, Sampling

# The form of an answer, followed by an outline of it.
ANSWER_JSON = "Answer with one JSON object of this form, and nothing else: "
ANSWER_TAGGED = """Answer in exactly this form, each tag once, and nothing outside the tags:
"""

RETRY = 1_000_000  # replicates of a question's further tries: far from the caller's own numbers


F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class Question:
    """A conversation to be answered with a form; `replicate` as in a request."""

    id: str
    messages: tuple[Message, ...]
    replicate: int = 0


@dataclass(frozen=True)
class Answer(Generic[F]):
    """A question's answer, or the last rejection; `rejections` counts all of them by kind."""

    id: str
    value: F | None
    kind: Kind | None = None
    reason: str = ""
    rejections: Counter = field(default_factory=Counter)


def ask_forms(
    model: ChatModel,
    questions: Sequence[Question],
    form: type[F],
    sampling: Sampling,
    *,
    tries: int = 3,
    desc: str = "",
) -> dict[str, Answer[F]]:
    """Every question's answer by id, asking again (as another replicate) up to `tries` times for what is rejected.

    Calls that failed are not asked again here: the client has retried them, and the next run will. Where a
    server turns out to refuse schemas, which costs nothing, the same try is made as tagged text.
    """
    answers: dict[str, Answer[F]] = {}
    rejections = {question.id: Counter() for question in questions}
    if len(rejections) < len(questions):
        raise ValueError("question ids must differ: answers are matched by id")
    waiting, turn = list(questions), 0
    while waiting and turn < tries:
        structured = getattr(model, "supports_schema", False)
        asked = {(one := _request(question, form, structured, turn)).id: (question, one) for question in waiting}
        requests, label = [one for _, one in asked.values()], f"{desc} (try {turn + 1})" * bool(desc)
        for outcome in model.complete(requests, sampling, desc=label):
            id = asked[outcome.id][0].id
            answers[id] = _answer(replace(outcome, id=id), form, rejections[id])
        waiting = [question for question in waiting if answers[question.id].value is None]
        if getattr(model, "supports_schema", False) == structured:  # else the same try, in the other form
            waiting, turn = [question for question in waiting if answers[question.id].kind != "failed"], turn + 1
    return {question.id: answers[question.id] for question in questions}


def _request(question: Question, form: type[Form], structured: bool, turn: int) -> Request:
    *before, last = question.messages
    how = ANSWER_JSON + json.dumps(outline(form)) if structured else ANSWER_TAGGED + template(form)
    messages = (*before, {**last, "content": f"{last['content']}\n\n{how}"})
    schema = form.schema_for_api() if structured else None
    id = f"{question.id} (try {turn + 1})" if turn else question.id  # a local model's seed hangs on it
    return Request(id, messages, schema, question.replicate + RETRY * turn)


def _answer(outcome: Outcome, form: type[F], rejections: Counter) -> Answer[F]:
    kind, reason = outcome.status, outcome.reason
    if outcome.status == "ok":
        try:
            return Answer(outcome.id, own_words(parse(outcome.text, form)), rejections=rejections)
        except Rejected as error:
            kind, reason = error.kind, str(error)
    rejections[kind] += 1
    return Answer(outcome.id, None, kind, reason, rejections)
