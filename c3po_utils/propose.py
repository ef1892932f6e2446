"""Prompts for a feedback from a strong model: categories, then in-scope and near-scope (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c3po_utils.chat import ChatModel
from c3po_utils.feedback import Category, Feedback, Prompt, PromptSet
from c3po_utils.prompts import CATEGORIES, IN_SCOPE, NEAR_SCOPE
from c3po_utils.runs import write_atomic
from c3po_utils.topup import Effort, Report, Seen, Short, Target, top_up

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
    return Category(name=name, in_scope=(), near_scope=()).slug


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
    prompt_set = PromptSet(
        feedback=feedback_id, categories=tuple(Category(name=name, **part) for name, part in parts.items())
    )
    return write_atomic(Path(folder) / f"{feedback_id}.json", prompt_set.model_dump_json(indent=2) + "\n")
