"""The transfer set: what a gated model answers to unlabelled prompts, for it to be distilled into one plain adapter.

Where the gate is closed the gated model is pi_0. Its answers are the same for all feedbacks, and each is made once in a
run: the run's ledger keeps it. Prompts of other feedbacks at which the gate is open are left out: whether the feedback
applies there is what gates are least sure of. At nearby ones, about the feedback's own matters, the gate is what they
are for: where it is open they are answered with the adapter, and join the rows in scope.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.runs import LEDGER
from c3po_utils.sampling import answers, load_rows, members, stored_feedback, stored_settings, unlabelled
from c3po_utils.training.adapters import answering
from c3po_utils.training.gate import load_gate, prompt_ids
from c3po_utils.training.methods import Method
from c3po_utils.training.stage import adapter_folder, weights_folder


def transfer_rows(run: Path, feedback_id: str, method: Method) -> list[dict]:
    """Rows of the training fold with `baseline`, pi_0's answer, to the method's unlabelled and nearby prompts.

    Of `method.unlabelled` prompts those where the gate is closed; of the nearby ones also those where it is open and
    the adapter's answer, `revised`, ended by itself and passes the feedback's metric, if it has one.

    Raises:
        FileNotFoundError, DamagedFile, RuntimeError: as in `load_gate` and `load_adapter`.
        FeedbackError, ValueError: as in `unlabelled.nearby_prompts`.
    """
    own, settings = load_rows(run, feedback_id), stored_settings(run, feedback_id)
    model, tokenizer = engine.shared_model(settings.model), engine.load_tokenizer(settings.model)
    others = unlabelled.unlabelled_prompts(own, method.unlabelled, settings.seed)
    nearby = unlabelled.nearby_prompts(own, method.nearby)
    prompts = [*others, *nearby]
    gate = load_gate(adapter_folder(run, feedback_id, method.distils), model)
    opens = gate.opens(model, [prompt_ids(tokenizer, prompt.text, settings.system_prompt) for prompt in prompts])
    opened = {prompt.id for prompt, is_open in zip(prompts, opens, strict=True) if is_open}
    splits = unlabelled.joined(others, nearby, opened)
    rows = [
        {"id": prompt.id, "feedback": feedback_id, "category": prompt.category, "fold": "train",
         "split": splits[prompt.id], "prompt": prompt.text, "revised": ""}
        for prompt in prompts if prompt.id in splits
    ]  # fmt: skip
    answers.add_answers(chat.open_chat(settings.model, run / LEDGER), rows, settings)
    if revised := [row for row in rows if row["split"] == "in_scope"]:
        folder = weights_folder(adapter_folder(run, feedback_id, method.distils))
        with answering(settings.model, folder, run / LEDGER) as adapted:
            answers.add_answers(adapted, revised, settings, "revised")
    passes = passing(run, feedback_id)
    return [row for row in rows if row["split"] != "in_scope" or (row["revised_status"] == "ok" and passes(row))]


def passing(run: Path, feedback_id: str) -> Callable[[dict], bool]:
    """Whether a row's `revised` passes the metric of its feedback, if that has one.

    Of two that are learned jointly one is enough where the row is of neither by name.
    """
    records = {id: stored_feedback(run, id) for id in members(feedback_id)}

    def passes(row: dict) -> bool:
        own = [records[row["feedback"]]] if row["feedback"] in records else records.values()
        return any(not record.metric or record.passes(row["revised"], row["baseline"]) for record in own)

    return passes
