"""`c3po import`: files of the reference implementation, one or a folder of them, as ours. Nothing in them is run."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from c3po_utils.evaluation import reference as evaluations
from c3po_utils.feedback import Feedback, foreign, load_feedbacks, python_data, records, reference
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.runs import reference_configs
from c3po_utils.runs.stage import run_folder, shown
from c3po_utils.sampling import reference as sampled

KINDS = "a feedback module, sampled data, a config or an evaluation"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")  # at the end of a data folder's name
OTHER_FOLDERS = ("__pycache__",)


@dataclass(frozen=True)
class Given:
    """What the files do not say.

    `records` for source, kind and lengths; `model`, pi_0, and where its answers are cut; `feedback_sets`: YAML with the
    records that data and evaluations are of, where their modules are not imported along.
    """

    records: reference.Given = field(default_factory=reference.Given)
    model: str = ""
    max_new_tokens: int = sampled.MAX_NEW_TOKENS
    feedback_sets: Sequence[Path] = ()


@dataclass
class Found:
    """The files of a tree by kind; sampled data go by their folder."""

    modules: list[tuple[Path, ast.Module]] = field(default_factory=list)
    configs: list[Path] = field(default_factory=list)
    samples: list[Path] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)
    without_records: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"feedback modules": self.modules, "configs": self.configs}
        kinds |= {"folders of sampled data": self.samples, "evaluations": self.evaluations}
        return ", ".join(f"{len(paths)} {kind}" for kind, paths in kinds.items() if paths) or "nothing"


def import_tree(path: Path, dest: Path, given: Given | None = None, *, lenient: bool = False) -> foreign.Report:
    """Import a file or a folder of files into a run's folder: feedback/, runs/, sample/ and eval/ in it.

    A `dest` that ends with .yaml is the file that a single module or config becomes. What was imported before is left
    as it is, so that an import that was stopped goes on.

    Raises:
        FeedbackError: all that is not understood in a file, with file, line and key, unless `lenient`.
        FileExistsError: something else lies where a file is to be written.
        ValueError: data without `model`.
    """
    given, report = given or Given(), foreign.Report(lenient)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file or a folder, found nothing")
    found = _sorted(path, dest)
    report.notes.append(f"{path}: {found}")
    report.settle(found.problems)
    report.notes += [f"{path}: only constants, no records" for path in found.without_records]
    if found.samples and not given.model:
        raise ValueError(f"{found.samples[0]}: sampled data do not say which model answered: expected --model NAME")
    single = dest.suffix == ".yaml"
    if single and (found.samples or found.evaluations or len(found.modules) + len(found.configs) != 1):
        raise ValueError(f"{dest}: expected a folder for what is in {path} ({found})")
    folder = dest.parent if single else run_folder(dest)
    known = _Records(given.feedback_sets)
    sets = _modules(found, known, given, report, dest if single else folder / "feedback")
    _configs(found, sets or list(given.feedback_sets), report, dest if single else folder / "runs", folder)
    for sample in found.samples:
        if owner := known.owner(sample, sample.name, "", report):
            sampled.import_sample(sample, folder, owner, sampled.Given(given.model, given.max_new_tokens), report)
    for evaluation in found.evaluations:
        data = foreign.read_json(evaluation)
        if owner := known.owner(evaluation, evaluation.parent.name, data["feedback"], report):
            evaluations.import_evaluation(evaluation, data, folder, owner, report)
    return report


class _Records:
    """The records that data may be of, by the reference's id."""

    def __init__(self, sets: Sequence[Path]):
        self.by_key = {
            reference.reference_key(one.content, one.domain, one.effect): one for one in load_feedbacks(*sets)
        }
        self.ids = {key: one.id for key, one in self.by_key.items()}

    def owner(self, path: Path, folder: str, content: str, report: foreign.Report) -> Feedback | None:
        """The record whose id a folder's name ends with, or is, or else the one of this content."""
        match = UUID.search(folder)
        same = [one for one in self.by_key.values() if one.content == content or one.id == folder]
        if match and match[0] in self.by_key:
            return self.by_key[match[0]]
        if not match and len(same) == 1:
            return same[0]
        hint = "import its module along, or name its set with --feedback"
        report.settle([f"{path}: expected the data of a known feedback, found {folder!r}: {hint}"])
        return None


