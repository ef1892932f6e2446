"""What a run would still take: every stage played with stand-ins, which answer from the ledger where they can."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from c3po_utils import chat  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat import ledger_file
from c3po_utils.chat.types import Estimate, likely_tokens
from c3po_utils.evaluation import Judge, evaluate, open_judge, two_feedbacks
from c3po_utils.feedback import Feedback, records
from c3po_utils.runs import LEDGER, Stage, jobs, run_folder
from c3po_utils.runs.config import RunConfig
from c3po_utils.sampling import Sample, SampleSettings, answers, open_sample, unlabelled
from c3po_utils.training import BASE_RESAMPLED, trained_methods
from c3po_utils.training import methods as known_methods

Part = tuple[str, str, Estimate]  # use, model, what it takes
VERDICT = json.dumps({"reasons": "word " * 100, "verdict": 3})


def estimates(config: RunConfig) -> pd.DataFrame:
    """What the run would still take, at most, by feedback and use of a model; nothing is asked, nothing is written.

    Of a model that writes prompts every answer is taken to be usable. `training` counts the tokens that go through the
    model, `answers` those of pi_0 once more and of every adapter.
    """
    samples, parts = {}, {}
    with ledger_file.only_reading():
        for name in jobs.feedback_names(config):
            sampled, asked = sampling(config, name)
            samples[sampled.id] = sampled
            parts[sampled.id] = [*asked, *training(config, name, sampled), *evaluating(config, name, sampled)]
        for names, method, how in jobs.two_feedbacks_runs(config):
            of_both = [samples[records.feedback_id(name)] for name in names]
            together = two_feedbacks.joint_id([sampled.id for sampled in of_both])
            parts.setdefault(together, []).extend(of_two_feedbacks(config, names, method, how, of_both))
    return _table(parts)


@dataclass(frozen=True)
class Sampled:
    """A feedback's sample and its rows, as they are or as they would be."""

    sample: Sample
    rows: list[dict]

    @property
    def id(self) -> str:
        return self.sample.record.id

    @property
    def tests(self) -> list[dict]:
        return [dict(row) for row in self.with_revisions if row["fold"] == "test"]

    @cached_property
    def with_revisions(self) -> list[dict]:
        """The rows; before sampling, each with a revision as long as may be: no made-up one is kept."""
        if self.sample.stage.done:
            return self.rows
        longest = "word " * self.sample.settings.max_new_tokens
        return [
            row | {"revised": row.get("revised") or longest} if row["split"] == "in_scope" else row for row in self.rows
        ]

    @cached_property
    def trained_tokens(self) -> dict[str, list[int]]:
        """Those of the training fold."""
        return _sequences([row for row in self.with_revisions if row["fold"] == "train"])


def _sequences(rows: Sequence[dict]) -> dict[str, list[int]]:
    """About how many tokens each sequence to train on has, by segment, at most where rows are made up."""
    columns = {
        "chosen": ("in_scope", "revised"), "rejected": ("in_scope", "baseline"),
        "near_scope": ("near_scope", "baseline"), "out_of_scope": ("out_of_scope", "baseline"),
    }  # fmt: skip
    usable = [row for row in rows if row["split"] != "in_scope" or row["revised"]]
    return {
        segment: [
            likely_tokens(len((row["prompt"] + row[column]).encode()), 2) for row in usable if row["split"] == split
        ]
        for segment, (split, column) in columns.items()
    }


def sampling(config: RunConfig, name: str) -> tuple[Sampled, list[Part]]:
    """The rows of one feedback, and what it takes to have them."""
    values = jobs.sample_values(config, name)
    sample = open_sample(run_folder(config.run), name, jobs.sample_settings(values), values["limits"])
    rows, dry = sample.dry_run()
    return Sampled(sample, rows), [(use, model.name, model.total) for use, model in dry.items()]


def _table(parts: dict[str, list[Part]]) -> pd.DataFrame:
    """A row for each feedback, use and model, and one of the sums."""
    sums: dict[tuple[str, str, str], Estimate] = {}
    for id, of_feedback in parts.items():
        for use, model, estimate in of_feedback:
            sums[id, use, model] = sums.get((id, use, model), Estimate()) + estimate
    table = pd.DataFrame(
        [{"feedback": id, "use": use, "model": model, **vars(estimate)} for (id, use, model), estimate in sums.items()]
    ).set_index(["feedback", "use"])
    table.loc[("all", ""), :] = table.drop(columns="model").sum(skipna=False)
    return table.rename(columns=lambda name: name.replace("_", " "))


def _finished(stage: Any, *arguments: Any) -> bool:
    """Whether the stage is done; one whose inputs are not there yet is not."""
    try:
        made: Stage = stage(*arguments)
        return made.done
    except FileNotFoundError:
        return False


def training(config: RunConfig, name: str, sampled: Sampled, methods: Sequence[str] = ()) -> Iterator[Part]:
    """Of all methods of the run that are trained, or of these."""
    for method in methods or trained_methods(config.methods):
        settings = jobs.train_settings(jobs.train_values(config, name, method))
        if not _finished(jobs.train_stage, sampled.sample.run, sampled.id, settings):
            yield from _trained([sampled], settings)


