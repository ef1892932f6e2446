"""Doubts about the scope gate: does it read the scope, or the hand that wrote the prompts?

`python -m tests.benchmarks.bench_gate`, 10 to 20 minutes on 2 cores; writes results/bench/gate.json. Prompts are the
benchmark's, dealt to folds as its samples are; nothing is trained but probes. Three contestants see the same folds:

- `hidden`: the gate as the kit fits it, on pi_0's hidden states (last layer, last prompt token);
- `words`: the same probe on which words are in the prompt, its L2 chosen by cross-validation;
- `asked`: pi_0's log-odds of yes against no to whether the feedback applies, its threshold as the gate's.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from c3po_utils.chat import request
from c3po_utils.chat.local import LocalChat
from c3po_utils.engine import load_tokenizer, names, shared_model
from c3po_utils.feedback import Feedback, load_feedbacks
from c3po_utils.feedback.other_hand import load_other_hand
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_general_prompts, load_prompts
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import ROOT, git_commit, hardware
from c3po_utils.sampling.answers import REASON_FIRST
from c3po_utils.sampling.rows import deal_prompts
from c3po_utils.sampling.settings import SampleSettings
from c3po_utils.training import gate, probe
from c3po_utils.training.methods import METHODS
from c3po_utils.training.objective import head_weight

OUTPUT = ROOT / "results" / "bench" / "gate.json"
SYSTEM = "You are a helpful assistant. Reply in one or two short sentences."
SETTINGS = SampleSettings(names.EMBEDDED, strategy="demonstrate", best_of=8, max_new_tokens=96, system_prompt=SYSTEM)
YES_OR_NO = "Does the instruction apply to what the user writes now? Answer yes or no."
QUESTION = REASON_FIRST.partition("Does the instruction")[0] + YES_OR_NO
NOISE, SIZES, SEEDS = (0.05, 0.1, 0.2), (6, 12, 24, 42), (0, 1, 2)
LAST = (gate.Reading(),)  # what a gate reads unless told otherwise
WORD = re.compile(r"\w+")
Scorer = Callable[[Sequence[str]], np.ndarray]  # texts to scores less the threshold


@dataclass(frozen=True)
class Doubted:
    """A feedback with its dealt rows and the prompts by another hand."""

    feedback: Feedback
    rows: list[dict]
    other: dict[str, list[tuple[str, str]]]  # by split, (manner, text)
    pairs: list[tuple[str, str]]  # in scope, near scope

    def of(self, fold: str, split: str = "") -> list[dict]:
        return [row for row in self.rows if row["fold"] == fold and split in ("", row["split"])]


def doubted() -> list[Doubted]:
    found = []
    for feedback in load_feedbacks(FEEDBACK_FOLDER / "embedded.yaml"):
        other = load_other_hand(feedback.id)
        rows = deal_prompts(feedback, [*load_prompts(feedback.id), *load_general_prompts()], SETTINGS)
        by_split = {s: [(one.manner, one.prompt) for one in getattr(other, s)] for s in ("in_scope", "near_scope")}
        found.append(Doubted(feedback, rows, by_split, [(p.in_scope, p.near_scope) for p in other.minimal_pairs]))
    return found


class Reader:
    """pi_0's hidden states of prompts, each computed once."""

    def __init__(self, model: str, readings: gate.Readings = LAST):
        self.model, self.tokenizer, self.readings = shared_model(model), load_tokenizer(model), readings
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if missing := [text for text in dict.fromkeys(texts) if text not in self.known]:
            ids = [gate.prompt_ids(self.tokenizer, text, SYSTEM) for text in missing]
            read = gate.side_by_side(gate.features(self.model, ids, self.readings))
            self.known |= dict(zip(missing, read, strict=True))
        return np.stack([self.known[text] for text in texts])

    def asked(self, feedback: Feedback, texts: Sequence[str]) -> np.ndarray:
        """(N,): log-odds of an answer that begins with yes against one with no."""
        questions = [QUESTION.format(prompt=text, feedback=feedback.content) for text in texts]
        tokens = [self.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No")]
        yes, no = head_weight(self.model)[tokens].detach().float().cpu().numpy()
        return self(questions) @ (yes - no)


def words(texts: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    found = [set(WORD.findall(text.casefold())) for text in texts]
    return np.array([[float(word in own) for word in vocabulary] for own in found])


def fitted(rows: Sequence[dict], featurize: Scorer, penalties: Sequence[float]) -> Scorer:
    """The probe and threshold for the rows, of the L2 with the lowest loss in cross-validation."""
    splits, folds, texts = [row["split"] for row in rows], probe.deal_folds(rows), [row["prompt"] for row in rows]
    features = featurize(texts)
    scores = {l2: probe.cross_validated(features, splits, folds, l2) for l2 in penalties}
    l2 = min(scores, key=lambda l2: probe.measures(scores[l2], splits, 0.0)["log_loss"])
    found, threshold = probe.fit_probe(features, splits, l2), probe.choose_threshold(scores[l2], splits)
    return lambda texts: found(featurize(texts)) - threshold


def hidden(reader: Reader, rows: Sequence[dict]) -> Scorer:
    return fitted(rows, reader, [1e-3])


def bag(_: Reader, rows: Sequence[dict]) -> Scorer:
    vocabulary = sorted({word for row in rows for word in WORD.findall(row["prompt"].casefold())})
    return fitted(rows, lambda texts: words(texts, vocabulary), gate.PENALTIES)


def asked(reader: Reader, one: Doubted) -> Scorer:
    rows = one.of("train")
    scores = reader.asked(one.feedback, [row["prompt"] for row in rows])
    threshold = probe.choose_threshold(scores, [row["split"] for row in rows])
    return lambda texts: reader.asked(one.feedback, texts) - threshold


def share(scorer: Scorer, texts: Sequence[str]) -> float:
    return round(float((scorer(texts) > 0).mean()), 4)


def balanced(opened: dict[str, float]) -> float:
    """Balanced accuracy, from how often a gate opens by split."""
    return (opened["in_scope"] + 1 - (opened["near_scope"] + opened["out_of_scope"]) / 2) / 2


def held_out(scorer: Scorer, one: Doubted) -> dict[str, float]:
    rows = one.of("test")
    scores, splits = scorer([row["prompt"] for row in rows]), [row["split"] for row in rows]
    found = probe.fires(scores, splits, 0.0)
    found |= {"balanced_accuracy": balanced(found), "roc_auc": probe.measures(scores, splits, 0.0)["roc_auc"]}
    return {key: round(value, 4) for key, value in found.items()}


def by_another_hand(scorer: Scorer, one: Doubted) -> dict[str, object]:
    found: dict[str, object] = {}
    for split, prompts in one.other.items():
        found[split] = share(scorer, [text for _, text in prompts])
        manners = dict.fromkeys(manner for manner, _ in prompts)
        found[f"{split} by manner"] = {m: share(scorer, [text for own, text in prompts if own == m]) for m in manners}
    inside, near = ([pair[place] for pair in one.pairs] for place in (0, 1))
    pairs = {"in_scope": share(scorer, inside), "near_scope": share(scorer, near)}
    return found | {"pairs": pairs | {"ordered": round(float((scorer(inside) > scorer(near)).mean()), 4)}}


def elsewhere(scorer: Scorer, one: Doubted, all_of_them: Sequence[Doubted]) -> dict[str, object]:
    """By other feedback, the share of its in-scope test prompts that open this gate; mean and worst."""
    prompts = {other.feedback.id: other.of("test", "in_scope") for other in all_of_them if other is not one}
    by = {id: share(scorer, [row["prompt"] for row in rows]) for id, rows in prompts.items()}
    return {"mean": round(float(np.mean(list(by.values()))), 4), "worst": max(by.values()), "by": by}


def mislabelled(rows: Sequence[dict], noise: float, seed: int) -> list[dict]:
    """A share of the rows of each split with the wrong label: in scope as near, others as in scope."""
    wrong = {"in_scope": "near_scope", "near_scope": "in_scope", "out_of_scope": "in_scope"}
    flipped = set()
    for split in probe.SHARES:
        ids = [row["id"] for row in rows if row["split"] == split]
        flipped |= set(random.Random(f"{seed}/{split}").sample(ids, round(noise * len(ids))))
    return [row | {"split": wrong[row["split"]]} if row["id"] in flipped else row for row in rows]


def fewer(rows: Sequence[dict], count: int, seed: int) -> list[dict]:
    """That many rows of each split, from as many categories as there are."""
    chosen = []
    for split in probe.SHARES:
        own, before, ranked = [row for row in rows if row["split"] == split], Counter(), []
        random.Random(f"{seed}/{split}").shuffle(own)
        for row in own:
            ranked.append((before[row["category"]], row))
            before[row["category"]] += 1
        chosen += [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:count]]
    return chosen


def varied(one: Doubted, reader: Reader, fit: Callable[[Reader, Sequence[dict]], Scorer]) -> Iterator[dict]:
    """Held-out rates with wrong labels and with fewer prompts, means over seeds."""
    train = one.of("train")
    changes = [("noise", x, lambda seed, x=x: mislabelled(train, x, seed)) for x in NOISE]
    changes += [("prompts", n, lambda seed, n=n: fewer(train, n, seed)) for n in SIZES]
    for kind, value, change in changes:
        found = [held_out(fit(reader, change(seed)), one) for seed in SEEDS]
        yield {kind: value} | {key: round(float(np.mean([each[key] for each in found])), 4) for key in found[0]}


def doubts(one: Doubted, all_of_them: Sequence[Doubted], reader: Reader) -> dict:
    rows, found = one.of("train"), {"feedback": one.feedback.id}
    scorers = {"hidden": hidden(reader, rows), "words": bag(reader, rows), "asked": asked(reader, one)}
    for name, scorer in scorers.items():
        found[name] = {"held_out": held_out(scorer, one), "other_hand": by_another_hand(scorer, one)}
        if name != "asked":  # a question about every prompt of every other feedback would take an hour
            found[name]["elsewhere"] = elsewhere(scorer, one, all_of_them)
    for name, fit in (("hidden", hidden), ("words", bag)):
        found[name]["varied"] = list(varied(one, reader, fit))
    return found


def cost(reader: Reader, texts: Sequence[str], gates: Mapping[str, gate.Gate]) -> dict[str, float]:
    """Processor seconds a prompt, of each gate's pass and of pi_0's answer, so that other work does not count."""
    model = LocalChat(reader.model, reader.tokenizer)
    requests = [request(str(place), text, system=SYSTEM) for place, text in enumerate(texts)]
    prompts = [model.encode(one)[0] for one in requests]
    took = {}
    for name, own in gates.items():
        start = time.process_time()
        own.opens(reader.model, prompts)
        took[name] = time.process_time() - start
    start = time.process_time()
    outcomes = list(model.complete(requests, SETTINGS.sampling))
    took["answer_s"] = time.process_time() - start
    took["answer_tokens"] = sum(one.completion_tokens for one in outcomes)
    return {key: round(value / len(texts), 4) for key, value in took.items()}


def means(rows: Sequence[dict]) -> dict:
    """Over feedbacks, of every number that all of them have."""
    first = rows[0]
    if isinstance(first, dict):
        common = [key for key in first if key != "feedback" and all(key in row for row in rows)]
        return {key: found for key in common if (found := means([row[key] for row in rows])) != {}}
    if isinstance(first, list):
        return [means(list(together)) for together in zip(*rows, strict=True)]
    return round(float(np.mean(rows)), 4)


def main(output: Path = OUTPUT) -> None:
    reader, all_of_them, found = Reader(names.EMBEDDED), doubted(), []
    for one in all_of_them:
        found.append(doubts(one, all_of_them, reader))
        held = {name: found[-1][name]["held_out"] for name in ("hidden", "words", "asked")}
        print(json.dumps({one.feedback.id: held}), flush=True)
    rows = all_of_them[0].of("train")
    own, *_ = gate.fit_gate(
        reader.model, partial(gate.prompt_ids, reader.tokenizer, system=SYSTEM), rows, METHODS["scd_gated"]
    )
    measured = cost(reader, [row["prompt"] for row in all_of_them[0].rows][:128], {"gate_s": own})
    where = {"machine": hardware(), "commit": git_commit(), "cost": measured}
    write_json(output, where | {"means": means(found), "feedbacks": found})


if __name__ == "__main__":
    main()
