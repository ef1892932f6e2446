"""Rows: one prompt each, dealt to folds by category; where finished ones lie, and reading them back."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c3po_utils import engine  # as a room: its heavy parts are imported when they are used
from c3po_utils.feedback import Feedback, Prompt
from c3po_utils.runs import files, parameters, stage
from c3po_utils.sampling.settings import SampleSettings

ROWS = "rows.jsonl"
SCORED = ("content", "effect", "metric")  # what of a record metrics and judges score by


def deal_prompts(feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings) -> list[dict]:
    """Rows without answers: as many prompts of each split as wanted, each in the fold `train` or `test`.

    In and near scope, whole categories go to the test fold, so that no test prompt's category is trained on.
    Out-of-scope prompts belong to no category of the feedback; they are split one by one, in one order for all
    feedbacks. How many there are follows the number of categories: feedbacks with as many of these share both folds,
    and of others one may train on a prompt that the other tests on.

    A category that has no prompts in scope, as a model wrote none (`allow_short`), is not tested on.

    Raises:
        ValueError: fewer than two categories with prompts in scope: one to train on, one to test on.
    """
    names = list(dict.fromkeys(prompt.category for prompt in prompts if prompt.split != "out_of_scope"))
    chosen = random.Random(f"{settings.seed}/{feedback.id}").sample(names, min(settings.categories, len(names)))
    whole = with_prompts_in_scope(prompts, feedback.id, chosen)
    n_tests = min(max(1, round(settings.test_share * len(chosen))), len(whole) - 1)
    tests = set(whole[:n_tests])
    rows = []
    for split in ("in_scope", "near_scope"):
        for name in chosen:
            part = [prompt for prompt in prompts if prompt.category == name and prompt.split == split]
            fold = "test" if name in tests else "train"
            rows += [_row(feedback, prompt, fold) for prompt in part[: settings.prompts_per_category]]
    general = [prompt for prompt in prompts if prompt.split == "out_of_scope"]
    random.Random(settings.seed).shuffle(general)
    general = general[: len(chosen) * settings.prompts_per_category]
    n_test = round(settings.test_share * len(general))
    return rows + [_row(feedback, prompt, "test" if i < n_test else "train") for i, prompt in enumerate(general)]


def with_prompts_in_scope(prompts: Sequence[Prompt], id: str, categories: Sequence[str] = ()) -> list[str]:
    """Those of the categories, or of all that there are, that have prompts in scope; errors as of `deal_prompts`."""
    chosen = list(categories or dict.fromkeys(prompt.category for prompt in prompts))
    inside = {prompt.category for prompt in prompts if prompt.split == "in_scope"}
    whole = [name for name in chosen if name in inside]
    if len(whole) < 2:
        expected = "expected two categories or more with prompts in scope"
        raise ValueError(f"prompts of {id!r}: {expected}, found {whole} of {chosen}")
    return whole


def _row(feedback: Feedback, prompt: Prompt, fold: str) -> dict:
    return {
        "id": prompt.id, "feedback": feedback.id, "split": prompt.split, "category": prompt.category, "fold": fold,
        "prompt": prompt.text,
    }  # fmt: skip


def _folder(run: Path | str, feedback_id: str) -> Path:
    return Path(run) / "sample" / feedback_id


def sample_stage(run: Path | str, feedback: Feedback, settings: SampleSettings, inputs: dict[str, Any]) -> stage.Stage:
    """The folder of a feedback's sample, done when made for this record with these settings from these inputs.

    Inputs are `prompts`, the hash of those that were given, or `imported`, the hashes of the files that were read.
    """
    record = feedback.model_dump(mode="json", exclude={"examples"})
    models = (settings.model, settings.answering)
    identity = {"settings": parameters.recorded(settings), "feedback": record, **inputs, **engine.names.told(*models)}
    return stage.Stage(_folder(run, feedback.id), identity, ROWS)


def imported_sample(run: Path | str, feedback: Feedback) -> stage.Stage | None:
    """The finished sample that was imported for a feedback; None where there is none, or a sampled one.

    Raises:
        ValueError: the record has changed since, or the rows are gone or damaged: nothing here can make them anew.
    """
    known = stage.Stage(_folder(run, feedback.id), {}).manifest or {}
    if "imported" not in (identity := known.get("identity", {})):
        return None
    settings = SampleSettings(**identity["settings"])
    own = sample_stage(run, feedback, settings, {"imported": identity["imported"]})
    if changed := own.changes():
        raise ValueError(f"{own} was imported for another record: {', '.join(changed)} differs; import it again")
    if not own.done:
        raise ValueError(f"{own} was imported, and its {ROWS} is gone or damaged: import it again")
    return own


def _identity(run: Path | str, feedback_id: str) -> dict[str, Any]:
    """What a finished sample was made from."""
    path = _folder(run, feedback_id) / stage.MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent} has no finished sample: run notebooks/01_sample.ipynb for {feedback_id!r} first"
        )
    return files.read_json(path, dict)["identity"]


def rows_hash(run: Path | str, feedback_id: str) -> str:
    """The hash by which later stages know the sampled rows of one feedback. Errors as in `load_rows`."""
    _identity(run, feedback_id)
    return stage.intact(_folder(run, feedback_id), ROWS)


def asked_and_scored(run: Path | str, feedback_id: str) -> dict[str, str]:
    """Hashes of what else answers and their scores depend on: the rows may be the same with another metric.

    Errors as in `load_rows`.
    """
    record, settings = _identity(run, feedback_id)["feedback"], stored_settings(run, feedback_id)
    return {
        "asked": files.content_hash([settings.system_prompt, settings.max_new_tokens, settings.seed]),
        "scored": files.content_hash([record.get(key) for key in SCORED]),
    }


def refuse_changed(run: Path | str, feedback: Feedback) -> None:
    """Raise ValueError for a record that answers would be scored by, and that was another when it was sampled."""
    sampled = stored_feedback(run, feedback.id)
    for key in SCORED:
        if (then := getattr(sampled, key)) != (now := getattr(feedback, key)):
            raise ValueError(
                f"feedback {feedback.id!r}: {key} was {then!r} when it was sampled, and is {now!r}:"
                " run notebooks/01_sample.ipynb for it again"
            )


def members(feedback_id: str) -> list[str]:
    """The feedbacks in `a+b`, which stands for several that are learned jointly; a single one's own id."""
    return feedback_id.split("+")


