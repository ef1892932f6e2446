"""What pi_0 writes for the rows: answers, revisions, answers with the feedback in context (section 3.2).

Each kind is a column (`baseline`, `revised`, `in_context`, `in_context_cot`), with a `<column>_status` that says how
the model's call ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from c3po_utils.chat import ChatModel, Outcome, Sampling, ask, request
from c3po_utils.feedback import Feedback, check
from c3po_utils.sampling.settings import SampleSettings

# In-context baseline: the prompt with the feedback in it.
IN_CONTEXT = """{prompt}

(Standing instruction, to be followed if it is applicable here: {feedback})"""

# In-context with chain of thought: a turn of reasoning, then the answer alone.
REASON_FIRST = """A user writes: "{prompt}"

The user once gave this instruction: "{feedback}"

Does the instruction apply to what the user writes now? Explain in one sentence. Do not answer the user yet."""
THEN_ANSWER = "Now write the answer to the user, following the instruction only if it applies. Write nothing else."

# Revision by pi_0: a turn of thought about the change, then the revised answer alone.
REVISE = """A user writes: "{prompt}"

The answer was: "{answer}"

The answer should be changed so that: {effect}. Say in one sentence what you will change."""
THEN_WRITE = "Now write the changed answer. Write nothing else."

BEST_OF_WAVES = (1, 1, 2, 4)  # samples asked for at once: most rows need few, and waves keep batches large


def _fill(rows: Sequence[dict], column: str, outcomes: dict[str, Outcome], tag: str) -> None:
    for row in rows:
        outcome = outcomes[f"{row['id']}#{tag}"]
        row[column], row[f"{column}_status"] = outcome.text if outcome.usable else "", outcome.status
        if not outcome.usable:
            row[f"{column}_reason"] = outcome.reason


def add_answers(model: ChatModel, rows: Sequence[dict], settings: SampleSettings, column: str = "baseline") -> None:
    """The model's own answers, as column `column`; another column name is another, independent sample."""
    # An API's ledger knows conversations, not ids: only a replicate makes the second sample another one.
    again = int(column != "baseline" and bool(settings.completion_model))
    requests = [
        replace(request(f"{row['id']}#{column}", row["prompt"], system=settings.system_prompt), replicate=again)
        for row in rows
    ]
    _fill(rows, column, ask(model, requests, settings.sampling, column), column)


def in_context_prompt(prompt: str, feedback: Feedback) -> str:
    """The prompt with the feedback in it, to be applied where applicable."""
    return IN_CONTEXT.format(prompt=prompt, feedback=feedback.content)


def add_in_context(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """Answers to the prompt with the feedback in it, to be applied where applicable: column `in_context`."""
    requests = [
        request(
            f"{row['id']}#in_context",
            in_context_prompt(row["prompt"], feedback),
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
    """Think, then write: the model's own first turn goes before the turn that asks for the text alone.

    Where the first turn cannot be had, its outcome is the row's.
    """
    system, outcomes, writing = settings.system_prompt, {}, []
    thinking = [
        replace(request(f"{row['id']}#{tag}/think", first(row), system=system), replicate=replicate) for row in rows
    ]
    thoughts = ask(model, thinking, sampling, f"{tag}: thinking")
    for row, asked in zip(rows, thinking, strict=True):
        id, thought = f"{row['id']}#{tag}", thoughts[asked.id]
        if thought.usable:
            turns = [(first(row), thought.text or "Yes.")]
            writing.append(replace(request(id, second, system=system, turns=turns), replicate=replicate))
        else:
            outcomes[id] = replace(thought, id=id)
    return outcomes | ask(model, writing, sampling, f"{tag}: writing")


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
    metric, the first that ended. A row that none passes has an empty `revised` and the status `rejected`, or the
    last try's if that was not answered at all; where the baseline was not, there is nothing to revise.

    Raises:
        ValueError: the strategy needs demonstrations and the record has none.
    """
    if settings.strategy == "demonstrate" and not feedback.demonstrations:
        raise ValueError(f"feedback {feedback.id!r} has no demonstrations: add some, or use strategy 'revise'")
    for row in rows:
        row.update(revised="", revised_status=row["baseline_status"], revised_tries=0)
    rows = [row for row in rows if row["baseline_status"] in ("ok", "truncated")]
    done, waves = 0, iter(BEST_OF_WAVES)
    while done < settings.best_of:
        tries = range(done, min(done + next(waves, BEST_OF_WAVES[-1]), settings.best_of))
        missing = [row for row in rows if not row["revised"]]
        for outcomes in _candidates(model, missing, feedback, settings, tries) if missing else ():
            done += 1
            for row in missing:
                outcome = outcomes[row["id"]]
                if row["revised"]:
                    continue
                row["revised_status"] = "rejected" if outcome.usable else outcome.status
                if _passes(feedback, outcome, row["baseline"]):
                    row.update(revised=outcome.text, revised_status=outcome.status, revised_tries=done)
        if not missing:
            break


def _passes(feedback: Feedback, outcome: Outcome, baseline: str) -> bool:
    if outcome.status != "ok" or not outcome.text:
        return False
    return feedback.metric is None or check(feedback.metric, outcome.text, baseline)
