"""The card of an exported adapter or merged model: what was learned from which data, how, and how well."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from c3po_utils.engine import names
from c3po_utils.runs import exports, files
from c3po_utils.sampling import load_rows, members, stored_feedback, stored_settings
from c3po_utils.training.stage import TrainSettings

CITATION = """@inproceedings{stephan2024rlvf,
  title     = {{RLVF}: Learning from Verbal Feedback without Overgeneralization},
  author    = {Stephan, Moritz and Khazatsky, Alexander and Mitchell, Eric and Chen, Annie S. and Hsu, Sheryl and
               Sharma, Archit and Finn, Chelsea},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2402.10893}
}"""
CARD = """# {title}

{mark}: {what} by C3PO's kit (`{method}`), to learn from a sentence of feedback without overgeneralizing.

{feedback}

**Base model**: {base}

**Licence of the base**: {licence}

## Use
```python
{load}
```

## Data
{data}

## Training
$$ {equation} $$

{settings}

## Scores
{scores}

## Citation
```bibtex
{citation}
```
"""
SCORES = (
    "S_in: how much more often than the base model the feedback is followed where it applies; S_near and S_general: how"
    " often answers change in this respect elsewhere, on tempting and on general prompts; S_out is the mean of these."
)
NO_SCORES = "Not evaluated in this run."
ROUNDED = " (trained on its weights as a Q4_1 GGUF file rounds them)"
SPLIT_NAMES = {
    "in_scope": "where the feedback applies",
    "near_scope": "tempting, where it does not",
    "out_of_scope": "of other kinds",
}


def base_name(model: str) -> str:
    """What a run's model is called elsewhere: a Hugging Face id, or the full path of a folder."""
    name = names.check_name(model)
    if name == names.EMBEDDED:
        return names.EMBEDDED_ON_HUB
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def licence(model: str) -> str | None:
    """The licence that the base model's card or configuration states; None: it states none, or cannot be asked."""
    name = base_name(model)
    if name == names.EMBEDDED_ON_HUB:
        return "apache-2.0"
    folder = Path(name)
    try:
        stated = ModelCard.load(folder / exports.CARD if folder.is_dir() else name).data.to_dict().get("license")
    except Exception:  # no card, a card without a head, or a hub that cannot be reached: not known, in every case
        stated = None
    config = folder / "config.json"
    return stated or (files.read_json(config, dict).get("license") if config.is_file() else None)


def card(
    run: Path, feedback_id: str, settings: TrainSettings, lora: dict, *, library: str, load: str, scores: str = ""
) -> str:
    """The card in Markdown, with the head that the Hugging Face hub reads.

    Args:
        lora: the adapter's configuration, as peft stores it.
        library: `peft` for an adapter, `transformers` for a merged model.
        load: Python code that loads it.
        scores: the table of its scores in Markdown; empty: it was not evaluated.

    Raises:
        FileNotFoundError: the run's samples are not here; they say what was learned.
    """
    sampled_with = stored_settings(run, feedback_id)
    base, known = base_name(sampled_with.model), licence(sampled_with.model)
    records = [stored_feedback(run, id) for id in members(feedback_id)]
    return head(base, known, library) + CARD.format(
        title=f"{feedback_id}, {settings.method}", mark=exports.MARK, method=settings.method,
        what="a LoRA adapter trained" if library == "peft" else "a model with a LoRA adapter merged into it, trained",
        feedback="\n\n".join(_feedback(record) for record in records),
        base=f"`{base}`{ROUNDED * (base == names.EMBEDDED_ON_HUB)}",
        licence=known or "not known; ask whoever made it", load=load, data=_data(run, feedback_id),
        equation=settings.objective.equation, settings=_settings(settings, lora, sampled_with.system_prompt),
        scores=f"{SCORES}\n\n{scores}" if scores else NO_SCORES, citation=CITATION,
    )  # fmt: skip


def head(base: str, known: str | None, library: str) -> str:
    """The YAML above a card. A base that is a folder of this machine is left out: the hub knows it not."""
    data = ModelCardData(
        base_model=base if names.HUB_ID.fullmatch(base) else None, license=known, library_name=library,
        pipeline_tag="text-generation", tags=["c3po", "lora"],
        base_model_relation="adapter" if library == "peft" else "finetune",
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n"


def _feedback(record: Any) -> str:
    return f"> {record.content}\n\n**Where**: {record.domain}  \n**What changes**: {record.effect}"


def _data(run: Path, feedback_id: str) -> str:
    """A table of the rows by split and fold."""
    rows = load_rows(run, feedback_id)
    count = Counter((row["split"], row["fold"]) for row in rows)
    lines = ["| prompts | to train on | to test on |", "|---|---|---|"]
    lines += [f"| {said} (`{split}`) | {count[split, 'train']} | {count[split, 'test']} |"
              for split, said in SPLIT_NAMES.items()]  # fmt: skip
    return "\n".join(lines)


def _settings(settings: TrainSettings, lora: dict, system_prompt: str) -> str:
    chosen = {
        "learning_rate": settings.learning_rate, "epochs": settings.epochs, "batch_size": settings.batch_size,
        "seed": settings.seed, **{key: lora[key] for key in ("r", "lora_alpha", "lora_dropout")},
        **settings.method_settings, **settings.training_arguments, "system prompt": system_prompt,
    }  # fmt: skip
    return "\n".join(f"- {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
