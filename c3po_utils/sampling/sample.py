"""From one sentence of feedback to training data: prompts, answers by pi_0, revisions (section 3.2 of the paper).

A `Sample` travels through notebook 01. It makes rows, one a prompt: each carries its id from birth (rows.py) and gains
a column per kind of answer (answers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_utils import chat  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat import ChatModel
from c3po_utils.feedback import SPLITS, Feedback, Prompt, find_feedback, general, records
from c3po_utils.runs import LEDGER, Stage, files
from c3po_utils.sampling.answers import (
    MOST_FAILED,
    add_answers,
    add_in_context,
    add_in_context_cot,
    add_revisions,
    refuse_outage,
)
from c3po_utils.sampling.deduplicated import Effort, Report, made_up
from c3po_utils.sampling.generate_prompts import generate_prompts, write_prompts
from c3po_utils.sampling.rows import ROWS, counts, deal_prompts, imported_sample, sample_stage, stored_settings
from c3po_utils.sampling.settings import SampleSettings

PROMPTS = "prompts"  # the folder, in the stage's, of what the prompt model wrote
ANSWERS = ("baseline", "in_context", "in_context_cot", "revised")


def open_models(
    settings: SampleSettings,
    ledger: Path | str,
    limits: dict[str, Any] | None = None,
    server: chat.vllm.Engine | None = None,
) -> dict[str, ChatModel]:
    """The `completion` model and, unless the bundled prompts are used, the `prompt` and the `category` model.

    Each model is opened once, however often the settings name it; `limits` are for those behind an API. Who answers
    does so on the `server`, if there is one.
    """
    names = {"completion": settings.answering}
    if settings.prompt_model:
        names |= {"prompt": settings.prompt_model, "category": settings.category_model or settings.prompt_model}
    opened = {}
    for name in dict.fromkeys(names.values()):
        served = server and name == settings.answering
        opened[name] = (
            server.chat(name, chat.vllm.BASE, ledger) if served else chat.open.open_within(name, ledger, limits)
        )
    return {use: opened[name] for use, name in names.items()}


def bundled_prompts(name: str) -> list[Prompt]:
    """The prompts of `prompts/<id>.json` beside the feedback's file; `name` as in `find_feedback`."""
    path, _, id = name.rpartition("#")
    return records.load_prompts(id, (Path(path).expanduser().parent if path else records.FEEDBACK_FOLDER) / "prompts")


def find_prompts(name: str, settings: SampleSettings) -> list[Prompt]:
    """The prompts that are there already: the bundled ones, unless a model is to write them, and the general ones."""
    wanted = settings.categories * settings.prompts_per_category
    scoped = [] if settings.prompt_model else bundled_prompts(name)
    return [*scoped, *general.general_prompts(settings.general_prompts, wanted, settings.seed)]


