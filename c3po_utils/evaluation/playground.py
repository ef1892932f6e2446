"""A run to talk to: any prompt, answered side by side by pi_0, with the feedback in context, and with adapters.

Questions are those of the other stages: the run's system prompt and chat template, its sampling, the ids of its rows.
So a test prompt has the answers that the run has stored, but for the rounding of 16-bit numbers, which differs between
one conversation and many. Nothing is recorded in the run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, zip_longest
from pathlib import Path

from c3po_utils import chat, engine, training  # as rooms: their heavy parts are imported when they are used
from c3po_utils.chat import Outcome
from c3po_utils.feedback import SPLITS, Feedback, records
from c3po_utils.runs import done_stages, exports, files, nearest, run_folder, shown
from c3po_utils.sampling import SampleSettings, answers, load_rows, stored_feedback, stored_settings
from c3po_utils.training import adapter_folder

BASE, IN_CONTEXT = "base", "in_context"
PREFERRED = ("scd", "c3po", "scd_gated")  # shown when no methods are named, at most as many as these

Follow = Callable[[str, str], None]  # told a method and its answer so far
Weights = Mapping[Path, float]  # of adapters, by their folders


@dataclass(frozen=True)
class Answer:
    """A method's answer; whether it, and pi_0's answer beside it, pass the metric (None: nothing to say)."""

    method: str
    outcome: Outcome
    passes: bool | None
    base_passes: bool | None
    opened: bool | None = None  # whether a gate of the method let its adapter in; None: it has no gate

    @property
    def verdict(self) -> str:
        """What is said below the answer."""
        gate = {None: "", True: "gate open · ", False: "gate closed · "}[self.opened]
        return gate + self._verdict

    @property
    def _verdict(self) -> str:
        if not self.outcome.usable:
            return f"{self.outcome.status}: {self.outcome.reason}"
        cut = f" · cut after {self.outcome.completion_tokens} tokens" * (self.outcome.status == "truncated")
        if self.passes is None:
            return "no metric: judge for yourself" + cut
        own = "passes" if self.passes else "does not pass"
        if self.method == BASE or self.base_passes is None:
            return own + cut
        beside = {(1, 1): "so does base", (1, 0): "base does not", (0, 1): "base does", (0, 0): "nor does base"}
        return f"{own}, {beside[self.passes, self.base_passes]}{cut}"


@dataclass(frozen=True)
class Playground:
    """One feedback of a run, and the methods that answer: `base` first, as verdicts compare with it.

    `methods` has the adapters of each by its name: none for what is prompted, several for a mixture.
    """

    run: Path
    record: Feedback
    settings: SampleSettings
    methods: Mapping[str, Weights]

    @property
    def heading(self) -> str:
        """What is asked of which model: the feedback's sentence, pi_0, the system prompt."""
        system = f"system prompt: {self.settings.system_prompt}" if self.settings.system_prompt else "no system prompt"
        return f"{self.record.id}: {self.record.content}\n{self.settings.model}, {system}"

    @cached_property
    def test_prompts(self) -> list[dict]:
        """The run's test rows, one of each split in turn."""
        rows = load_rows(self.run, self.record.id, "test")
        by_split = [[row for row in rows if row["split"] == split] for split in SPLITS]
        return [row for row in chain.from_iterable(zip_longest(*by_split)) if row]

    def row(self, prompt: str) -> dict:
        """The test row of this prompt, or one for a prompt that is none's."""
        own = {"id": f"ask/{files.content_hash(prompt)[:16]}", "prompt": prompt}
        return next((row for row in self.test_prompts if row["prompt"] == prompt.strip()), own)

    def answers(self, prompt: str, *, seed: int | None = None, follow: Follow | None = None) -> Iterator[Answer]:
        """Every method's answer, as each is done; `follow` is told them as they grow, token by token.

        Another `seed` than the run's makes other answers. Errors as in `adapters.mixed`.
        """
        row, base = self.row(prompt), None
        for method, weights in self.methods.items():
            outcome, opened = self._answer(method, weights, row, seed, follow)
            base = base or outcome
            passes, base_passes = (self._passes(one, base) for one in (outcome, base))
            yield Answer(method, outcome, passes, base_passes, opened)

    def _answer(
        self, method: str, weights: Weights, row: dict, seed: int | None, follow: Follow | None
    ) -> tuple[Outcome, bool | None]:
        sampling = self.settings.sampling if seed is None else replace(self.settings.sampling, seed=seed)
        if method == IN_CONTEXT:
            asked = answers.question(row, method, answers.in_context_prompt(row["prompt"], self.record), self.settings)
        else:  # as the run's own columns are named
            asked = answers.own_question(row, "baseline" if method == BASE else method, self.settings)
        told = follow and (lambda _, text: follow(method, text))
        base = shared_chat(self.settings.model)
        gates = {folder: training.stage.gated_folder(folder) for folder in weights}
        let_in, opened = _let_in(weights, gates, base, asked)
        with training.adapters.mixed(base.model, let_in) if let_in else nullcontext(base.model) as model:
            tuned = chat.local.LocalChat(model, base.tokenizer, name=base.name) if let_in else base
            outcome = next(tuned.complete([asked], sampling, follow=told))
        return outcome, opened

    def _passes(self, outcome: Outcome, base: Outcome) -> bool | None:
        if self.record.metric is None or not outcome.usable or not base.usable:
            return None
        return self.record.passes(outcome.text, base.text)


