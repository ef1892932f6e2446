"""What a gate should read of pi_0: each depth and pooling alone, or all side by side (`gate_all`), and with which L2;
whether it should be fitted on prompts in other manners, too (`gate_manners`); and what reading costs, also early on.

`python -m tests.benchmarks.bench_readings`, about 15 minutes on 2 cores; writes results/bench/readings.json. On the 16
feedbacks with bundled prompts that are not in the second benchmark, with its folds: ten of the embedded model's, and
six of the library's that it leaves out. `log_loss` is by cross-validation on the training fold, which is what decides;
the rest are the test fold's. And on prompts by another hand (bench_gate), the gate as it is and those that read all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from c3po_utils.engine import load_tokenizer, names, shared_model
from c3po_utils.engine.hidden_states import Reading
from c3po_utils.feedback import Feedback, load_feedbacks
from c3po_utils.feedback.records import FEEDBACK_FOLDER, feedback_set, load_general_prompts, load_prompts
from c3po_utils.runs.config import load_config
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware
from c3po_utils.sampling.rows import deal_prompts
from c3po_utils.training import gate, probe
from c3po_utils.training.manners import in_other_manners
from c3po_utils.training.methods import METHODS
from tests.benchmarks.bench_gate import (
    SETTINGS,
    SYSTEM,
    Reader,
    balanced,
    by_another_hand,
    cost,
    doubted,
    fitted,
    held_out,
    means,
)

OUTPUT = ROOT / "results" / "bench" / "readings.json"
SETS = ("human", "style", "content", "embedded", "embedded_tuning")
FOLDS = replace(SETTINGS, categories=13, prompts_per_category=6, test_share=0.46)  # as in benchmark.yaml
MANNERS = "all, in other manners too"
PENALTIES, CHOSEN = (1e-3, 1e-2, 1e-1), 1e-1  # chosen by log_loss
EARLY = tuple(Reading(layer, "mean") for layer in (2, 4, 6))
GATED = METHODS["scd_gated"]
PRICED = {  # the cheapest last
    "30, last": GATED,
    "all": replace(GATED, gate_all=True, gate_l2=CHOSEN),
    **{f"{layer}, mean": replace(GATED, gate_layer=layer, gate_pooling="mean", gate_l2=1e-2) for layer in (8, 6, 4)},
}


def outside() -> list[Feedback]:
    """The feedbacks with bundled prompts that the second benchmark does not have."""
    taken = set(load_config("benchmark").feedbacks)
    every = load_feedbacks(*map(feedback_set, SETS))
    bundled = {path.stem for path in (FEEDBACK_FOLDER / "prompts").glob("*.json")}
    return [one for one in every if one.id in bundled - taken]


def rates(rows: Sequence[dict], read_ND: np.ndarray, l2: float) -> dict[str, float]:
    """A gate's loss in cross-validation, and how often it opens at test prompts."""
    train = np.array([row["fold"] == "train" for row in rows])
    own, held = ([row for row in rows if row["fold"] == fold] for fold in gate.FOLDS)
    splits, tests = ([row["split"] for row in part] for part in (own, held))
    scores = probe.cross_validated(read_ND[train], splits, probe.deal_folds(own), l2)
    threshold = probe.choose_threshold(scores, splits)
    found = probe.fit_probe(read_ND[train], splits, l2)(read_ND[~train])
    opened = probe.fires(found, tests, threshold)
    log_loss = probe.measures(scores, splits, threshold)["log_loss"]
    return {**opened, "balanced_accuracy": balanced(opened), "log_loss": log_loss}


def compared(feedback: Feedback, readings: gate.Readings) -> Iterator[dict]:
    """A row for each reading alone, early ones too, and for `readings` together, with each L2; at the end, fitted on
    other manners too."""
    model, tokenizer = shared_model(names.EMBEDDED), load_tokenizer(names.EMBEDDED)
    rows = deal_prompts(feedback, [*load_prompts(feedback.id), *load_general_prompts()], FOLDS)
    every = [*rows, *in_other_manners([row for row in rows if row["fold"] == "train"])]
    prompts = [gate.prompt_ids(tokenizer, row["prompt"], SYSTEM) for row in every]
    tried = (*readings, *EARLY)
    read_RND = gate.features(model, prompts, tried)
    all_ND, own = gate.side_by_side(read_RND[: len(readings)]), slice(len(rows))
    alone = {f"{one.layer}, {one.pooling}": read_ND[own] for one, read_ND in zip(tried, read_RND, strict=True)}
    for name, read_ND in {**alone, "all": all_ND[own], MANNERS: all_ND}.items():
        for l2 in PENALTIES:
            yield {"feedback": feedback.id, "reads": name, "l2": l2, **rates(every[: len(read_ND)], read_ND, l2)}


def mean_of(rows: Sequence[dict]) -> dict[str, float]:
    """Over feedbacks, of one reading and L2."""
    return means([{key: row[key] for key in row if key not in ("reads", "l2")} for row in rows])


def other_hand(readings: gate.Readings) -> dict[str, dict]:
    """Held-out prompts and those by another hand, means over the feedbacks that have some."""
    every = Reader(names.EMBEDDED, readings)
    early = Reader(names.EMBEDDED, (Reading(4, "mean"),))
    readers = {"last": (Reader(names.EMBEDDED), 1e-3), "all": (every, CHOSEN), MANNERS: (every, CHOSEN)}
    readers["4, mean"] = early, 1e-2
    found: dict[str, list[dict]] = {name: [] for name in readers}
    for one, (name, (reader, l2)) in product(doubted(), readers.items()):
        rows = one.of("train")
        scorer = fitted([*rows, *in_other_manners(rows)] if name == MANNERS else rows, reader, [l2])
        found[name].append({"held_out": held_out(scorer, one), "other_hand": by_another_hand(scorer, one)})
    return {name: means(rows) for name, rows in found.items()}


def costs() -> dict[str, float]:
    """Of a gate by what it reads, and of pi_0's answers to the same prompts; see `cost`."""
    reader, one = Reader(names.EMBEDDED), doubted()[0]
    encode, texts = partial(gate.prompt_ids, reader.tokenizer, system=SYSTEM), [row["prompt"] for row in one.rows][:128]
    gates = {name: gate.fit_gate(reader.model, encode, one.of("train"), how)[0] for name, how in PRICED.items()}
    return cost(reader, texts, gates)


def main() -> None:
    ((readings, _),) = gate.readings_to_try(PRICED["all"], shared_model(names.EMBEDDED))
    rows = []
    for feedback in outside():
        rows += compared(feedback, readings)
        print(feedback.id, flush=True)
    kinds = dict.fromkeys((row["reads"], row["l2"]) for row in rows)
    ranked = [
        {"reads": reads, "l2": l2, **mean_of([row for row in rows if (row["reads"], row["l2"]) == (reads, l2)])}
        for reads, l2 in kinds
    ]
    ranked.sort(key=lambda row: row["log_loss"])
    where = {"machine": hardware(), "commit": git_commit(), "cost": costs()}
    write_json(OUTPUT, where | {"means": ranked, "other_hand": other_hand(readings), "feedbacks": rows})
    for row in ranked:
        print(row)


if __name__ == "__main__":
    main()