@dataclass(frozen=True)
class Sample:
    """One feedback's sample on its way: what is to be learned, how it is sampled, by whom, and where it goes.

    `given`: the prompts that are there already. The models are opened when they are first needed.
    `imported`: the finished stage of a sample that was made elsewhere; nothing is sampled then.
    """

    run: Path
    record: Feedback
    settings: SampleSettings
    given: Sequence[Prompt]
    limits: dict[str, Any]
    imported: Stage | None = None

    @cached_property
    def stage(self) -> Stage:
        """The folder of the sampled data, done when made from these settings, record and given prompts."""
        given = {"prompts": files.content_hash([asdict(prompt) for prompt in self.given])}
        return self.imported or sample_stage(self.run, self.record, self.settings, given)

    @cached_property
    def models(self) -> dict[str, ChatModel]:
        return open_models(self.settings, self.run / LEDGER, self.limits, self.server)

    @cached_property
    def server(self) -> chat.vllm.Engine | None:
        """What runs pi_0, where the settings say another engine than this process."""
        url = chat.vllm.read_engine(self.settings.engine)
        return None if url is None else chat.vllm.Engine(self.settings.answering, self.run, url)

    def dry_run(self) -> tuple[list[dict], dict[str, chat.DryRun]]:
        """The rows as they would be, and by use the stand-in that was asked for them. Nobody else is.

        Stand-ins answer from the ledger where they can; rows that are stored are the rows.
        """
        listing = partial(made_up, count=self._effort.at_once)
        dry = {use: chat.DryRun(model, None if use == "completion" else listing) for use, model in self.models.items()}
        if self.stage.done:
            return self.fill(), dry
        generated = self._generate(dry)[0].prompts if "prompt" in dry else []
        rows = deal_prompts(self.record, [*generated, *self.given], self.settings)
        return fill_rows(dry["completion"], rows, self.record, self.settings), dry

    def estimate(self) -> pd.DataFrame:
        """What it still takes, at most, by model: calls, those stored already, tokens, USD. Nothing is asked.

        Of the model that writes prompts every answer is taken to be usable.
        """
        dry = self.dry_run()[1]
        table = {use: {"model": model.name, **vars(model.total)} for use, model in dry.items()}
        return pd.DataFrame(table).T.rename(columns=lambda name: name.replace("_", " "))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The given prompts and those that the prompt model writes, which are kept in the stage's folder.

        Raises:
            Short: not all prompts could be had, and `allow_short` is False; or most calls of a round failed.
        """
        if not self.settings.prompt_model:
            return list(self.given)
        folder = self.stage.path(PROMPTS)
        if not self.stage.done:
            prompt_set, report = self._generate(self.models, progress=True)
            write_prompts(folder, prompt_set)
            self.stage.notes["prompts"] = str(report).splitlines()
            print(report)
        return [*records.load_prompts(self.record.id, folder), *self.given]

    def deal(self) -> list[dict]:
        """Rows without answers; see rows.deal_prompts. An imported sample's rows are dealt already."""
        if self.imported:
            return self.fill()
        return deal_prompts(self.record, self.prompts, self.settings)

    def fill(self) -> list[dict]:
        """Every column of every row, stored in the stage's folder with counts in its manifest; read back if done.

        Raises:
            RuntimeError: calls to a model behind an API failed, and `allow_short` is False; or most answers did,
                whoever was asked. The next run asks them again.
        """
        if self.stage.done:
            return files.read_jsonl(self.stage.path(ROWS))
        with self.stage, self.server or nullcontext():
            rows = fill_rows(self.models["completion"], self.deal(), self.record, self.settings)
            self._refuse_outage(rows)
            files.write_jsonl(self.stage.path(ROWS), rows)
            self.stage.notes |= {"counts": counts(rows)} | ({"engine": chat.vllm.VLLM} if self.server else {})
        return rows

    def _refuse_outage(self, rows: Sequence[dict]) -> None:
        """Raise RuntimeError where more answers failed than there may be: few are missed, but not most of them."""
        if self.settings.completion_model or self.server:
            at_most = MOST_FAILED if self.settings.allow_short else 0.0
            refuse_outage(rows, ANSWERS, at_most, ", or go on without a few by the option allow_short")
        else:
            hint = f", or see what `c3po doctor {self.settings.model}` says"
            refuse_outage(rows, ANSWERS, MOST_FAILED, hint)

    def adherence(self) -> pd.DataFrame:
        """Share of test answers that pass the feedback's metric, by answer column and split; NaN without any."""
        tests = [row for row in self.fill() if row["fold"] == "test" and self.record.metric]
        shown = [
            (column, row["split"], self.record.passes(row[column], row["baseline"]))
            for row in tests
            for column in ANSWERS
            if row.get(column)
        ]
        table = pd.DataFrame(shown, columns=["answer", "split", "share"]).astype({"share": float})
        shares = table.pivot_table(index="answer", columns="split", values="share")
        return shares.reindex(index=ANSWERS, columns=SPLITS).rename_axis(index=None, columns=None)

    def spending(self) -> pd.DataFrame:
        """What its models were asked in this run, by any stage: calls by status, tokens, USD where known."""
        scopes = {model.scope for model in self.models.values()}
        rows = [row for row in self.models["completion"].ledger.report() if row["model"] in scopes]
        return pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))

    @property
    def _effort(self) -> Effort:
        return Effort(**{"seed": self.settings.seed, **self.settings.effort})

    def _generate(self, models: dict[str, ChatModel], progress: bool = False) -> tuple[records.PromptSet, Report]:
        return generate_prompts(
            self.record, models["prompt"], category_model=models["category"], categories=self.settings.categories,
            per_category=self.settings.prompts_per_category, effort=self._effort,
            allow_short=self.settings.allow_short, progress=progress,
        )  # fmt: skip


def open_sample(
    run: Path | str, feedback: str, settings: SampleSettings, limits: dict[str, Any] | None = None
) -> Sample:
    """The sample of one feedback, `id` or `path/to/set.yaml#id`, in a run's folder. `limits` are of openai: models.

    A sample that was imported is taken as it is, with the settings that are stored with it.

    Raises:
        FeedbackError: no such feedback, or no prompts for it.
        ValueError: general prompts that cannot be had; an imported sample of another model, or for another record.
    """
    record = find_feedback(feedback)
    if not (imported := imported_sample(run, record)):
        return Sample(Path(run), record, settings, find_prompts(feedback, settings), limits or {})
    stored = stored_settings(run, record.id)
    if settings.model != stored.model:
        raise ValueError(
            f"model: expected {stored.model!r}, whose answers were imported into {imported}, found {settings.model!r}"
        )
    return Sample(Path(run), record, stored, (), limits or {}, imported)


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
