"""Lists without repeats from a model: ask for what is missing, drop what is there already, report the rest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from c3po_utils.chat import ChatModel, Sampling, request, structured_output, types
from c3po_utils.feedback import Text, folded
from c3po_utils.runs import parameters

# At the end of a question for more.
AVOID = """

These are there already; give none of them again, nor one that resembles them:
{listed}"""

SHOWN = 60  # items that a model is asked not to repeat, at most


class Listing(structured_output.Form):
    """A list that was thought about, drafted and revised."""

    thoughts: str = Field("", description="your thoughts")
    draft: tuple[str, ...] = Field((), description="an entry of your draft")
    review: str = Field("", description="what has to be changed in the draft")
    items: tuple[Text, ...] = Field(description="an entry of the revised list")


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    A call asks for `at_once` items; one whose answer is unusable is tried `tries` times; `spare_rounds` more rounds
    than needed replace repeats, and a call that failed is made again as often. Two texts whose character trigrams
    overlap (Jaccard) by `resemblance` or more count as one: no two bundled prompts of a split, written by people, come
    to more than 0.52; one word changed in a short prompt leaves about 0.8.
    """

    at_once: int = 16
    tries: int = 2
    spare_rounds: int = 3
    resemblance: float = 0.7
    max_new_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"at_once": 1, "tries": 1, "spare_rounds": 0, "max_new_tokens": 1, "seed": 0}
        parameters.at_least(vars(self), least, "effort")
        if not 0 < self.resemblance <= 1:
            raise ValueError(f"effort 'resemblance': expected a share above 0 and up to 1, found {self.resemblance}")

    @property
    def sampling(self) -> Sampling:
        """The paper's settings for the strong model."""
        return Sampling(top_k=0, max_new_tokens=self.max_new_tokens, seed=self.seed)


@dataclass
class Target:
    """A list to be filled: `ask(count=..., avoid=...)` is the prompt for more; `kept` is what came of it."""

    id: str
    want: int
    ask: Callable[..., str]
    form: type[structured_output.Form] = Listing
    group: str = ""  # near-duplicates are looked for in the same group
    text: Callable[[Any], str] = str
    kept: list = field(default_factory=list)
    at_once: int | None = None  # less than the effort's after an answer met its token limit

    @property
    def missing(self) -> int:
        return self.want - len(self.kept)

    def question(self, at_once: int, turn: int) -> structured_output.Question:
        count = min(self.missing, self.at_once or at_once)
        listed = "\n".join(f"- {self.text(item)}" for item in self.kept[-SHOWN:])
        prompt = self.ask(count=count, avoid=AVOID.format(listed=listed) if listed else "")
        return structured_output.Question(f"{self.id}#{turn}", request("", prompt).messages, replicate=turn)


@dataclass
class Report:
    """What was wanted, offered and kept. offered = kept + repeats + surplus; calls = answered + rejected."""

    wanted: int = 0
    kept: int = 0
    offered: int = 0
    repeats: Counter = field(default_factory=Counter)  # `exact` or `near`
    surplus: int = 0
    calls: int = 0
    answered: int = 0
    rejected: Counter = field(default_factory=Counter)  # calls by kind of rejection
    short: dict[str, int] = field(default_factory=dict)  # how many are missing, by list
    failed: dict[str, str] = field(default_factory=dict)  # why a call for more could not be made, by list

    def __str__(self) -> str:
        lines = [
            f"{self.kept} of {self.wanted} kept, of {self.offered} offered ({self.repeats['exact']} exact and"
            f" {self.repeats['near']} near repeats, {self.surplus} too many)",
            f"{self.answered} of {self.calls} calls answered" + "".join(f", {n} {k}" for k, n in self.rejected.items()),
        ]
        for id, missing in self.short.items():
            why = f", for a call failed: {self.failed[id]}" if id in self.failed else ""
            lines.append(f"{id}: {missing} missing{why}")
        return "\n".join(lines)


class Short(RuntimeError):
    """Lists stayed short after all rounds, or calls failed, as `report` says.

    Allow it, raise the rounds, or run again to make the calls that failed: answers are stored.
    """

    def __init__(self, report: Report):
        super().__init__(f"not everything could be had (the option allow_short goes on with what there is):\n{report}")
        self.report = report