def _let_in(
    weights: Weights, gates: Mapping[Path, Path | None], pi_0: chat.local.LocalChat, asked: chat.types.Request
) -> tuple[Weights, bool | None]:
    """The adapters that answer this request: those without a gate, and those whose gate (`gates`: its own) opens.

    And whether any gate opens; None where there is none.
    """
    found: defaultdict[Path, float] = defaultdict(float)
    ids, reason = pi_0.encode(asked)
    opens = {
        folder: not reason and training.gate.load_gate(folder, pi_0.model).opens(pi_0.model, [ids])[0]
        for folder, gated in gates.items()
        if gated
    }
    for folder, weight in weights.items():
        if opens.get(folder, True):
            found[gates[folder] or folder] += weight
    return found, any(opens.values()) if opens else None


@lru_cache(maxsize=1)
def shared_chat(model: str) -> chat.local.LocalChat:
    """pi_0, loaded and packed once in a process; see `engine.shared_model`."""
    return chat.local.LocalChat(engine.shared_model(model), engine.load_tokenizer(model), name=model)


def open_playground(
    run: Path | str, feedback: str = "", methods: Sequence[str] = (), mixes: Sequence[Mapping[str, float]] = ()
) -> Playground:
    """A run's folder, or its name below results/, with one of its feedbacks (its only one if none is named).

    Args:
        methods: `base` (always there), `in_context`, methods that were trained, `FEEDBACK/METHOD` for another
            feedback's adapter. Left out: in context, and up to three adapters.
        mixes: weights by adapter; each mixture is a method more.

    Raises:
        FileNotFoundError: no such run, with the nearest that is, or nothing was sampled in it.
        ValueError: a feedback or method that is not there, with the nearest that is, or a weight that is no number.
    """
    folder = _folder(run)
    id = _feedback(folder, records.feedback_id(feedback))
    adapters = trained_adapters(folder, id)
    chosen = dict.fromkeys([BASE, *(methods or [IN_CONTEXT, *_preferred(adapters)])])
    _refuse_unknown("method", chosen, [BASE, IN_CONTEXT, *adapters])
    found: dict[str, Weights] = {name: {adapters[name]: 1.0} if name in adapters else {} for name in chosen}
    for mix in mixes:
        found[mix_name(mix)] = _weights(mix, adapters)
    return Playground(folder, stored_feedback(folder, id), stored_settings(folder, id), found)


