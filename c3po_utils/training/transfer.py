"""The transfer set: what a gated model answers to unlabelled prompts, for it to be distilled into one plain adapter.

Where the gate is closed the gated model is pi_0. Its answers are the same for all feedbacks, and each is made once in a
run: the run's ledger keeps it. Prompts of other feedbacks at which the gate is open are left out: whether the feedback
applies there is what gates are least sure of. At nearby ones, about the feedback's own matters, the gate is what they
are for: where it is open they are answered with the adapter, and join the rows in scope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.feedback import Prompt
from c3po_utils.runs import LEDGER
from c3po_utils.sampling import answers, load_rows, members, stored_feedback, stored_settings, unlabelled
from c3po_utils.training.adapters import merged
from c3po_utils.training.gate import load_gate, prompt_ids
from c3po_utils.training.methods import Method
from c3po_utils.training.stage import adapter_folder, adapter_hash, weights_folder


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
    gate = load_gate(adapter_folder(run, feedback_id, method.distils), model)

    def routed(prompts: Sequence[Prompt]) -> tuple[list[dict], list[dict]]:
        """Rows without answers, where the gate is closed and where it is open."""
        opens = gate.opens(model, [prompt_ids(tokenizer, prompt.text, settings.system_prompt) for prompt in prompts])
        found: tuple[list[dict], list[dict]] = [], []
        for prompt, is_open in zip(prompts, opens.tolist(), strict=True):
            found[is_open].append(
                {"id": prompt.id, "feedback": feedback_id, "category": prompt.category, "fold": "train",
                 "prompt": prompt.text, "revised": ""}
            )  # fmt: skip
        return found

    others, _ = routed(unlabelled.unlabelled_prompts(own, method.unlabelled, settings.seed))
    near, inside = routed(unlabelled.nearby_prompts(own, method.nearby))
    others = [row | {"split": unlabelled.joined(place, bool(method.nearby))} for place, row in enumerate(others)]
    rows = others + [row | {"split": "near_scope"} for row in near] + [row | {"split": "in_scope"} for row in inside]
    answers.add_answers(chat.open_chat(settings.model, run / LEDGER), rows, settings)
    revised = rows[len(rows) - len(inside) :]
    if revised:
        folder = weights_folder(adapter_folder(run, feedback_id, method.distils))
        with merged(model, folder) as tuned:
            known_as = f"{settings.model}+{adapter_hash(folder)}"
            adapted = chat.remembered(tuned, tokenizer, known_as, run / LEDGER)
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
