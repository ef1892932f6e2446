"""From one sentence of feedback to training data: prompts, answers by pi_0, revisions (section 3.2 of the paper).

A row is one prompt. It carries its id from birth and gains a column per kind of answer (see answers.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from c3po_utils.answers import add_answers, add_in_context, add_in_context_cot, add_revisions
from c3po_utils.chat import ChatModel
from c3po_utils.feedback import (
    FEEDBACK_FOLDER,
    Feedback,
    Prompt,
    load_feedbacks,
    load_general_prompts,
    load_prompts,
    select,
)
from c3po_utils.general import general_prompts
from c3po_utils.metrics import check
from c3po_utils.runs import Stage, content_hash, read_jsonl, write_jsonl
from c3po_utils.sample_settings import SampleSettings

ROWS = "rows.jsonl"
TEST_SHARE = 0.3  # of ten categories, three: intervals clustered by category need no fewer


def feedback_id(name: str) -> str:
    """The id in `id` or `path/to/set.yaml#id`."""
    return name.rpartition("#")[2]


def find_feedback(name: str) -> Feedback:
    """The record of this id among the sets in feedback/, or, for `path/to/set.yaml#id`, in that file."""
    path, _, id = name.rpartition("#")
    return select(load_feedbacks(*([path] if path else sorted(FEEDBACK_FOLDER.glob("*.yaml")))), ids=id)[0]


def find_prompts(name: str, settings: SampleSettings) -> list[Prompt]:
    """The prompts that are there already: of `prompts/<id>.json` beside the feedback's file, and the general ones.

    Those in and near scope are left out where a model is to write them.
    """
    path, _, id = name.rpartition("#")
    folder = (Path(path).parent if path else FEEDBACK_FOLDER) / "prompts"
    scoped = [] if settings.prompt_model else load_prompts(id, folder)
    if settings.general_prompts == "bundled":
        return [*scoped, *load_general_prompts()]
    wanted = settings.categories * settings.prompts_per_category
    return [*scoped, *general_prompts(settings.general_prompts, wanted, settings.seed)]


def sample_stage(run: Path | str, feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings) -> Stage:
    """The folder of a feedback's sampled data, done when made from these settings, record and given prompts."""
    return Stage(
        Path(run) / "sample" / feedback.id,
        {
            "settings": settings.identity,
            "feedback": feedback.model_dump(mode="json"),
            "prompts": content_hash([asdict(prompt) for prompt in prompts]),
        },
        ROWS,
    )


def deal_prompts(feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings) -> list[dict]:
    """Rows without answers: as many prompts of each split as wanted, each in the fold `train` or `test`.

    In and near scope, whole categories go to the test fold, so that no test prompt's category is trained on.
    Out-of-scope prompts belong to no category of the feedback; they are split one by one, alike for all feedbacks.

    Raises:
        ValueError: fewer than two categories: one to train on, one to test on.
    """
    names = list(dict.fromkeys(prompt.category for prompt in prompts if prompt.split != "out_of_scope"))
    if len(names) < 2:
        raise ValueError(f"prompts of {feedback.id!r}: expected two categories or more, found {names}")
    chosen = random.Random(f"{settings.seed}/{feedback.id}").sample(names, min(settings.categories, len(names)))
    tests = set(chosen[: max(1, round(TEST_SHARE * len(chosen)))])
    rows = []
    for split in ("in_scope", "near_scope"):
        for name in chosen:
            part = [prompt for prompt in prompts if prompt.category == name and prompt.split == split]
            fold = "test" if name in tests else "train"
            rows += [_row(feedback, prompt, fold) for prompt in part[: settings.prompts_per_category]]
    general = [prompt for prompt in prompts if prompt.split == "out_of_scope"]
    random.Random(settings.seed).shuffle(general)
    general = general[: len(chosen) * settings.prompts_per_category]
    n_test = round(TEST_SHARE * len(general))
    return rows + [_row(feedback, prompt, "test" if i < n_test else "train") for i, prompt in enumerate(general)]


def _row(feedback: Feedback, prompt: Prompt, fold: str) -> dict:
    return {
        "id": prompt.id, "feedback": feedback.id, "split": prompt.split, "category": prompt.category, "fold": fold,
        "prompt": prompt.text,
    }  # fmt: skip


def sample_feedback(
    model: ChatModel, feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings, stage: Stage
) -> list[dict]:
    """Every column of every row, stored in the stage's folder with counts in its manifest; read back if done.

    Raises:
        RuntimeError: calls to a model behind an API failed, and `allow_short` is False. The next run asks them again.
    """
    if stage.done:
        return read_jsonl(stage.path(ROWS))
    with stage:
        rows = fill_rows(model, deal_prompts(feedback, prompts, settings), feedback, settings)
        if settings.completion_model and not settings.allow_short:
            _refuse_failed(rows)
        write_jsonl(stage.path(ROWS), rows)
        stage.notes["counts"] = counts(rows)
    return rows


