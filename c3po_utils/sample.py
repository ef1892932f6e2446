"""From one sentence of feedback to training data: prompts, answers by pi_0, revisions (section 3.2 of the paper).

A row is one prompt. It carries its id from birth and gains a column per kind of answer (`baseline`, `revised`,
`in_context`, `in_context_cot`), each with a `<column>_status` that says how the model's call ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from c3po_utils.chat import ChatModel, Outcome, Sampling, request
from c3po_utils.feedback import (
    FEEDBACK_FOLDER,
    Feedback,
    Prompt,
    load_feedbacks,
    load_general_prompts,
    load_prompts,
    select,
)
from c3po_utils.metrics import check
from c3po_utils.open_chat import ask
from c3po_utils.prompts import IN_CONTEXT, REASON_FIRST, REVISE, THEN_ANSWER, THEN_WRITE
from c3po_utils.runs import Stage, content_hash, read_jsonl, write_jsonl

ROWS = "rows.jsonl"
TEST_SHARE = 0.3  # of ten categories, three: intervals clustered by category need no fewer
STRATEGIES = ("demonstrate", "revise")
BEST_OF_WAVES = (1, 1, 2, 4)  # samples asked for at once: most rows need few, and waves keep batches large


@dataclass(frozen=True)
class SampleSettings:
    """What decides the sampled data besides the feedback itself."""

    model: str
    strategy: str
    best_of: int
    categories: int
    prompts_per_category: int
    system_prompt: str
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {STRATEGIES}, found {self.strategy!r}")
        if self.best_of < 1 or self.categories < 2 or self.prompts_per_category < 1:
            raise ValueError(f"expected best_of >= 1, categories >= 2, prompts_per_category >= 1; found {self}")

    @property
    def sampling(self) -> Sampling:
        """The paper's settings for pi_0."""
        return Sampling(max_new_tokens=self.max_new_tokens, seed=self.seed)

    @property
    def demonstrating(self) -> Sampling:
        """Wider sampling for best-of-n: tries must differ for the first passing one to be likely."""
        return replace(self.sampling, temperature=0.9, top_p=0.9)


def feedback_id(name: str) -> str:
    """The id in `id` or `path/to/set.yaml#id`."""
    return name.rpartition("#")[2]


def find_feedback(name: str) -> Feedback:
    """The record of this id among the sets in feedback/, or, for `path/to/set.yaml#id`, in that file."""
    path, _, id = name.rpartition("#")
    return select(load_feedbacks(*([path] if path else sorted(FEEDBACK_FOLDER.glob("*.yaml")))), ids=id)[0]


def find_prompts(name: str) -> list[Prompt]:
    """The prompts of all splits: `prompts/<id>.json` beside the feedback's file, and the general ones."""
    path, _, id = name.rpartition("#")
    return [
        *load_prompts(id, (Path(path).parent if path else FEEDBACK_FOLDER) / "prompts"),
        *load_general_prompts(),
    ]


def sample_stage(run: Path | str, feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings) -> Stage:
    """The folder of a feedback's sampled data, done when it was made from these settings, record and prompts."""
    return Stage(
        Path(run) / "sample" / feedback.id,
        {
            "settings": asdict(settings),
            "feedback": feedback.model_dump(mode="json"),
            "prompts": content_hash([asdict(prompt) for prompt in prompts]),
        },
    )


def deal_prompts(feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings) -> list[dict]:
    """Rows without answers: as many prompts of each split as wanted, each in the fold `train` or `test`.

    In and near scope, whole categories go to the test fold, so that no test prompt's category is trained on.
    Out-of-scope prompts belong to no category of the feedback; they are split one by one, alike for all feedbacks.
    """
    names = list(dict.fromkeys(prompt.category for prompt in prompts if prompt.split != "out_of_scope"))
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


def _fill(rows: Sequence[dict], column: str, outcomes: dict[str, Outcome], tag: str) -> None:
    for row in rows:
        outcome = outcomes[f"{row['id']}#{tag}"]
        row[column], row[f"{column}_status"] = outcome.text if outcome.usable else "", outcome.status


def add_answers(model: ChatModel, rows: Sequence[dict], settings: SampleSettings, column: str = "baseline") -> None:
    """The model's own answers, as column `column`; another column name is another, independent sample."""
    requests = [request(f"{row['id']}#{column}", row["prompt"], system=settings.system_prompt) for row in rows]
    _fill(rows, column, ask(model, requests, settings.sampling, column), column)


