"""Where an adapter or a gate lies and what decides it: settings, the stage folder. Imports no library of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_utils import engine  # as a room: its heavy parts are imported when they are used
from c3po_utils.feedback import general
from c3po_utils.runs import Stage, files, nearest, parameters, stage
from c3po_utils.sampling import (
    SampleSettings,
    load_rows,
    members,
    rows_hash,
    stored_feedback,
    stored_settings,
    unlabelled,
)
from c3po_utils.training.limits import (
    PAPER_LORA,
    REFUSED_ARGUMENTS,
    SETTLED,
    Count,
    Positive,
    Seed,
    check_arguments,
    check_fields,
    check_lora,
    deciding,
)
from c3po_utils.training.methods import METHODS, OTHERS, Method, get_method, registered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An adapter's files: peft's two, the logits that prove it (adapters.py), and the training's log.
WEIGHTS, CONFIG, PROBE, LOG = "adapter_model.safetensors", "adapter_config.json", "probe.safetensors", "log.json"
# A gate's files: its tensors, what it reads and how well, and its score of every prompt (gate.py).
GATE, GATE_CARD, GATE_SCORES = "gate.safetensors", "gate.json", "gate_scores.jsonl"


def adapter_folder(run: Path | str, feedback_id: str, method: str) -> Path:
    return Path(run) / "train" / feedback_id / method


def gated_folder(folder: Path) -> Path | None:
    """The folder of the adapter that the gate in this folder adds; None where no gate lies, but an adapter or nothing.

    Raises:
        DamagedFile: the gate is not the one that its stage's manifest was written for.
    """
    told = (Stage(folder, {}).manifest or {}).get("files")
    if not (folder / GATE_CARD).exists() or (told and GATE_CARD not in told):  # an adapter was trained where a gate lay
        return None
    stage.intact(folder, GATE_CARD)
    return folder.parent / files.read_json(folder / GATE_CARD, dict)["gated"]


def weights_folder(folder: Path) -> Path:
    """Where the adapter's weights lie that a method's folder stands for: its own, or those that its gate adds."""
    return gated_folder(folder) or folder


def adapter_hash(folder: Path) -> str:
    """The hash by which later stages know an adapter, or a gate together with the adapter that it adds.

    Of a gate's card only what decides counts, its threshold: what else it tells may be told otherwise one day.

    Raises:
        FileNotFoundError: it is not trained yet; says how it is.
        DamagedFile: it is not the one that its stage's manifest was written for.
    """
    if gated := gated_folder(folder):
        card = files.read_json(folder / GATE_CARD, dict)
        return files.content_hash([stage.intact(folder, GATE), card["threshold"], adapter_hash(gated)])
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(
            f"{folder} has no adapter: run notebooks/02_train.ipynb with feedback={folder.parent.name!r} and"
            f" method={folder.name!r} first"
        )
    return stage.known(folder, WEIGHTS)


def known_hash(folder: Path, told_only: bool = False) -> str:
    """As `adapter_hash`; of what was trained here and is not kept, as in a checkout of results, what it was.

    With `told_only` it is what the manifests say, wherever they do, and no weights are read.

    Raises:
        As `adapter_hash`.
    """
    manifest = Stage(folder, {}).manifest or {}
    told = manifest.get("files", {})

    def known(name: str) -> str:
        there = (folder / name).exists() and not told_only
        return stage.known(folder, name) if there else told[name]["hash"]

    if GATE in told:
        gated = folder.parent / manifest["identity"]["objective"]["gated"]
        return files.content_hash([known(GATE), manifest["gate"]["threshold"], known_hash(gated, told_only)])
    return known(WEIGHTS) if WEIGHTS in told else adapter_hash(folder)


@dataclass(frozen=True)
class TrainSettings:
    """What decides an adapter besides the rows it is trained on.

    `method_settings` are fields of `Method` that differ; given by method (`{"c3po": {"beta": 0.03}}`) those of this
    method hold, so that a notebook's default for one method is none for another.

    Raises:
        ValueError: a value that cannot be meant, in any of them; found in a moment, without a library of models.
        KeyError: no such method, or setting of one, with the nearest that is.
    """

    method: str
    learning_rate: Positive
    epochs: Positive
    batch_size: Count
    seed: Seed
    lora: dict[str, Any] = field(default_factory=dict)  # arguments of lora_config that differ
    method_settings: dict[str, Any] = field(default_factory=dict)
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "training setting")
        check_lora(self.lora)
        check_arguments(self.training_arguments, REFUSED_ARGUMENTS | SETTLED)
        given = self.method_settings
        if given and all(isinstance(settings, dict) for settings in given.values()):
            for name in given.keys() - METHODS.keys():
                raise ValueError(f"method_settings: unknown method {name!r} ({nearest(name, METHODS)})")
            object.__setattr__(self, "method_settings", given.get(registered(self.method), {}))
        _ = self.objective

    @property
    def objective(self) -> Method:
        return get_method(self.method, **self.method_settings)


@dataclass(frozen=True)
class RunTraining:
    """One method on one feedback's sampled data in a run's folder; `feedback_id` may be `a+b`, the rows of both."""

    run: Path
    feedback_id: str
    settings: TrainSettings

    @cached_property
    def stage(self) -> Stage:
        return train_stage(self.run, self.feedback_id, self.settings)

    @cached_property
    def sampled_with(self) -> SampleSettings:
        """The sample's settings: pi_0, and the system prompt of every conversation."""
        return stored_settings(self.run, self.feedback_id)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return engine.load_tokenizer(self.sampled_with.model)

    def tell_replaced(self) -> None:
        """Say that what was trained here otherwise will be gone, and how the two differ; nothing where none is here."""
        told = []
        for key, (then, now) in self.stage.changes().items():
            if isinstance(then, dict) and isinstance(now, dict):
                names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
                told += [f"{name} {then.get(name)}, now {now.get(name)}" for name in names]
            else:
                told.append(key)
        if told:
            mine = f"{registered(self.settings.method)}@mine"
            own_name = f"{mine}2" if self.settings.method == mine else mine
            print(f"{self.stage} is replaced, as it was trained otherwise ({'; '.join(told)}).")
            print(f"Another method name, such as {own_name}, keeps both.")