def _sorted(path: Path, dest: Path) -> Found:
    found = Found()
    for file in [path] if path.is_file() else _files(path, dest):
        try:
            _sort(file, found)
        except FeedbackError as error:
            found.problems += error.problems
    return found


def _files(path: Path, dest: Path) -> Iterator[Path]:
    """Files below a folder, in order; those in hidden folders, and what was imported before, are none of it."""
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in OTHER_FOLDERS)
        inner[:] = [name for name in inner if (Path(folder) / name).resolve() != dest.resolve()]
        links = [name for name in inner if (Path(folder) / name).is_symlink()]  # not walked into, and told
        yield from (Path(folder) / name for name in sorted([*names, *links]))


def _sort(path: Path, found: Found) -> None:
    """Raises FeedbackError for a file of no known kind."""
    if path.name in (*sampled.SPLIT_OF, sampled.CATEGORIES):
        found.samples += [] if path.parent in found.samples else [path.parent]
    elif path.suffix == ".py":
        tree = python_data.parse(path)
        if reference.has_records(tree):
            found.modules.append((path, tree))
        elif reference.only_constants(tree):
            found.without_records.append(path)
        else:
            raise FeedbackError([f"{path}: expected {KINDS}, found Python without records"])
    elif path.suffix == ".json":
        data = foreign.read_json(path)
        if reference_configs.is_config(data):
            found.configs.append(path)
        elif evaluations.is_evaluation(data):
            found.evaluations.append(path)
        else:
            raise FeedbackError([f"{path}: expected {KINDS}, found {foreign.short(data)}"])
    else:
        raise FeedbackError([f"{path}: expected {KINDS}, found a file {path.suffix or 'without suffix'}"])


def _modules(found: Found, known: _Records, given: Given, report: foreign.Report, where: Path) -> list[Path]:
    """The sets that the modules become; all are understood before one is written."""
    made: list[tuple[Path, list[Feedback]]] = []
    for path, tree in found.modules:
        feedbacks, problems = reference.read_module(path, tree, given.records, known.ids)
        report.settle(problems)
        for one in feedbacks:
            known.by_key |= {key: one for key, id in known.ids.items() if id == one.id}
        if feedbacks:
            made.append((path, feedbacks))
    written = []
    for path, feedbacks in made:
        target = where if where.suffix == ".yaml" else where / f"{path.stem}.yaml"
        if not (target.exists() and load_feedbacks(target) == feedbacks):
            records.write_feedbacks(target, feedbacks)
        metrics = sum(one.metric is not None for one in feedbacks)
        report.imported.append(f"{path}: {len(feedbacks)} feedbacks, {metrics} checkable -> {shown(target)}")
        report.notes += _lengths(target, feedbacks, given)
        written.append(target)
    return written


def _lengths(target: Path, feedbacks: Sequence[Feedback], given: Given) -> Iterator[str]:
    by_length = [one for one in feedbacks if one.metric and one.metric.needs_baseline]
    if by_length:
        ratio = given.records.length_ratio
        yield f"note: {shown(target)}: the length of {len(by_length)} is to change by {ratio:g}: --length-ratio"


def _configs(found: Found, sets: Sequence[Path], report: foreign.Report, where: Path, folder: Path) -> None:
    """The runs that the configs become, all of this folder and of all sets: which of them, a config does not say."""
    named = [str(path.resolve()) for path in sets]
    converted = []
    for path in found.configs:
        target = where if where.suffix == ".yaml" else where / f"{path.stem}.yaml"
        run = shown(folder) if where.suffix != ".yaml" else f"results/{target.stem}"
        try:
            made = reference_configs.convert(foreign.read_json(path), run, named)
            text = made.as_yaml(path.name)
        except RecursionError:
            report.settle([f"{path}: expected less deep nesting"])
            continue
        report.settle(f"{path}: {problem}" for problem in made.problems)
        if made.values.get("methods"):
            converted.append((path, target, made, text))
    for path, target, made, text in converted:
        foreign.write_once(target, text)
        counts = f"{len(made.mapped)} keys mapped, {len(made.not_applicable)} not applicable (listed in it)"
        report.imported.append(f"{path}: {counts} -> {shown(target)}")
        if not named:
            report.notes.append(f"note: {shown(target)}: name the set of feedback, `feedback_set`")
