"""Who does what when data is sampled: the models by role, the prompts they write, and what it will all cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_utils.chat import ChatModel
from c3po_utils.feedback import Feedback, Prompt, load_prompts
from c3po_utils.open_chat import open_chat
from c3po_utils.propose import Proposal, propose_prompts, write_prompts
from c3po_utils.rehearsal import Rehearsal
from c3po_utils.runs import Stage
from c3po_utils.sample import SampleSettings, deal_prompts, fill_rows
from c3po_utils.topup import Effort, made_up

PROMPTS = "prompts"  # the folder, in the stage's, of what the prompt model wrote


@dataclass(frozen=True)
class Roles:
    """The models of a sample. `prompt` and `category` are None where the bundled prompts are used."""

    completion: ChatModel
    prompt: ChatModel | None = None
    category: ChatModel | None = None

    @property
    def named(self) -> dict[str, ChatModel]:
        return {role: model for role, model in vars(self).items() if model}


def open_roles(settings: SampleSettings, ledger: Path | str, limits: dict[str, Any] | None = None) -> Roles:
    """The models that the settings name, each opened once; `limits` are for those behind an API (`LIMITS`)."""
    names = {"completion": settings.completion_model or settings.model}
    if settings.prompt_model:
        names |= {"prompt": settings.prompt_model, "category": settings.category_model or settings.prompt_model}
    opened = {}
    for name in dict.fromkeys(names.values()):
        opened[name] = open_chat(name, ledger, **(limits or {}) if name.startswith("openai:") else {})
    return Roles(**{role: opened[name] for role, name in names.items()})


def gather_prompts(
    roles: Roles, feedback: Feedback, given: Sequence[Prompt], settings: SampleSettings, stage: Stage
) -> list[Prompt]:
    """The given prompts and those that the prompt model writes, which are kept in the stage's folder.

    Raises:
        Short: not all prompts could be had, and `allow_short` is False.
    """
    if not roles.prompt:
        return list(given)
    folder = stage.path(PROMPTS)
    if not stage.done:
        proposal = _propose(roles, feedback, settings, progress=True)
        write_prompts(folder, feedback.id, proposal)
        stage.notes["prompts"] = str(proposal.report).splitlines()
        print(proposal.report)
    return [*load_prompts(feedback.id, folder), *given]


def _propose(roles: Roles, feedback: Feedback, settings: SampleSettings, progress: bool = False) -> Proposal:
    return propose_prompts(
        feedback,
        roles.prompt,
        category_model=roles.category,
        categories=settings.categories,
        per_category=settings.prompts_per_category,
        effort=_effort(settings),
        allow_short=settings.allow_short,
        progress=progress,
    )


def _effort(settings: SampleSettings) -> Effort:
    return Effort(**{"seed": settings.seed, **settings.effort})


def estimate(
    roles: Roles, feedback: Feedback, given: Sequence[Prompt], settings: SampleSettings, stage: Stage
) -> pd.DataFrame:
    """What a sample still takes, at most, by role: calls, those stored already, tokens, USD. Nothing is asked.

    The whole pipeline is played with stand-ins, which answer from the ledger where they can.
    """
    listing = partial(made_up, count=_effort(settings).at_once)
    dry = {role: Rehearsal(model, None if role == "completion" else listing) for role, model in roles.named.items()}
    if not stage.done:
        cast = Roles(**dry)
        proposed = _propose(cast, feedback, settings).prompts if cast.prompt else []
        fill_rows(cast.completion, deal_prompts(feedback, [*proposed, *given], settings), feedback, settings)
    table = {role: {"model": model.name, **vars(model.total)} for role, model in dry.items()}
    return pd.DataFrame(table).T.rename(columns=lambda name: name.replace("_", " "))


def spending(roles: Roles) -> pd.DataFrame:
    """What the roles' models were asked in this run, by any stage: calls by status, tokens, USD where known."""
    scopes = {model.scope for model in roles.named.values()}
    rows = [row for row in roles.completion.ledger.report() if row["model"] in scopes]
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))