def train_stage(run: Path | str, feedback_id: str, settings: TrainSettings) -> Stage:
    """The folder of one adapter or gate, done when it was trained with these settings on these rows.

    For `a+b` it is trained on the rows of both feedbacks.

    Raises:
        FileNotFoundError: the adapter that it starts from or adds, or the gate that it distils, is not there; says how
            it is trained. And as `unlabelled.nearby_prompts`.
    """
    run, objective = Path(run), settings.objective
    rows = {id: rows_hash(run, id) for id in members(feedback_id)}
    sampled_with = {id: parameters.recorded(stored_settings(run, id)) for id in rows}
    joint = len(rows) > 1
    identity = {
        "settings": _recorded(settings),
        # Only what differs from the defaults, so that a setting added to Method later renames no finished run.
        "objective": _without_place(objective.differences),
        "rows": rows if joint else rows[feedback_id],
        "sampled_with": sampled_with if joint else sampled_with[feedback_id],
        **engine.names.told(*(sampled["model"] for sampled in sampled_with.values())),
    }
    for name in OTHERS:
        if other := getattr(objective, name):
            identity[name] = known_hash(adapter_folder(run, feedback_id, other))
    if objective.distils:
        own, seed = load_rows(run, feedback_id), stored_settings(run, feedback_id).seed
        prompts = unlabelled.unlabelled_prompts(own, objective.unlabelled, seed)
        prompts += unlabelled.nearby_prompts(own, objective.nearby)
        identity["unlabelled"] = files.content_hash([(prompt.id, prompt.text) for prompt in prompts])
    if objective.nearby or objective.only_passing:  # by which rows are left out
        identity["metrics"] = files.content_hash(
            [stored_feedback(run, id).model_dump(mode="json")["metric"] for id in rows]
        )
    products = (GATE, GATE_CARD, GATE_SCORES) if objective.gated else (WEIGHTS, CONFIG, PROBE, LOG)
    return Stage(run / "train" / feedback_id / settings.method, identity, *products)


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """What a manifest says of the settings; a default that is spelled out says no more than one that is left out."""
    defaults = vars(METHODS[registered(settings.method)])
    return parameters.recorded(settings) | {
        "method_settings": _without_place(_different(settings.method_settings, defaults)),
        "lora": _different(settings.lora, PAPER_LORA),
        "training_arguments": deciding(settings.training_arguments),
    }


def _different(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}


def _without_place(settings: dict[str, Any]) -> dict[str, Any]:
    """Method settings; of a file of prompts what is in it counts, not where this machine has it."""
    return settings | {"nearby": "FILE"} if general.FILE.fullmatch(settings.get("nearby", "")) else settings
