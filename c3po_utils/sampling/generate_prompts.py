"""Prompts for a feedback from a strong model: categories, then in-scope and near-scope prompts (section 3.2).

The templates let it think, draft and revise; the form of the answer is added by chat/structured_output.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from c3po_utils.chat import ChatModel, DryRun, types
from c3po_utils.feedback import Feedback, records
from c3po_utils.runs import files
from c3po_utils.sampling.deduplicated import Effort, Report, Seen, Short, Target, fill, made_up

# Categories of situations, slightly wider than the feedback's domain.
CATEGORIES = """Somebody who uses a writing assistant has told it: "{feedback}"
It is meant for {domain}. Where it holds, {effect}.

To teach the assistant where this holds and where it does not, we need {count} categories of situations in
which people write to it. Each category shall lie around the feedback's domain: part of what people ask
there is covered by the feedback, and part is not.

First think about who would say this, and what surrounds the domain. Then draft {count} categories. Then go
through your draft: a category in which every request would be covered is too narrow, so widen it; one in
which hardly any would be is useless, so move it closer; two that say the same become one, and a new one
takes the free place. At the end, give the {count} revised categories, two to six words each.{avoid}"""

# Prompts of one category to which the feedback applies.
IN_SCOPE = """Somebody who uses a writing assistant has told it: "{feedback}"
It is meant for {domain}. Where it holds, {effect}.

Write {count} messages that this person could send to the assistant later, all of the category "{category}",
and all such that the feedback has to be followed in the answer.

First think about what people ask in this category. Then draft {count} messages. Then go through your draft:
drop a message to which the feedback does not clearly apply, that speaks of the feedback or asks for its
effect, that needs a file or an earlier message to be answered, or that resembles another one; write a
better one instead. Length, tone and subject should vary as they do among real people. At the end, give the
{count} revised messages, word for word as they would be sent.{avoid}"""

# Prompts of the same category that tempt one to apply the feedback where it does not apply.
NEAR_SCOPE = """Somebody who uses a writing assistant has told it: "{feedback}"
It is meant for {domain}. Where it holds, {effect}.

These are messages of the category "{category}" to which the feedback applies:
{examples}

Write {count} messages of the same category that look much like those, in words or subject, and to which the
feedback does NOT apply: an assistant that follows instructions blindly would be tempted, and would be
wrong.

First think about what makes the feedback apply, and which small change makes it void: another recipient,
occasion, medium or purpose. Then draft {count} messages. Then go through your draft: if a careful reader
could still think that the feedback applies, change the message until it does not; if nobody would be
tempted, bring it closer; no two should use the same trick on the same subject, none may mention the
feedback. At the end, give the {count} revised messages, word for word as they would be sent.{avoid}"""

EXAMPLES = 6  # in-scope prompts shown when near-scope ones are asked for


def generate_prompts(
    feedback: Feedback,
    model: ChatModel,
    *,
    category_model: ChatModel | None = None,
    categories: int | Sequence[str] = 30,
    per_category: int = 32,
    effort: Effort | None = None,
    allow_short: bool = False,
    progress: bool = False,
) -> tuple[records.PromptSet, Report]:
    """In-scope and near-scope prompts, `per_category` of each in every category. Defaults are the paper's.

    `categories` is how many to ask for, or the list of them. Rerun with the same ledger, it asks only for
    what is missing and comes to the same prompts.

    Raises:
        Short: something could not be had in all rounds, and `allow_short` is False; or most calls of a round failed.
    """
    effort, report = effort or Effort(), Report()
    if isinstance(categories, int):
        wanted = _target(feedback, "categories", categories, CATEGORIES)
        label = f"{feedback.id}, categories" * progress
        fill(category_model or model, [wanted], effort, Seen(effort.resemblance), report, label, allow_short)
        categories = wanted.kept
    if report.short and not allow_short:
        raise Short(report)
    seen = Seen(effort.resemblance)
    in_scope = [
        _target(feedback, f"in_scope/{records.slug(name)}", per_category, IN_SCOPE, category=name)
        for name in categories
    ]
    fill(model, in_scope, effort, seen, report, f"{feedback.id}, in_scope" * progress, allow_short)
    near_scope = [
        _target(feedback, f"near_scope/{records.slug(name)}", per_category, NEAR_SCOPE, category=name, examples=shown)
        for name, shown in zip(categories, map(_examples, in_scope), strict=True)
    ]
    fill(model, near_scope, effort, seen, report, f"{feedback.id}, near_scope" * progress, allow_short)
    if report.short and not allow_short:
        raise Short(report)
    parts = [
        records.Category(name=name, in_scope=here.kept, near_scope=near.kept)
        for name, here, near in zip(categories, in_scope, near_scope, strict=True)
    ]
    return records.PromptSet(feedback=feedback.id, categories=parts), report


def estimate(feedback: Feedback, model: ChatModel, *, categories: int, per_category: int) -> types.Estimate:
    """What `generate_prompts` would take, at most, if every answer can be used; nothing is asked."""
    effort = Effort()
    dry = DryRun(model, partial(made_up, count=effort.at_once))
    generate_prompts(feedback, dry, categories=categories, per_category=per_category, effort=effort, allow_short=True)
    return dry.total


def _target(feedback: Feedback, name: str, want: int, template: str, **parts: str) -> Target:
    """A list that a template asks for: all of it is filled in but `count` and `avoid`."""
    ask = partial(template.format, feedback=feedback.content, domain=feedback.domain, effect=feedback.effect, **parts)
    return Target(f"{feedback.id}/{name}", want, ask, group=name.partition("/")[0])


def _examples(in_scope: Target) -> str:
    return "\n".join(f"- {text}" for text in in_scope.kept[:EXAMPLES]) or "(none are at hand)"


def write_prompts(folder: Path | str, prompt_set: records.PromptSet) -> Path:
    """The prompts as `<folder>/<feedback's id>.json`, which `load_prompts` reads like the bundled ones."""
    return files.write_atomic(Path(folder) / f"{prompt_set.feedback}.json", prompt_set.model_dump_json(indent=2) + "\n")
