"""What pi_0 writes for the rows: answers, revisions, answers with the feedback in context (section 3.2).

Each kind is a column (`baseline`, `revised`, `in_context`, `in_context_cot`), with a `<column>_status` that says how
the model's call ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

from c3po_utils.chat import ChatModel, Outcome, Sampling, ask, request, types
from c3po_utils.feedback import Feedback
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

FAILED_AT_MOST = 0.05  # of a server's answers, and of a judge's: more is an outage
MOST_FAILED = 0.5  # of a local model's answers, which fail again when they are asked again; and where fewer will do
Turns = Sequence[tuple[str, str]]  # what the user said and what the assistant answered, before the prompt
BEST_OF_WAVES = (1, 1, 2, 4)  # samples asked for at once: most rows need few, and waves keep batches large


def question(
    row: dict, tag: str, prompt: str, settings: SampleSettings, turns: Turns = (), replicate: int = 0
) -> types.Request:
    """What is asked for a row's column `tag`, wherever it is asked: equal ids have equal answers."""
    made = request(f"{row['id']}#{tag}", prompt, system=settings.system_prompt, turns=turns)
    return replace(made, replicate=replicate)


def _fill(rows: Sequence[dict], column: str, outcomes: dict[str, Outcome]) -> None:
    for row in rows:
        outcome = outcomes[f"{row['id']}#{column}"]
        row[column], row[f"{column}_status"] = outcome.text if outcome.usable else "", outcome.status
        if not outcome.usable:
            row[f"{column}_reason"] = outcome.reason


def refuse_outage(
    rows: Sequence[dict], columns: Iterable[str], at_most: float = FAILED_AT_MOST, hint: str = ""
) -> None:
    """Raise RuntimeError where more than a share of what was asked failed: the server was not there, or broken is what
    a local model computes.

    Other ends (`refused`, `filtered`, ...) are answers of a kind, and what cannot be answered was not asked. What was
    answered is in the ledger.
    """
    ends = [
        (row[f"{column}_status"], f"{column} of {row['id']}", _reason(row, column))
        for row in rows
        for column in columns
        if f"{column}_status" in row
    ]
    asked = [end for end in ends if end[0] != "failed" or types.answerable(end[2])]
    lost = [end for end in asked if end[0] == "failed"]
    if len(lost) > at_most * len(asked):
        _, what, reason = lost[0]
        raise RuntimeError(
            f"{len(lost)} of {len(asked)} answers could not be had, the first ({what}) because:"
            f" {reason}. All others are stored: run again to ask for these{hint}"
        )


def _reason(row: dict, column: str) -> str:
    """Why a row has no answer in a column, which may be that it had none to begin with."""
    return row.get(f"{column}_reason", row.get("baseline_reason", "its tries failed"))


def own_question(row: dict, column: str, settings: SampleSettings) -> types.Request:
    """What `add_answers` asks for a row: another column is another, independent sample."""
    # An API's ledger knows conversations, not ids: only a replicate makes the second sample another one.
    again = int(column != "baseline" and bool(settings.completion_model))
    return question(row, column, row["prompt"], settings, replicate=again)


def add_answers(model: ChatModel, rows: Sequence[dict], settings: SampleSettings, column: str = "baseline") -> None:
    """The model's own answers, as column `column`."""
    requests = [own_question(row, column, settings) for row in rows]
    _fill(rows, column, ask(model, requests, settings.sampling, column))


def in_context_prompt(prompt: str, feedback: Feedback) -> str:
    """The prompt with the feedback in it, to be applied where applicable."""
    return IN_CONTEXT.format(prompt=prompt, feedback=feedback.content)


