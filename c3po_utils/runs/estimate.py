"""What a run would still take: every stage played with stand-ins, which answer from the ledger where they can."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from c3po_utils import chat  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat.types import Estimate, likely_tokens
from c3po_utils.evaluation import Judge, evaluate, open_judge, two_feedbacks
from c3po_utils.feedback import Feedback, records
from c3po_utils.runs import LEDGER, Stage, jobs, run_folder
from c3po_utils.runs.config import RunConfig
from c3po_utils.sampling import Sample, SampleSettings, answers, unlabelled
from c3po_utils.training import BASE_RESAMPLED, trained_methods
from c3po_utils.training import methods as known_methods

Part = tuple[str, str, Estimate]  # use, model, what it takes
VERDICT = json.dumps({"reasons": "word " * 100, "verdict": 3})


def estimates(config: RunConfig) -> pd.DataFrame:
    """What the run would still take, at most, by feedback and use of a model; nothing is asked.

    `training` counts the tokens that go through the model, `answers` those of pi_0 once more and of every adapter.
    """
    samples, rows, parts = {}, {}, {}
    for name, sample in zip(jobs.feedback_names(config), jobs.open_samples(config), strict=True):
        id = sample.record.id
        samples[id] = sample
        rows[id], dry = sample.dry_run()
        parts[id] = [(use, model.name, model.total) for use, model in dry.items()]
        parts[id] += [*_training(config, name, sample, rows[id]), *_evaluating(config, name, sample, rows[id])]
    for names, method, how in jobs.two_feedbacks_runs(config):
        ids = [records.feedback_id(name) for name in names]
        together = [row for id in ids for row in rows[id]]
        parts.setdefault(two_feedbacks.joint_id(ids), []).extend(
            _two_feedbacks(config, names, method, how, [samples[id] for id in ids], together)
        )
    return _table(parts)


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


def _training(config: RunConfig, name: str, sample: Sample, rows: Sequence[dict]) -> Iterator[Part]:
    for method in trained_methods(config.methods):
        settings = jobs.train_settings(jobs.train_values(config, name, method))
        if not _finished(jobs.train_stage, sample.run, records.feedback_id(name), settings):
            yield "training", sample.settings.model, Estimate(prompt_tokens=_trained_tokens(rows, settings))
            if count := settings.objective.unlabelled:
                yield _unlabelled(sample, rows, count)


def _unlabelled(sample: Sample, rows: Sequence[dict], count: int) -> Part:
    """pi_0's answers to the unlabelled prompts of a method that distils a gated one, as if the gate were closed."""
    prompts = unlabelled.unlabelled_prompts(rows, count, sample.settings.seed)
    dry = chat.DryRun(chat.open_chat(sample.settings.model, sample.run / LEDGER))
    answers.add_answers(dry, [{"id": prompt.id, "prompt": prompt.text} for prompt in prompts], sample.settings)
    return "unlabelled prompts", sample.settings.model, dry.total


def _trained_tokens(rows: Sequence[dict], settings: jobs.TrainSettings) -> int:
    """About how many tokens go through the model in training, both answers of a pair counted where both are used."""
    columns = {
        "chosen": ("in_scope", "revised"), "rejected": ("in_scope", "baseline"),
        "near_scope": ("near_scope", "baseline"), "out_of_scope": ("out_of_scope", "baseline"),
    }  # fmt: skip
    tokens = 0
    for split, column in (columns[segment] for segment in settings.objective.segments):
        for row in rows:
            if row["fold"] == "train" and row["split"] == split:
                tokens += likely_tokens(len((row["prompt"] + row[column]).encode()), 2)
    return round(settings.epochs * tokens)


def _evaluating(config: RunConfig, name: str, sample: Sample, rows: Sequence[dict]) -> Iterator[Part]:
    values = jobs.evaluate_values(config, name)
    judge = open_judge(sample.run, values["judge_model"], values["judge_helpfulness"], values["limits"])
    for method in values["methods"]:
        if not _finished(evaluate.eval_stage, sample.run, sample.record.id, method, judge):
            tests = [dict(row) for row in rows if row["fold"] == "test"]
            yield from _answers(config, sample.settings, method, tests, values["limits"])
            if not sample.stage.done:  # a made-up revision fails the metric; a real one may pass, and be judged
                longest = "word " * sample.settings.max_new_tokens
                tests = [row | {method: row[method] or longest} for row in tests]
            yield from _judging([sample.record], judge, method, tests)


def _two_feedbacks(
    config: RunConfig, names: list[str], method: str, how: jobs.How, samples: list[Sample], rows: Sequence[dict]
) -> Iterator[Part]:
    run, ids = run_folder(config.run), [sample.record.id for sample in samples]
    if how == "joint":
        settings = jobs.train_settings(jobs.train_values(config, two_feedbacks.joint_name(names), method))
        if not _finished(jobs.train_stage, run, two_feedbacks.joint_id(ids), settings):
            yield "training", samples[0].settings.model, Estimate(prompt_tokens=_trained_tokens(rows, settings))
    values = jobs.two_feedbacks_values(config, names, method, how)
    judge = open_judge(run, values["judge_model"], limits=values["limits"])
    if not _finished(two_feedbacks.two_feedbacks_stage, run, ids, method, how, judge):
        tests = [dict(row) for row in rows if row["fold"] == "test"]
        yield from _answers(config, samples[0].settings, method, tests, values["limits"])
        yield from _judging([sample.record for sample in samples], judge, method, tests)


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
