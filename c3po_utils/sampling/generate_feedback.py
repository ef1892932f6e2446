"""New feedbacks from a strong model (the paper's appendix D.8, style, and D.9, content), as a set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Literal

from pydantic import Field

from c3po_utils.chat import ChatModel, DryRun, structured_output, types
from c3po_utils.feedback import Feedback, Text, files
from c3po_utils.sampling.deduplicated import Effort, Report, Seen, Short, Target, fill, made_up

# New feedbacks about how an answer is written.
STYLE_FEEDBACKS = """People who use a writing assistant tell it once, in one sentence, how they want certain
answers to be. Think of {count} such sentences about STYLE: the manner in which an answer is written, such
as its tone, length, layout, language, wording or ending, and not what it recommends or says.

Each has a domain (the kind of request it is for, narrow enough that most requests lie outside it), an
effect (what can be seen in an answer that follows it, and is not there by itself), and the content (the
sentence itself, in the words of a user, naming domain and effect).

First think about different people, what they write and read, and what annoys them. Then draft. Then go
through your draft: the domain must be easy to recognise, the effect easy to check, and neither may be a
variation of another one's. At the end, give the {count} revised ones.{avoid}"""

# New feedbacks about what an answer says.
CONTENT_FEEDBACKS = """People who use a writing assistant tell it once, in one sentence, what certain
answers should contain. Think of {count} such sentences about CONTENT: a fact, name, option, warning or
preference that an answer must bring up, use or leave out, and not the manner in which it is written.

Each has a domain (the kind of request it is for, narrow enough that most requests lie outside it), an
effect (what can be seen in an answer that follows it, and is not there by itself), and the content (the
sentence itself, in the words of a user, naming domain and effect).

First think about different people, their work, homes, tastes and obligations. Then draft. Then go through
your draft: the domain must be easy to recognise, the effect easy to check, and neither may be a variation
of another one's. At the end, give the {count} revised ones.{avoid}"""

Kind = Literal["style", "content"]
TEMPLATES = {"style": STYLE_FEEDBACKS, "content": CONTENT_FEEDBACKS}
EFFORT = Effort(at_once=10)


class Idea(structured_output.Form):
    """A feedback's three parts."""

    domain: Text = Field(description="the kind of request it is for")
    effect: Text = Field(description="what can be seen in an answer that follows it")
    content: Text = Field(description="the sentence, as a user says it")


class Ideas(structured_output.Form):
    """Feedbacks that were thought about, drafted and revised."""

    thoughts: str = Field("", description="your thoughts")
    draft: tuple[str, ...] = Field((), description="a sentence of your draft")
    review: str = Field("", description="what has to be changed in the draft")
    items: tuple[Idea, ...]


def generate_feedbacks(
    model: ChatModel,
    kind: Kind,
    count: int,
    *,
    known: Sequence[Feedback] = (),
    effort: Effort = EFFORT,
    allow_short: bool = False,
    progress: bool = False,
) -> tuple[list[Feedback], Report]:
    """`count` new feedbacks unlike each other and the `known` ones, without a metric: a model judges them.

    Raises:
        Short: fewer could be had, and `allow_short` is False; or a call failed.
    """
    report, seen = Report(), Seen(effort.resemblance)
    for feedback in known:
        seen.repeats(feedback.content, kind)
    name = f"{kind} feedbacks"
    target = Target(name, count, TEMPLATES[kind].format, Ideas, group=kind, text=attrgetter("content"))
    fill(model, [target], effort, seen, report, name * progress, allow_short)
    if report.short and not allow_short:
        raise Short(report)
    made, taken = [], {feedback.id for feedback in known}
    for idea in target.kept:
        id = files.new_id(idea.content, kind, taken)
        made.append(Feedback(id=id, source="model", kind=kind, **idea.model_dump()))
        taken.add(id)
    return made, report


def estimate(
    model: ChatModel, kind: Kind, count: int, *, known: Sequence[Feedback] = (), effort: Effort = EFFORT
) -> types.Estimate:
    """What `generate_feedbacks` would take, at most, if every answer can be used; nothing is asked."""
    dry = DryRun(model, partial(made_up, keys=tuple(Idea.model_fields), count=effort.at_once))
    generate_feedbacks(dry, kind, count, known=known, effort=effort, allow_short=True)
    return dry.total