class Seen:
    """The texts there are. An exact repeat is one of any group, a near one of the same group."""

    def __init__(self, resemblance: float):
        self._resemblance = resemblance
        self._exact: set[str] = set()
        self._trigrams: dict[str, list[set[str]]] = {}

    def repeats(self, text: str, group: str) -> str:
        """`exact`, `near`, or "": then the text is added. A text without letters and digits repeats any other."""
        plain = folded(text.replace("_", " "))  # categories `work trips` and `work_trips` would have one id
        if plain in self._exact or not plain:
            return "exact"
        padded, others = f" {plain} ", self._trigrams.setdefault(group, [])
        trigrams = {padded[start : start + 3] for start in range(len(padded) - 2)}
        if any(self._near(trigrams, other) for other in others):
            return "near"
        self._exact.add(plain)
        others.append(trigrams)
        return ""

    def _near(self, one: set[str], other: set[str]) -> bool:
        small, large = sorted((len(one), len(other)))
        if small < self._resemblance * large:
            return False
        common = len(one & other)
        return common >= self._resemblance * (small + large - common)


def unnumbered(items: Sequence[Any]) -> Sequence[Any]:
    """Texts without the numbers 1, 2, 3, ... that a model put before each of them."""
    if len(items) < 2 or not all(isinstance(item, str) for item in items):
        return items
    bare = [re.sub(rf"^{number}[.)]\s+(?=\S)", "", item) for number, item in enumerate(items, 1)]
    return bare if all(len(after) < len(before) for after, before in zip(bare, items, strict=True)) else items


def fill(
    model: ChatModel,
    targets: Sequence[Target],
    effort: Effort,
    seen: Seen,
    report: Report,
    desc: str = "",
    allow_short: bool = False,
) -> None:
    """Fill the targets, all of them in each round. What a round keeps depends on the answers, not on their order.

    Nor does it depend on calls that failed on the way: a list whose call fails for good stays short. Were something
    else asked in its place, the next run, which makes that call, would come to other lists, and pay for all that hangs
    on them again.

    Raises:
        Short: calls failed, and `allow_short` is False, or more than half of the lists in a round met that.
    """
    report.wanted += sum(target.missing for target in targets)
    most = math.ceil(max((target.missing for target in targets), default=0) / effort.at_once) + effort.spare_rounds
    outage = False
    for turn in range(most):
        waiting = [target for target in targets if target.missing > 0 and target.id not in report.failed]
        if outage or not waiting:
            break
        questions = [target.question(effort.at_once, turn) for target in waiting]
        answers = _ask(model, questions, waiting[0].form, effort, f"{desc}, round {turn + 1}" * bool(desc))
        for target, question in zip(waiting, questions, strict=True):
            _take(target, answers[question.id], seen, report)
            if answers[question.id].kind == "truncated":
                target.at_once = max((target.at_once or effort.at_once) // 2, 1)
        failed = sum(target.id in report.failed for target in waiting)
        outage = failed > (len(waiting) / 2 if allow_short else 0)
    report.short |= {target.id: target.missing for target in targets if target.missing > 0}
    if outage:
        raise Short(report)


def _ask(
    model: ChatModel,
    questions: Sequence[structured_output.Question],
    form: type[structured_output.Form],
    effort: Effort,
    desc: str,
) -> dict[str, structured_output.Answer]:
    """The questions' answers by id; calls that failed are made again, as often as there are spare rounds."""
    answers: dict[str, structured_output.Answer] = {}
    waiting = questions
    for _ in range(1 + effort.spare_rounds):
        answers |= structured_output.ask_forms(model, waiting, form, effort.sampling, tries=effort.tries, desc=desc)
        failed = {id for id, answer in answers.items() if answer.kind == "failed" and types.answerable(answer.reason)}
        waiting = [question for question in questions if question.id in failed]
    return answers


def _take(target: Target, answer: structured_output.Answer, seen: Seen, report: Report) -> None:
    rejections = sum(answer.rejections.values())
    report.calls += rejections + (answer.value is not None)
    report.answered += answer.value is not None
    report.rejected.update(answer.rejections)
    if answer.kind == "failed":
        report.failed[target.id] = answer.reason
    for item in unnumbered(answer.value.items) if answer.value else ():
        report.offered += 1
        if not target.missing:
            report.surplus += 1
        elif repeat := seen.repeats(target.text(item), target.group):
            report.repeats[repeat] += 1
        else:
            target.kept.append(item)
            report.kept += 1


def made_up(request: types.Request, keys: Sequence[str] = (), count: int = 60) -> str:
    """An answer of `count` items unlike any others, each a text or an object of `keys`: for a dry run."""
    digests = [hashlib.sha512(f"{request.id} {number}".encode()).hexdigest()[:90] for number in range(count)]
    return json.dumps({"items": [{key: f"{key} {text}" for key in keys} if keys else text for text in digests]})