def add_in_context(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """Answers to the prompt with the feedback in it, to be applied where applicable: column `in_context`."""
    requests = [
        request(
            f"{row['id']}#in_context",
            IN_CONTEXT.format(prompt=row["prompt"], feedback=feedback.content),
            system=settings.system_prompt,
        )
        for row in rows
    ]
    _fill(rows, "in_context", ask(model, requests, settings.sampling, "in-context"), "in_context")


def _two_turns(
    model: ChatModel,
    rows: Sequence[dict],
    tag: str,
    first: Callable[[dict], str],
    second: str,
    settings: SampleSettings,
    sampling: Sampling,
    replicate: int = 0,
) -> dict[str, Outcome]:
    """Think, then write: the model's own first turn goes before the turn that asks for the text alone."""
    system = settings.system_prompt
    thinking = [
        replace(request(f"{row['id']}#{tag}/think", first(row), system=system), replicate=replicate) for row in rows
    ]
    thoughts = ask(model, thinking, sampling, f"{tag}: thinking")
    writing = []
    for row, asked in zip(rows, thinking, strict=True):
        turns = [(first(row), thoughts[asked.id].text or "Yes.")]
        writing.append(replace(request(f"{row['id']}#{tag}", second, system=system, turns=turns), replicate=replicate))
    return ask(model, writing, sampling, f"{tag}: writing")


def add_in_context_cot(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """First reason whether the feedback applies, then answer: column `in_context_cot`."""

    def first(row: dict) -> str:
        return REASON_FIRST.format(prompt=row["prompt"], feedback=feedback.content)

    outcomes = _two_turns(model, rows, "in_context_cot", first, THEN_ANSWER, settings, settings.sampling)
    _fill(rows, "in_context_cot", outcomes, "in_context_cot")


def _candidates(
    model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings, tries: range
) -> list[dict[str, Outcome]]:
    """One dict of outcomes by row id for each try."""
    if settings.strategy == "demonstrate":
        turns = [(shown.prompt, shown.answer) for shown in feedback.demonstrations]
        requests = [
            replace(
                request(f"{row['id']}#revised{k}", row["prompt"], system=settings.system_prompt, turns=turns),
                replicate=k,
            )
            for k in tries
            for row in rows
        ]
        outcomes = ask(model, requests, settings.demonstrating, f"revised (tries {tries.start + 1}-{tries.stop})")
        return [{row["id"]: outcomes[f"{row['id']}#revised{k}"] for row in rows} for k in tries]

    def first(row: dict) -> str:
        return REVISE.format(prompt=row["prompt"], answer=row["baseline"], effect=feedback.effect)

    result = []
    for k in tries:
        outcomes = _two_turns(model, rows, f"revised{k}", first, THEN_WRITE, settings, settings.demonstrating, k)
        result.append({row["id"]: outcomes[f"{row['id']}#revised{k}"] for row in rows})
    return result


def add_revisions(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """Revised answers y+ of in-scope rows, columns `revised` and `revised_tries`: best of n.

    The first of up to `best_of` samples that ended by itself and passes the feedback's metric is kept; without a
    metric, the first that ended. A row that none passes has an empty `revised` and the status `rejected`.

    Raises:
        ValueError: the strategy needs demonstrations and the record has none.
    """
    if settings.strategy == "demonstrate" and not feedback.demonstrations:
        raise ValueError(f"feedback {feedback.id!r} has no demonstrations: add some, or use strategy 'revise'")
    for row in rows:
        row.update(revised="", revised_status="rejected", revised_tries=0)
    done, waves = 0, iter(BEST_OF_WAVES)
    while done < settings.best_of:
        tries = range(done, min(done + next(waves, BEST_OF_WAVES[-1]), settings.best_of))
        missing = [row for row in rows if not row["revised"]]
        for outcomes in _candidates(model, missing, feedback, settings, tries) if missing else ():
            done += 1
            for row in missing:
                outcome = outcomes[row["id"]]
                if not row["revised"] and _passes(feedback, outcome, row["baseline"]):
                    row.update(revised=outcome.text, revised_status=outcome.status, revised_tries=done)
        if not missing:
            break


def _passes(feedback: Feedback, outcome: Outcome, baseline: str) -> bool:
    if outcome.status != "ok" or not outcome.text:
        return False
    return feedback.metric is None or check(feedback.metric, outcome.text, baseline)


def sample_feedback(
    model: ChatModel, feedback: Feedback, prompts: Sequence[Prompt], settings: SampleSettings, stage: Stage
) -> list[dict]:
    """Every column of every row, stored in the stage's folder with counts in its manifest; read back if done."""
    if stage.done:
        return read_jsonl(stage.path(ROWS))
    with stage:
        rows = deal_prompts(feedback, prompts, settings)
        tests = [row for row in rows if row["fold"] == "test"]
        add_answers(model, rows, settings)
        add_revisions(model, [row for row in rows if row["split"] == "in_scope"], feedback, settings)
        add_in_context(model, tests, feedback, settings)
        add_in_context_cot(model, tests, feedback, settings)
        write_jsonl(stage.path(ROWS), rows)
        stage.notes["counts"] = counts(rows)
    return rows


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
                    if row["split"] == split and row.get(column)
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


def load_rows(run: Path | str, feedback_id: str, fold: str | None = None) -> list[dict]:
    """The sampled rows of a finished stage, of one fold or both.

    Raises:
        FileNotFoundError: the stage is not done; says which notebook makes it.
    """
    rows = read_jsonl(_finished(run, feedback_id).path(ROWS))
    return [row for row in rows if fold in (None, row["fold"])]


def stored_settings(run: Path | str, feedback_id: str) -> SampleSettings:
    """The settings that a finished sample was made with: the model pi_0 among them. Errors as in `load_rows`."""
    return SampleSettings(**_finished(run, feedback_id).manifest["identity"]["settings"])
