"""The transfer set: what a gated model answers to unlabelled prompts, for it to be distilled into one plain adapter.

Where the gate is closed the gated model is pi_0. Its answers are the same for all feedbacks, and each is made once in a
run: the run's ledger keeps it. Prompts at which the gate is open are left out: whether the feedback applies there is
what gates are least sure of.
"""

from __future__ import annotations

from pathlib import Path

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.runs import LEDGER
from c3po_utils.sampling import answers, load_rows, stored_settings, unlabelled
from c3po_utils.training.gate import load_gate, prompt_ids
from c3po_utils.training.methods import Method
from c3po_utils.training.stage import adapter_folder


def transfer_rows(run: Path, feedback_id: str, method: Method) -> list[dict]:
    """Rows of the training fold with `baseline`, pi_0's answer, to those of `method.unlabelled` prompts that pass.

    Raises:
        FileNotFoundError, DamagedFile, RuntimeError: as in `load_gate`.
    """
    settings = stored_settings(run, feedback_id)
    model, tokenizer = engine.shared_model(settings.model), engine.load_tokenizer(settings.model)
    gate = load_gate(adapter_folder(run, feedback_id, method.distils), model)
    prompts = unlabelled.unlabelled_prompts(load_rows(run, feedback_id), method.unlabelled, settings.seed)
    opens = gate.opens(model, [prompt_ids(tokenizer, prompt.text, settings.system_prompt) for prompt in prompts])
    rows = [
        {"id": prompt.id, "feedback": feedback_id, "category": prompt.category, "fold": "train", "prompt": prompt.text}
        for prompt, open in zip(prompts, opens, strict=True)
        if not open
    ]
    answers.add_answers(chat.open_chat(settings.model, run / LEDGER), rows, settings)
    return [row | {"split": unlabelled.joined(place), "revised": ""} for place, row in enumerate(rows)]