def known_runs() -> list[str]:
    """The runs below results/ that have sampled rows, by name."""
    return [run.name for run in sorted(run_folder("results").glob("*/")) if any(done_stages(run, "sample"))]


def _folder(run: Path | str) -> Path:
    folder = exports.find_run(run)
    if not any(done_stages(folder, "sample")):
        raise FileNotFoundError(
            f"{shown(folder)} has no sampled rows: run notebooks/01_sample.ipynb first, or choose a run that has some"
            f" (found: {', '.join(known_runs()) or 'none; make demo makes one'})"
        )
    return folder


def sampled_feedbacks(run: Path | str) -> list[str]:
    """The feedbacks that a run has rows of. Errors as in `open_playground`."""
    return [folder.name for folder, _ in done_stages(_folder(run), "sample")]


def _feedback(run: Path, id: str) -> str:
    known = sampled_feedbacks(run)
    if not id and len(known) > 1:
        raise ValueError(f"{shown(run)} has several feedbacks, choose one: {', '.join(known)}")
    _refuse_unknown("feedback", [id or known[0]], known)
    return id or known[0]


def _refuse_unknown(what: str, names: Sequence[str] | Mapping, known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r} ({nearest(name, known)})")


def trained_adapters(run: Path, feedback_id: str) -> dict[str, Path]:
    """Folders of adapters and gates by name: `METHOD` of this feedback, then `FEEDBACK/METHOD` of all others."""
    made = (training.stage.WEIGHTS, training.stage.GATE)
    folders = sorted(path.parent for name in made for path in (run / "train").glob(f"*/*/{name}"))
    own = {folder.name: folder for folder in folders if folder == adapter_folder(run, feedback_id, folder.name)}
    return own | {"/".join(folder.parts[-2:]): folder for folder in folders if folder not in own.values()}


def _preferred(adapters: Mapping[str, Path]) -> list[str]:
    own = sorted((name for name in adapters if "/" not in name), key=lambda name: name not in PREFERRED)
    return own[: len(PREFERRED)]


def mix_name(mix: Mapping[str, float]) -> str:
    """`0.5*c3po + 0.5*other/scd`."""
    return " + ".join(f"{weight:g}*{name}" for name, weight in mix.items())


def _weights(mix: Mapping[str, float], adapters: Mapping[str, Path]) -> dict[Path, float]:
    _refuse_unknown("adapter", mix, list(adapters))
    for name, weight in mix.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"mix: the weight of {name!r} is {weight!r}, expected a finite number")
    return {adapters[name]: float(weight) for name, weight in mix.items()}


def read_mix(text: str) -> dict[str, float]:
    """`c3po=0.5, other/scd@r=16=0.5` as weights (after the last `=`) by adapter. Raises ValueError for others."""
    mix = {}
    for part in training.methods.split_names(text):
        name, _, weight = part.rpartition("=")
        try:
            mix[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(f"mix: expected ADAPTER=WEIGHT, as in c3po=0.5,scd=0.5; found {part!r}") from None
    return mix


class Typewriter:
    """Writes answers as they grow, one after another, each under its method's name; `follow` for `answers`."""

    def __init__(self, write: Callable[[str], object]):
        self.write, self.method, self.typed = write, "", ""

    def follow(self, method: str, text: str) -> None:
        if method != self.method:
            self.write(f"\n[{method}]\n")
            self.method, self.typed = method, ""
        text = text.lstrip()
        self.write(text[len(self.typed) :])
        self.typed = max(self.typed, text, key=len)

    def end(self, answer: Answer) -> None:
        """The rest of an answer, and its verdict."""
        self.follow(answer.method, answer.outcome.text)
        self.write(f"{'' if self.typed.endswith(chr(10)) or not self.typed else chr(10)}-- {answer.verdict}\n")