def _trained(sampled: Sequence[Sampled], settings: jobs.TrainSettings) -> Iterator[Part]:
    """The tokens that go through the model, both answers of a pair counted where both are used.

    Rows are dealt as in training.data.training_rows: each row has a sequence of every segment, some of them again.
    """
    objective, sample, nearby = settings.objective, sampled[0].sample, 0
    parts = [one.trained_tokens for one in sampled]
    if objective.distils:
        dry = chat.DryRun(chat.open_chat(sample.settings.model, sample.run / LEDGER))
        rows, nearby = _unlabelled(sampled, objective, dry)
        parts.append(_sequences(rows))
        yield "unlabelled prompts", sample.settings.model, dry.total
    sequences = {segment: [tokens for part in parts for tokens in part[segment]] for segment in objective.segments}
    pairs = [tokens for part in parts for tokens in part["chosen"]][: objective.max_prompts or None]
    # There are more pairs by the nearby prompts at which the gate turns out to be open.
    dealt = (len(pairs) + nearby) * (1 + objective.near_ratio + objective.out_ratio)
    if objective.rows["whole_pools"]:
        dealt = max(dealt, *map(len, sequences.values()))
    tokens = sum(dealt * statistics.fmean(own) for own in sequences.values() if own)
    yield "training", sample.settings.model, Estimate(prompt_tokens=round(settings.epochs * tokens))


def _unlabelled(
    sampled: Sequence[Sampled], objective: known_methods.Method, dry: chat.DryRun
) -> tuple[list[dict], int]:
    """pi_0's answers to the unlabelled prompts of a method that distils a gated one, as if the gate were closed.

    And how many are nearby ones: these may be answered with the adapter, too, which is counted also where such answers
    are kept: by whom is known when it is trained.
    """
    settings, own = sampled[0].sample.settings, [row for one in sampled for row in one.rows]
    others = unlabelled.unlabelled_prompts(own, objective.unlabelled, settings.seed)
    nearby = unlabelled.nearby_prompts(own, objective.nearby)
    splits = unlabelled.joined(others, nearby)
    rows = [{"id": one.id, "prompt": one.text, "split": splits[one.id]} for one in [*others, *nearby]]
    answers.add_answers(dry, rows, settings)
    answers.add_answers(dry, rows[len(others) :], settings, "revised")
    return rows, len(nearby)


def evaluating(config: RunConfig, name: str, sampled: Sampled, methods: Sequence[str] = ()) -> Iterator[Part]:
    """Of all methods of the run, or of these."""
    values, sample = jobs.evaluate_values(config, name, methods), sampled.sample
    judge = open_judge(sample.run, values["judge_model"], values["judge_helpfulness"], values["limits"])
    for method in values["methods"]:
        if not _finished(evaluate.eval_stage, sample.run, sampled.id, method, judge):
            tests = sampled.tests
            yield from _answers(config, sample.settings, method, tests, values["limits"])
            yield from _judging([sample.record], judge, method, tests)


def of_two_feedbacks(
    config: RunConfig, names: list[str], method: str, how: jobs.How, sampled: Sequence[Sampled]
) -> Iterator[Part]:
    """Training, if they are trained jointly, answers and judging of two feedbacks in one model."""
    run, ids = run_folder(config.run), [one.id for one in sampled]
    if how == "joint":
        settings = jobs.train_settings(jobs.train_values(config, two_feedbacks.joint_name(names), method))
        if not _finished(jobs.train_stage, run, two_feedbacks.joint_id(ids), settings):
            yield from _trained(sampled, settings)
    values = jobs.two_feedbacks_values(config, names, method, how)
    judge = open_judge(run, values["judge_model"], limits=values["limits"])
    if not _finished(two_feedbacks.two_feedbacks_stage, run, ids, method, how, judge):
        both = {row["id"]: row for one in sampled for row in one.tests}  # general prompts are common
        trained = (row for one in sampled for row in one.rows if row["fold"] == "train")
        tests = two_feedbacks.untrained(both.values(), trained)
        yield from _answers(config, sampled[0].sample.settings, method, tests, values["limits"])
        yield from _judging([one.sample.record for one in sampled], judge, method, tests)


def _answers(
    config: RunConfig, settings: SampleSettings, method: str, rows: Sequence[dict], limits: dict[str, Any]
) -> Iterator[Part]:
    """Fills the rows' column of the method where sampling has not."""
    if method != BASE_RESAMPLED and method in known_methods.PROMPTED:
        evaluate.fill_answers(config.run, "", method, rows, settings)
        return
    name = settings.answering if method == BASE_RESAMPLED else settings.model
    dry = chat.DryRun(chat.open.open_within(name, run_folder(config.run) / LEDGER, limits))
    answers.add_answers(dry, rows, settings, method)
    yield "answers", name, dry.total


def _judging(feedbacks: Sequence[Feedback], judge: Judge | None, method: str, rows: Sequence[dict]) -> Iterator[Part]:
    if judge is None:
        return
    asked = copy.copy(judge)
    asked.model = chat.DryRun(judge.model, lambda request: VERDICT)
    for feedback in feedbacks:
        evaluate.score_rows(rows, feedback, method, asked)
    yield "judging", judge.name, asked.model.total