def add_in_context(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """Answers to the prompt with the feedback in it: column `in_context`."""
    requests = [question(row, "in_context", in_context_prompt(row["prompt"], feedback), settings) for row in rows]
    _fill(rows, "in_context", ask(model, requests, settings.sampling, "in-context"))


def add_in_context_cot(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """First reason whether the feedback applies, then answer: column `in_context_cot`."""
    firsts = [REASON_FIRST.format(prompt=row["prompt"], feedback=feedback.content) for row in rows]
    outcomes = _two_turns(model, rows, "in_context_cot", firsts, THEN_ANSWER, settings, settings.sampling)
    _fill(rows, "in_context_cot", outcomes)


def _two_turns(
    model: ChatModel,
    rows: Sequence[dict],
    tag: str,
    firsts: Sequence[str],
    second: str,
    settings: SampleSettings,
    sampling: Sampling,
    replicate: int = 0,
) -> dict[str, Outcome]:
    """Think, then write: the model's own first turn goes before the turn that asks for the text alone.

    Where the first turn cannot be had, its outcome is the row's.
    """
    thinking = [
        question(row, f"{tag}/think", first, settings, replicate=replicate)
        for row, first in zip(rows, firsts, strict=True)
    ]
    thoughts = ask(model, thinking, sampling, f"{tag}: thinking")
    outcomes, writing = {}, []
    for row, first, asked in zip(rows, firsts, thinking, strict=True):
        thought = thoughts[asked.id]
        if thought.usable:
            writing.append(question(row, tag, second, settings, [(first, thought.text or "Yes.")], replicate))
        else:
            id = f"{row['id']}#{tag}"
            outcomes[id] = replace(thought, id=id)
    return outcomes | ask(model, writing, sampling, f"{tag}: writing")


def add_revisions(model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings) -> None:
    """Revised answers y+ of in-scope rows, columns `revised` and `revised_tries`: best of n.

    The first of up to `best_of` samples that ended by itself and passes the feedback's metric is kept; without a
    metric, the first that ended. `best_of` 0: a single one, if it ended, whatever the metric says. A row that none
    passes has an empty `revised` and the status `rejected`, or the last try's if that was not answered at all; where
    the baseline was not, there is nothing to revise.

    Raises:
        ValueError: the strategy needs demonstrations and the record has none.
    """
    if settings.strategy == "demonstrate" and not feedback.demonstrations:
        raise ValueError(f"feedback {feedback.id!r} has no demonstrations: add some, or use strategy 'revise'")
    for row in rows:
        row.update(revised="", revised_status=row["baseline_status"], revised_tries=0)
    answered = [row for row in rows if row["baseline_status"] in types.USABLE]
    done, waves, most = 0, iter(BEST_OF_WAVES), max(settings.best_of, 1)
    while done < most and (missing := [row for row in answered if not row["revised"]]):
        tries = range(done, min(done + next(waves, BEST_OF_WAVES[-1]), most))
        outcomes = _revise(model, missing, feedback, settings, tries)
        for row, k in product(missing, tries):
            outcome = outcomes[f"{row['id']}#revised{k}"]
            if row["revised"]:
                continue
            row["revised_status"] = "rejected" if outcome.usable else outcome.status
            row.pop("revised_reason", None)
            if not outcome.usable:
                row["revised_reason"] = outcome.reason
            if _passes(feedback if settings.best_of else None, outcome, row["baseline"]):
                row.update(revised=outcome.text, revised_status=outcome.status, revised_tries=k + 1)
        done = tries.stop


def _revise(
    model: ChatModel, rows: Sequence[dict], feedback: Feedback, settings: SampleSettings, tries: range
) -> dict[str, Outcome]:
    """One outcome for each row and try."""
    if settings.strategy == "demonstrate":
        turns = [(shown.prompt, shown.answer) for shown in feedback.demonstrations]
        requests = [question(row, f"revised{k}", row["prompt"], settings, turns, k) for k in tries for row in rows]
        return ask(model, requests, settings.demonstrating, f"revised (tries {tries.start + 1}-{tries.stop})")
    outcomes: dict[str, Outcome] = {}
    firsts = [REVISE.format(prompt=row["prompt"], answer=row["baseline"], effect=feedback.effect) for row in rows]
    for k in tries:
        outcomes |= _two_turns(model, rows, f"revised{k}", firsts, THEN_WRITE, settings, settings.demonstrating, k)
    return outcomes


def _passes(feedback: Feedback | None, outcome: Outcome, baseline: str) -> bool:
    """Whether it ended by itself, and passes the metric of the feedback, if there is one to pass."""
    if outcome.status != "ok" or not outcome.text:
        return False
    return feedback is None or feedback.metric is None or feedback.passes(outcome.text, baseline)
