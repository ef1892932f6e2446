"""Prompts for a feedback from a strong model: categories, then in-scope and near-scope (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c3po_utils.chat import ChatModel
from c3po_utils.feedback import Feedback, Prompt, records
from c3po_utils.runs import files
from c3po_utils.sampling.deduplicated import Effort, Report, Seen, Short, Target, top_up

# For a strong model. What is to be returned, and in which form, is said by `elicit`; steps: think, list,
# revise.

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


@dataclass(frozen=True)
class Proposal:
    """What came of a proposal: prompts with their final ids, by category and split, and the report."""

    categories: list[str]
    prompts: list[Prompt]
    report: Report


def propose_prompts(
    feedback: Feedback,
    model: ChatModel,
    *,
    category_model: ChatModel | None = None,
    categories: int | Sequence[str] = 30,
    per_category: int = 32,
    effort: Effort | None = None,
    allow_short: bool = False,
    progress: bool = False,
) -> Proposal:
    """In-scope and near-scope prompts, `per_category` of each in every category. Defaults are the paper's.

    `categories` is how many to ask for, or the list of them. Rerun with the same ledger, it asks only for
    what is missing and comes to the same prompts.

    Raises:
        Short: something could not be had in all rounds, and `allow_short` is False.
    """
    effort, report = effort or Effort(), Report()
    desc = feedback.id if progress else ""
    names = _categories(feedback, category_model or model, categories, effort, report, desc)
    if report.short and not allow_short:
        raise Short(report)
    seen, filled = Seen(effort.resemblance), {}
    for split in ("in_scope", "near_scope"):
        targets = [_target(feedback, split, name, per_category, filled) for name in names]
        top_up(model, targets, effort, seen, report, desc and f"{desc}, {split}")
        filled[split] = dict(zip(names, [target.kept for target in targets], strict=True))
    if report.short and not allow_short:
        raise Short(report)
    prompts = [
        Prompt(f"{feedback.id}/{split}/{_slug(name)}/{number:02}", split, name, text)
        for split, by_category in filled.items()
        for name, texts in by_category.items()
        for number, text in enumerate(texts, 1)
    ]
    return Proposal(names, prompts, report)


def _slug(name: str) -> str:
    return records.Category(name=name, in_scope=(), near_scope=()).slug


def _categories(
    feedback: Feedback,
    model: ChatModel,
    wanted: int | Sequence[str],
    effort: Effort,
    report: Report,
    desc: str,
) -> list[str]:
    if not isinstance(wanted, int):
        return list(wanted)
    target = _category_target(feedback, wanted)
    top_up(model, [target], effort, Seen(effort.resemblance), report, desc and f"{desc}, categories")
    return target.kept


def _category_target(feedback: Feedback, count: int) -> Target:
    return Target(f"{feedback.id}/categories", count, lambda n, avoid: CATEGORIES.format(**_about(feedback, n, avoid)))


def _target(feedback: Feedback, split: str, category: str, want: int, filled: dict[str, dict[str, list]]) -> Target:
    """The list of one category's prompts; near-scope ones are asked for beside in-scope ones of the
    category."""
    shown = filled.get("in_scope", {}).get(category, [])[:EXAMPLES]
    examples = "\n".join(f"- {text}" for text in shown) or "(none are at hand)"
    template = IN_SCOPE if split == "in_scope" else NEAR_SCOPE

    def ask(count: int, avoid: str) -> str:
        return template.format(category=category, examples=examples, **_about(feedback, count, avoid))

    return Target(f"{feedback.id}/{split}/{_slug(category)}", want, ask, group=split)


def _about(feedback: Feedback, count: int, avoid: str) -> dict[str, object]:
    about = {"feedback": feedback.content, "domain": feedback.domain, "effect": feedback.effect}
    return {**about, "count": count, "avoid": avoid}


def write_prompts(folder: Path | str, feedback_id: str, proposal: Proposal) -> Path:
    """The proposal as `<folder>/<feedback_id>.json`, which `load_prompts` reads like the bundled ones."""
    parts = {
        name: {
            split: tuple(p.text for p in proposal.prompts if (p.category, p.split) == (name, split))
            for split in ("in_scope", "near_scope")
        }
        for name in proposal.categories
    }
    prompt_set = records.PromptSet(
        feedback=feedback_id, categories=tuple(records.Category(name=name, **part) for name, part in parts.items())
    )
    return files.write_atomic(Path(folder) / f"{feedback_id}.json", prompt_set.model_dump_json(indent=2) + "\n")