def load_rows(run: Path | str, feedback_id: str, fold: str | None = None) -> list[dict]:
    """The sampled rows of a finished stage, of one fold or both; for `a+b` those of both feedbacks.

    General prompts are common to all feedbacks: each comes once, and is trained on only if no feedback tests on it.

    Raises:
        FileNotFoundError: the stage is not done; says which notebook makes it.
        DamagedFile: the rows are not those that the stage's manifest was written for, or the manifest is damaged.
    """
    rows = []
    for id in members(feedback_id):
        rows_hash(run, id)
        rows += files.read_jsonl(_folder(run, id) / ROWS)
    tested = {row["id"] for row in rows if row["fold"] == "test"}
    by_id = {row["id"]: row for row in rows if row["fold"] == "test" or row["id"] not in tested}
    return [row for row in by_id.values() if fold in (None, row["fold"])]


def stored_settings(run: Path | str, feedback_id: str) -> SampleSettings:
    """The settings that a finished sample was made with: the model pi_0 among them.

    Raises:
        FileNotFoundError: as in `load_rows`.
        ValueError: the feedbacks of `a+b` were sampled from different models, or with different system prompts.
    """
    found = {id: SampleSettings(**_identity(run, id)["settings"]) for id in members(feedback_id)}
    for key in ("model", "system_prompt"):
        values = {id: getattr(settings, key) for id, settings in found.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"{feedback_id}: expected one {key} for all of them, found {values}")
    return next(iter(found.values()))


def stored_feedback(run: Path | str, feedback_id: str) -> Feedback:
    """The record that a finished sample was made for. Errors as in `load_rows`."""
    return Feedback.model_validate(_identity(run, feedback_id)["feedback"])


def counts(rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """Per answer column, how many rows ended with each status: requested is their sum."""
    result: defaultdict[str, Counter] = defaultdict(Counter)
    for row in rows:
        for key in row:
            if key.endswith("_status"):
                result[key.removesuffix("_status")][row[key]] += 1
    return dict(result)