def fill_rows(model: ChatModel, rows: list[dict], feedback: Feedback, settings: SampleSettings) -> list[dict]:
    """The rows with every answer that they need: revisions in scope, in-context answers for the test fold."""
    tests = [row for row in rows if row["fold"] == "test"]
    elsewhere = "train" if settings.revise_elsewhere else None
    revised = [row for row in rows if row["split"] == "in_scope" or row["fold"] == elsewhere]
    add_answers(model, rows, settings)
    add_revisions(model, revised, feedback, settings)
    add_in_context(model, tests, feedback, settings)
    add_in_context_cot(model, tests, feedback, settings)
    return rows


def _refuse_failed(rows: Sequence[dict]) -> None:
    failed = [(row, key) for row in rows for key in row if key.endswith("_status") and row[key] == "failed"]
    if failed:
        row, key = failed[0]
        raise RuntimeError(
            f"{len(failed)} answers could not be had, the first ({key.removesuffix('_status')} of {row['id']}) because:"
            f" {row.get(key.replace('_status', '_reason'), 'its tries failed')}. All others are stored: run again to"
            " ask for these, or go on without them by the option allow_short"
        )


def counts(rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """Per answer column, how many rows ended with each status: requested is their sum."""
    result: dict[str, dict[str, int]] = {}
    for row in rows:
        for column in [key for key in row if key.endswith("_status")]:
            by_status = result.setdefault(column.removesuffix("_status"), {})
            by_status[row[column]] = by_status.get(row[column], 0) + 1
    return result


def adherence(rows: Sequence[dict], feedback: Feedback) -> pd.DataFrame:
    """Share of test answers that pass the feedback's metric, by answer column and split; NaN where there is none."""
    columns = ("baseline", "in_context", "in_context_cot", "revised")
    tests = [row for row in rows if row["fold"] == "test"]
    shares = {
        column: {
            split: _mean(
                [
                    check(feedback.metric, row[column], row["baseline"])
                    for row in tests
                    if feedback.metric and row["split"] == split and row.get(column)
                ]
            )
            for split in ("in_scope", "near_scope", "out_of_scope")
        }
        for column in columns
    }
    return pd.DataFrame(shares).T


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _finished(run: Path | str, feedback_id: str) -> Stage:
    stage = Stage(Path(run) / "sample" / feedback_id, {})
    if not stage.manifest:
        raise FileNotFoundError(
            f"{stage.folder} has no finished sample: run notebooks/01_sample.ipynb for {feedback_id!r} first"
        )
    return stage


def members(feedback_id: str) -> list[str]:
    """The feedbacks in `a+b`, which stands for several that are learned jointly; a single one's own id."""
    return feedback_id.split("+")


def load_rows(run: Path | str, feedback_id: str, fold: str | None = None) -> list[dict]:
    """The sampled rows of a finished stage, of one fold or both; for `a+b` those of both feedbacks.

    General prompts are common to all feedbacks: each comes once, and is trained on only if no feedback tests on it.

    Raises:
        FileNotFoundError: the stage is not done; says which notebook makes it.
    """
    rows = [row for id in members(feedback_id) for row in read_jsonl(_finished(run, id).path(ROWS))]
    tested = {row["id"] for row in rows if row["fold"] == "test"}
    by_id = {row["id"]: row for row in rows if row["fold"] == "test" or row["id"] not in tested}
    return [row for row in by_id.values() if fold in (None, row["fold"])]


def stored_settings(run: Path | str, feedback_id: str) -> SampleSettings:
    """The settings that a finished sample was made with: the model pi_0 among them.

    Raises:
        FileNotFoundError: as in `load_rows`.
        ValueError: the feedbacks of `a+b` were sampled from different models, or with different system prompts.
    """
    found = {id: SampleSettings(**_finished(run, id).manifest["identity"]["settings"]) for id in members(feedback_id)}
    for key in ("model", "system_prompt"):
        values = {id: getattr(settings, key) for id, settings in found.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"{feedback_id}: expected one {key} for all of them, found {values}")
    return next(iter(found.values()))


def stored_feedback(run: Path | str, feedback_id: str) -> Feedback:
    """The record that a finished sample was made for. Errors as in `load_rows`."""
    return Feedback.model_validate(_finished(run, feedback_id).manifest["identity"]["feedback"])
