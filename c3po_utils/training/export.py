"""Trained adapters as others load them: a folder of peft's with a card, or merged into the base model."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from c3po_utils.engine import load_model, load_tokenizer, names
from c3po_utils.runs import Stage, done_stages, exports, files, stage
from c3po_utils.sampling import stored_settings
from c3po_utils.training.adapters import merged
from c3po_utils.training.gguf_file import write_gguf
from c3po_utils.training.model_card import base_name, card, licence
from c3po_utils.training.stage import CONFIG, WEIGHTS, TrainSettings, adapter_folder, adapter_hash, gated_folder

LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{folder}")"""
LOAD_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""


@dataclass(frozen=True)
class Trained:
    """One adapter of a run: `feedback_id` may be `a+b`, `method` a variant `c3po@beta=0.03`."""

    run: Path
    feedback_id: str
    method: str

    @classmethod
    def find(cls, run: Path, feedback: str | None = None, method: str | None = None) -> Trained:
        """The adapter that is meant; feedback and method need not be named where there is only one.

        Raises:
            ValueError: no such adapter, with the nearest name, or several; or a gated method, whose adapter has another
                name.
            FileNotFoundError: its weights are not here, as in a checkout that keeps no adapters.
            DamagedFile: they are not those that were trained.
        """
        trained = [(folder.parent.name, folder.name) for folder, _ in done_stages(run, "train")]
        id = exports.only("trained feedback", feedback, (id for id, _ in trained), run)
        methods = (name for other, name in trained if other == id)
        found = cls(run, id, exports.only("trained method", method, methods, f"{run}, {id},"))
        if gated := gated_folder(found.folder):
            raise ValueError(
                f"{id}/{found.method}: a gate decides at each prompt whether its adapter answers, which an exported"
                f" model cannot: expected a method without a gate; export the adapter that it adds as {gated.name!r}"
            )
        adapter_hash(found.folder)
        return found

    @property
    def folder(self) -> Path:
        return adapter_folder(self.run, self.feedback_id, self.method)

    @property
    def model(self) -> str:
        return stored_settings(self.run, self.feedback_id).model

    @cached_property
    def settings(self) -> TrainSettings:
        return TrainSettings(**Stage(self.folder, {}).manifest["identity"]["settings"])

    @cached_property
    def lora(self) -> dict:
        """The adapter's configuration, as peft stores it."""
        stage.intact(self.folder, CONFIG)
        return files.read_json(self.folder / CONFIG, dict)

    def card(self, library: str, load: str, scores: str = "") -> str:
        return card(self.run, self.feedback_id, self.settings, self.lora, library=library, load=load, scores=scores)


def export_adapter(adapter: Trained, out: Path | str, scores: str = "", force: bool = False) -> Path:
    """Write the adapter to the folder `out` as peft loads it, with a card; see model_card.card for `scores`.

    The folder names its base model as others know it, not as this machine's cache does.

    Raises:
        FileExistsError: see exports.placed.
        DamagedFile: the weights are not those that were trained.
    """
    base = base_name(adapter.model)
    with exports.placed(out, force) as folder:
        folder.mkdir()
        stage.intact(adapter.folder, WEIGHTS)  # whole, also where finding it looked at its size alone
        shutil.copy(adapter.folder / WEIGHTS, folder / WEIGHTS)
        files.write_json(folder / CONFIG, adapter.lora | {"base_model_name_or_path": base, "inference_mode": True})
        text = adapter.card("peft", LOAD_ADAPTER.format(base=base, folder=Path(out).name), scores)
        (folder / exports.CARD).write_text(text, encoding="utf-8")
    return Path(out)


def export_merged(
    adapter: Trained,
    out: Path | str,
    *,
    gguf: Path | str | None = None,
    kind: str = "bf16",
    scores: str = "",
    force: bool = False,
) -> Path:
    """Write the base model with the adapter merged into it to the folder `out`: safetensors in bf16, tokenizer, card.

    The weights are those that answered in the evaluation, bit for bit. A base that was loaded with fewer bits
    (`@4bit`) is merged into in bf16, as merging into rounded weights would round the adapter, too.

    Args:
        gguf: a file for llama.cpp, besides; `kind` is how its weights are stored (see gguf_file.write_gguf).

    Raises:
        FileExistsError: see exports.placed.
        ValueError: a model that write_gguf does not know; nothing is written then.
        RuntimeError: the adapter is not the one that was trained (see adapters.load_adapter).
    """
    bare = names.check_name(adapter.model)
    tokenizer = load_tokenizer(bare)
    with ExitStack() as open_:  # both results are placed, or neither
        folder = open_.enter_context(exports.placed(out, force))
        file = None
        if gguf and Path(gguf).resolve().is_relative_to(Path(out).resolve()):
            file = folder / Path(gguf).resolve().relative_to(Path(out).resolve())
        elif gguf:
            file = open_.enter_context(exports.placed(gguf, force))
        model = open_.enter_context(merged(load_model(bare, device="cpu"), adapter.folder))
        with files.writing(out, SafetensorError):
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        text = adapter.card("transformers", LOAD_MERGED.format(folder=Path(out).name), scores)
        (folder / exports.CARD).write_text(text, encoding="utf-8")
        if file:
            title = f"{adapter.feedback_id} {adapter.method}"
            # transformers reads the embedded model's tokenizer without its rule that digits are tokens of their own
            pre = "smollm" if bare == names.EMBEDDED else None
            write_gguf(model, tokenizer, file, kind, name=title, licence=licence(bare), pre=pre)
    return Path(out)
