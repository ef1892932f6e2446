"""New feedbacks from a strong model (the paper's appendix D.8, style, and D.9, content), as a set.

python -m c3po_utils.sampling.generate_feedback style 25 feedback/new.yaml --model openai:gpt-4.1 [--estimate]
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from c3po_utils.chat import ChatModel, DryRun, open_chat, structured_output
from c3po_utils.feedback import Feedback, Text, load_feedbacks, records
from c3po_utils.feedback import files as set_files
from c3po_utils.runs import files, parameters
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

TEMPLATES = {"style": STYLE_FEEDBACKS, "content": CONTENT_FEEDBACKS}
ID_WORDS = 5
AT_ONCE = 10


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
    kind: Literal["style", "content"],
    count: int,
    *,
    known: Sequence[Feedback] = (),
    effort: Effort | None = None,
    allow_short: bool = False,
    progress: bool = False,
) -> tuple[list[Feedback], Report]:
    """`count` new feedbacks unlike each other and the `known` ones, without a metric: a model judges them.

    Raises:
        Short: fewer could be had, and `allow_short` is False.
    """
    effort, report = effort or Effort(at_once=AT_ONCE), Report()
    seen = Seen(effort.resemblance)
    for feedback in known:
        seen.repeats(feedback.content, kind)
    name = f"{kind} feedbacks"
    target = Target(name, count, TEMPLATES[kind].format, Ideas, group=kind, text=attrgetter("content"))
    fill(model, [target], effort, seen, report, name * progress)
    if report.short and not allow_short:
        raise Short(report)
    made, taken = [], {feedback.id for feedback in known}
    for idea in target.kept:
        id = _new_id(idea.content, kind, taken)
        made.append(Feedback(id=id, source="model", kind=kind, **idea.model_dump()))
        taken.add(id)
    return made, report


def _new_id(content: str, kind: str, taken: set[str]) -> str:
    """A readable id from a sentence's first longer words; numbered where there are none, or it is taken."""
    plain = unicodedata.normalize("NFKD", content).encode("ascii", "ignore").decode().lower()
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if len(word) > 3][:ID_WORDS]
    room = set_files.LONGEST_NAME - len(f"_{len(taken) + 1}")  # an id has a limit, and words of models have none
    stem, number = "_".join(words)[:room].rstrip("_") or kind, 1
    id = stem if words else f"{stem}_1"
    while id in taken:
        number += 1
        id = f"{stem}_{number}"
    return id


def write_feedbacks(path: Path | str, feedbacks: Sequence[Feedback]) -> Path:
    """A feedback set that `load_feedbacks` reads; it is read back before this returns."""
    records = [feedback.model_dump(mode="json", exclude_defaults=True) for feedback in feedbacks]
    text = yaml.safe_dump({"feedbacks": records}, allow_unicode=True, sort_keys=False, width=110)
    written = files.write_atomic(path, text)
    if load_feedbacks(written) != list(feedbacks):
        raise RuntimeError(f"{written}: the feedbacks read back differ from those written")
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m c3po_utils.sampling.generate_feedback", description=__doc__.split("\n")[0]
    )
    parser.add_argument("kind", choices=TEMPLATES)
    parser.add_argument("count", type=int)
    parser.add_argument("to", type=Path, help="the set to be written, a YAML file that is not there yet")
    parser.add_argument("limits", nargs="*", help="key=value, such as budget_usd=1 or requests_per_minute=60")
    parser.add_argument("--model", required=True, help="openai:MODEL[@BASE_URL], or a local model")
    parser.add_argument("--ledger", type=Path, default=Path("results/feedback.sqlite"), help="where answers are kept")
    parser.add_argument("--allow-short", action="store_true", help="write fewer when no more can be had")
    parser.add_argument("--estimate", action="store_true", help="only say what it would take: calls, tokens, USD")
    options = parser.parse_intermixed_args(arguments)
    known = load_feedbacks(*sorted(records.FEEDBACK_FOLDER.glob("*.yaml")))
    model = open_chat(options.model, options.ledger, **parameters.read_overrides(options.limits))
    if options.estimate:
        dry = DryRun(model, partial(made_up, keys=tuple(Idea.model_fields), count=AT_ONCE))
        generate_feedbacks(dry, options.kind, options.count, known=known, allow_short=True)
        print(dry.total)
        return
    if options.to.exists():
        parser.error(f"{options.to} is there already: expected the name of a new file")
    made, report = generate_feedbacks(
        model, options.kind, options.count, known=known, allow_short=options.allow_short, progress=True
    )
    print(report, write_feedbacks(options.to, made), sep="\n")


if __name__ == "__main__":
    main()
