"""Feedback records and the bundled prompts: load, validate, find. feedback/README.md has the schema."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from c3po_utils.feedback import patterns, structure  # noqa: F401  structure registers its metrics
from c3po_utils.feedback.files import FeedbackError, Place, Record, Slug, Text, parse_json, read_yaml
from c3po_utils.feedback.metrics import Metric, check
from c3po_utils.runs import BUNDLED, nearest

FEEDBACK_FOLDER = BUNDLED / "feedback"

Split = Literal["in_scope", "near_scope", "out_of_scope"]
SPLITS: tuple[Split, ...] = get_args(Split)
Prompts = TypeVar("Prompts", bound=Record)  # of one feedback, whose id is in it


class Demonstration(Record):
    """A prompt in the domain, and an answer that shows the effect."""

    prompt: Text
    answer: Text


class Examples(Record):
    """Answers that the metric accepts, and answers that it rejects; `baseline` is what it compares them with."""

    passing: tuple[Text, ...]
    failing: tuple[Text, ...]
    baseline: Text | None = None


class Feedback(Record):
    """One sentence of feedback (`content`), where it applies (`domain`), and what it changes (`effect`)."""

    id: Slug
    content: Text
    domain: Text
    effect: Text
    source: Literal["human", "model", "program"]
    kind: Literal["style", "content"]
    scope: Literal["global", "regional", "local"] | None = None
    categories: tuple[Text, ...] = ()
    metric: Metric | None = None  # without one, a language model judges
    demonstrations: tuple[Demonstration, ...] = ()
    examples: Examples | None = None  # the metric is tried on them; they change nothing that is sampled or trained

    @model_validator(mode="after")
    def _the_metric_tells_answers_apart(self) -> Feedback:
        """It accepts demonstrations (parts that need a baseline's answer aside), and judges examples as they say."""
        if failures := [*self._failed_demonstrations(), *self._failed_examples()]:
            raise ValidationError.from_exception_data("Feedback", failures)
        return self

    def passes(self, answer: str, baseline: str) -> bool:
        """Whether an answer shows the effect, beside the untuned model's, by the metric that the feedback must have.

        Raises patterns.EndlessSearch, which names feedback, metric and pattern, where a search is given up.
        """
        try:
            return check(self.metric, answer, baseline)
        except patterns.EndlessSearch as error:
            raise patterns.EndlessSearch(f"feedback {self.id}, {error}") from error

    def _failed_demonstrations(self) -> Iterator[InitErrorDetails]:
        parts = [part for part in self.metric.parts() if not part.needs_baseline] if self.metric else []
        for number, shown in enumerate(self.demonstrations):
            for part in parts:
                if not check(part, shown.answer, ""):
                    expected = f"expected an answer that passes the metric {part.name!r}"
                    yield _failure(expected, shown.answer, "demonstrations", number, "answer")

    def _failed_examples(self) -> Iterator[InitErrorDetails]:
        if self.examples and not self.metric:
            yield _failure("expected a metric to be tried on them", self.examples.passing, "examples")
        elif self.examples and not self.examples.baseline and any(part.needs_baseline for part in self.metric.parts()):
            yield _failure("expected a baseline's answer that the metric compares with", None, "examples", "baseline")
        elif self.examples:
            for key, verb in (("passing", "passes"), ("failing", "fails")):
                for number, answer in enumerate(getattr(self.examples, key)):
                    if check(self.metric, answer, self.examples.baseline or "") != (key == "passing"):
                        expected = f"expected an answer that {verb} the metric {self.metric.name!r}"
                        yield _failure(expected, answer, "examples", key, number)


def _failure(expected: str, found: Any, *loc: int | str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("no_effect", expected), loc=loc, input=found)


class Category(Record):
    """A kind of situation with prompts where the feedback applies, and tempting ones where it does not."""

    name: Text
    in_scope: tuple[Text, ...]
    near_scope: tuple[Text, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the id that it keeps for good: `boss_signoff/in_scope/running-late/03`, `general/017`."""

    id: str
    split: Split
    category: str
    text: str


class PromptSet(Record):
    """The prompts of a feedback, as in feedback/prompts/<id>.json."""

    feedback: Slug
    categories: tuple[Category, ...]

    @property
    def prompts(self) -> list[Prompt]:
        """Those in scope, then those near scope, by category."""
        return [
            Prompt(f"{self.feedback}/{split}/{slug(category.name)}/{number:02}", split, category.name, text)
            for split in ("in_scope", "near_scope")
            for category in self.categories
            for number, text in enumerate(getattr(category, split), 1)
        ]


class GeneralPrompt(Record):
    """A line of feedback/prompts/general.jsonl: a prompt that no feedback applies to."""

    id: Slug
    kind: Slug
    prompt: Text


def slug(name: str) -> str:
    """A category's name as ids have it: `Running late!` is `running-late`."""
    return re.sub(r"[\W_]+", "-", name.casefold()).strip("-")


def load_feedbacks(*paths: Path | str) -> list[Feedback]:
    """The records of YAML files, each a list below the top key `feedbacks`, in the order given.

    Raises FeedbackError with every problem of every file: file, line, key, what was expected, what was found.
    An id that is given twice is a problem that names both places.
    """
    records, problems = read_feedbacks(*paths)
    if problems:
        raise FeedbackError(problems)
    return records


def read_feedbacks(*paths: Path | str) -> tuple[list[Feedback], list[str]]:
    """The records that are right, and the problems of all files."""
    records: list[Feedback] = []
    problems: list[str] = []
    places: dict[str, Place] = {}
    for path in paths:
        found, wrong = _read(Path(path))
        problems += wrong
        for record, place in found:
            if record.id in places:
                problems.append(f"{place()}, id: expected a new id, found {record.id!r} of {places[record.id]()}")
            places.setdefault(record.id, place)
            records.append(record)
    return records, problems


_RIGHT: dict[tuple[str, int, int], list[tuple[Feedback, Place]]] = {}  # what was read of files without problems


def _read(path: Path) -> tuple[list[tuple[Feedback, Place]], list[str]]:
    """A file's records with their places, and its problems; one that is as it was is not read again."""
    key = (str(path), path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
    if key in _RIGHT:
        return _RIGHT[key], []
    found, wrong = read_yaml(path, "feedbacks", Feedback)
    if key and not wrong:  # what is wrong now may be right when a metric of one's own is registered
        _RIGHT[key] = found
    return found, wrong


def feedback_set(name: str | Path) -> Path:
    """The file of a set: `embedded` is feedback/embedded.yaml, and the path of a YAML file is itself.

    Raises FeedbackError, with the nearest name, when there is no such file.
    """
    is_path = isinstance(name, Path) or "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if is_path else FEEDBACK_FOLDER / f"{name}.yaml"
    if not path.is_file():
        sets = [file.stem for file in all_sets()]
        raise FeedbackError([f"no feedback set {str(name)!r}: expected the file {path} ({nearest(path.stem, sets)})"])
    return path


def by_id(feedbacks: Sequence[Feedback], ids: Iterable[str]) -> list[Feedback]:
    """The feedbacks with these ids, in their order, each once. Raises FeedbackError, with the nearest, for unknown."""
    known = {feedback.id: feedback for feedback in feedbacks}
    wanted = dict.fromkeys(ids)
    if unknown := [id for id in wanted if id not in known]:
        raise FeedbackError(f"no feedback has the id {id!r} ({nearest(id, known)})" for id in unknown)
    return [known[id] for id in wanted]


def feedback_id(name: str) -> str:
    """The id in `id` or `path/to/set.yaml#id`, by either of which notebooks name a feedback."""
    return name.rpartition("#")[2]


def all_sets() -> list[Path]:
    """The files of all sets in feedback/."""
    return sorted(FEEDBACK_FOLDER.glob("*.yaml"))


def find_feedback(name: str) -> Feedback:
    """The record of this id among the sets in feedback/, or, for `path/to/set.yaml#id`, in that file."""
    path, _, id = name.rpartition("#")
    return by_id(load_feedbacks(*([Path(path).expanduser()] if path else all_sets())), [id])[0]


def load_prompts(feedback_id: str, folder: Path | str = FEEDBACK_FOLDER / "prompts") -> list[Prompt]:
    """The bundled in-scope, then near-scope, prompts of a feedback.

    Raises FeedbackError for a feedback without bundled prompts, and for a malformed file, naming its keys.
    """
    prompt_set, path = read_prompts(feedback_id, Path(folder), PromptSet)
    _refuse_repeated((slug(category.name) for category in prompt_set.categories), f"{path}, categories, name")
    return prompt_set.prompts


def read_prompts(feedback_id: str, folder: Path, kind: type[Prompts]) -> tuple[Prompts, Path]:
    """A feedback's file of prompts of this kind, and its path. Raises as `load_prompts`."""
    path = folder / f"{feedback_id}.json"
    if not path.is_file():
        bundled = [file.stem for file in folder.glob("*.json")]
        raise FeedbackError([f"no prompts for {feedback_id!r}: expected {path} ({nearest(feedback_id, bundled)})"])
    found = parse_json(path.read_bytes(), kind, path)
    if found.feedback != feedback_id:
        raise FeedbackError([f"{path}, feedback: expected {feedback_id!r}, found {found.feedback!r}"])
    return found, path


def load_general_prompts(path: Path | str = FEEDBACK_FOLDER / "prompts" / "general.jsonl") -> list[Prompt]:
    """The out-of-scope prompts, the same for every feedback. Raises FeedbackError with file, line and key."""
    rows, problems = [], []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(parse_json(line.rstrip(b"\r\n"), GeneralPrompt, Path(path), number))
            except FeedbackError as error:
                problems += error.problems
    if not rows and not problems:
        problems = [f"{path}, line 1: expected a prompt on each line, found nothing"]
    if problems:
        raise FeedbackError(problems)
    _refuse_repeated((row.id for row in rows), f"{path}, id")
    return [Prompt(f"general/{r.id.removeprefix('general-')}", "out_of_scope", r.kind, r.prompt) for r in rows]


def _refuse_repeated(names: Iterable[str], place: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise FeedbackError([f"{place}: expected each once, found {twice[0]!r} again"])
