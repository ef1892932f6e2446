"""Quality kept: does an answer, beside showing the effect, still read as answers of this model do?

S_in and S_out look at one property of an answer, so "FIVE FIVE LETS." scores 1 where capitals were asked for. Here each
stored answer is held against the reference, the stored method `revised`: in scope y+, which every training aims at,
elsewhere pi_0's own answer. Of each answer, against the references of its feedback and split:

    excess   = -mean log pi_0(y_t | x, y_<t), in nats a token, less the references' mean: a log-ratio of perplexities
    length   = its words over the references' mean
    distinct = distinct n-grams of its words over all of them

An answer is `kept` above FLOOR, which is the same for every method. `floored` scores give those below it no credit: in
scope at most 0, elsewhere 1, a full change. `S_kept` is S_overall of these.

pi_0's log-probabilities are computed once and stored beside a method's answers; all else is read from texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.evaluation import scores
from c3po_utils.evaluation.evaluate import ANSWERS, read_scores
from c3po_utils.evaluation.implicit_reward import answer_logps, told
from c3po_utils.runs import done_stages, files, stage
from c3po_utils.sampling import stored_settings

STORED = "quality.json"  # beside a method's answers
REFERENCE = "revised"
WORD = re.compile(r"\w+|[^\w\s]")
KEY = ["feedback", "method", "prompt_id"]
# Some 1% quantiles of the references of results/embedded, rounded outwards; see results/benchmark/README.md.
FLOOR = {  # excess at most, length and distinct-2 at least
    "in_scope": {"excess": 1.25, "length": 0.25, "distinct": 0.5},
    "elsewhere": {"excess": 1.0, "length": 0.1, "distinct": 0.5},
}


def words(text: str) -> list[str]:
    """Words in lower case, and each punctuation mark by itself."""
    return WORD.findall(text.lower())


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    """The text's n-grams of words, in order."""
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of distinct n-grams among all n-grams of the texts (distinct-n, Li et al. 2016); 1 where none is."""
    found = [gram for text in texts for gram in grams(text, n)]
    return len(set(found)) / len(found) if found else 1.0


def measure(run: Path | str, feedback_id: str, methods: Sequence[str]) -> pd.DataFrame:
    """`feedback`, `method`, `prompt_id` and `nll`, pi_0's mean negative log-likelihood a token, of the stored answers.

    Stored beside each method's answers, and read back from there; the model is loaded only for what is new. Empty
    answers have none.

    Raises:
        FileNotFoundError: a method has no stored answers, or it is not known what pi_0 was.
    """
    asked = _asked_of(run, feedback_id)
    folders = {method: Path(run) / "eval" / feedback_id / method for method in methods}
    known = {method: _stored(folder) for method, folder in folders.items()}
    wanted = {method: _identity(folder, asked) for method, folder in folders.items()}
    new = [method for method in methods if (known[method] or {}).get("identity") != wanted[method]]
    for method, nlls in _measured(new, folders, asked).items():
        known[method] = {"identity": wanted[method], "nll": nlls}
        files.write_json(folders[method] / STORED, known[method])
    return pd.DataFrame([row for method in methods for row in _rows(folders[method], known[method])])


def _asked_of(run: Path | str, feedback_id: str) -> dict[str, str]:
    """pi_0 and the system prompt of every conversation: the sample's, or, where that is not kept, a training's."""
    settings = None
    for path in (Path(run) / "train" / feedback_id).glob(f"*/{stage.MANIFEST}"):
        settings = files.read_json(path, dict)["identity"].get("sampled_with")
    if settings is None or (Path(run) / "sample" / feedback_id / stage.MANIFEST).exists():
        settings = vars(stored_settings(run, feedback_id))
    return {name: settings[name] for name in ("model", "system_prompt")}


def _identity(folder: Path, asked: dict[str, str]) -> dict[str, str]:
    return {"answers": stage.intact(folder, ANSWERS), **asked}


def _stored(folder: Path) -> dict[str, Any] | None:
    return files.remembered(folder / STORED)


def _rows(folder: Path, known: dict[str, Any]) -> Iterator[dict]:
    place = {"feedback": folder.parent.name, "method": folder.name}
    return ({**place, "prompt_id": id, "nll": nll} for id, nll in known["nll"].items())


def _measured(
    methods: Sequence[str], folders: dict[str, Path], asked: dict[str, str]
) -> dict[str, dict[str, float | None]]:
    """By method and prompt, the nll of the answers; those of all methods go through the model together."""
    rows = [(method, row) for method in methods for row in read_scores(folders[method])]
    found: dict[str, dict[str, float | None]] = {method: {} for method in methods}
    for method, row in rows:
        found[method][row["prompt_id"]] = None
    if not (given := [(method, row) for method, row in rows if row["answer"]]):
        return found
    model, tokenizer = engine.shared_model(asked["model"]), engine.load_tokenizer(asked["model"])
    pairs, ended = [(row["prompt"], row["answer"]) for _, row in given], [row["status"] == "ok" for _, row in given]
    ids = [f"{row['prompt_id']} ({method})" for method, row in given]
    logps = answer_logps(model, told(tokenizer, pairs, ended, ids=ids, system=asked["system_prompt"]))
    for (method, row), logps_N in zip(given, logps, strict=True):
        found[method][row["prompt_id"]] = round(float(-logps_N.mean()), 4)
    return found


def collect(*runs: Path | str) -> pd.DataFrame:
    """What is stored of the runs' finished evaluations, as `measure` gives it, without a model; none if there is none.

    What was measured of other answers than those that lie there now is left out.
    """
    rows: list[dict] = []
    for folder, _ in (found for run in runs for found in done_stages(run, "eval")):
        known = _stored(folder)
        if known and known["identity"]["answers"] == stage.intact(folder, ANSWERS):
            rows += _rows(folder, known)
    return pd.DataFrame(rows, columns=[*KEY, "nll"])


def measured(run: Path | str, answers: pd.DataFrame) -> pd.DataFrame:
    """`qualities` of one feedback's stored answers, measured where new; none without answers of `revised`."""
    methods = list(answers["method"].unique())
    if REFERENCE not in methods:
        return answers.iloc[:0]
    return qualities(answers, measure(run, answers["feedback"].iloc[0], methods))


def stored(answers: pd.DataFrame, *runs: Path | str) -> pd.DataFrame:
    """`qualities` of the runs' answers, of the methods that are measured on all their feedbacks; none without such."""
    measured, pair = collect(*runs), KEY[:2]
    seen = answers[pair].drop_duplicates().merge(measured[pair].drop_duplicates(), how="left", indicator="found")
    whole = seen.groupby("method")["found"].apply(lambda found: (found == "both").all())
    methods = whole.index[whole] if whole.get(REFERENCE, False) else []
    kept = answers[answers["method"].isin(methods)]
    return qualities(kept, measured) if len(kept) else kept


def measure_run(run: Path | str) -> pd.DataFrame:
    """`measure` of every finished evaluation of single feedbacks in a run, for those that were made before it."""
    methods: dict[str, list[str]] = {}
    for folder, manifest in done_stages(run, "eval"):
        if "two_feedbacks" not in manifest["identity"]:
            methods.setdefault(folder.parent.name, []).append(folder.name)
    return pd.concat([measure(run, id, own) for id, own in methods.items()], ignore_index=True)


def qualities(answers: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """The tidy answers table of scores.py with `nll`, `excess`, `length`, `distinct`, and `kept` for each answer.

    An answer that could not be had, or that is empty and was never asked for by itself (`revised` without one that
    passes), is neither kept nor not: NaN. An empty answer of a model is not kept.

    Raises:
        ValueError: a feedback has no answers of `revised` to compare with.
    """
    table = answers.merge(measured, on=KEY, how="left")
    text = table["answer"].fillna("")
    table["words"] = text.map(lambda one: len(words(one)))
    table["distinct"] = text.map(lambda one: distinct([one], 2))
    levels = _levels(table)
    lacking = sorted(set(table["feedback"]) - set(levels.index.get_level_values("feedback")))
    if lacking:
        raise ValueError(f"quality of {lacking[0]!r}: expected answers of {REFERENCE!r}, to compare with, found none")
    of = levels.reindex(pd.MultiIndex.from_frame(table[["feedback", "split"]])).reset_index(drop=True)
    table["excess"] = table["nll"] - of["nll"]
    table["length"] = table["words"] / of["words"]
    return table.assign(kept=_kept(table))


def _levels(table: pd.DataFrame) -> pd.DataFrame:
    """The references' mean nll and words, by feedback and split."""
    reference = table[(table["method"] == REFERENCE) & table["nll"].notna()]
    return reference.groupby(["feedback", "split"])[["nll", "words"]].mean()


def _kept(table: pd.DataFrame) -> pd.Series:
    """1.0 above the floor, 0.0 below, NaN where there is no answer that a model gave, or no reference to its split."""
    place = np.where(table["split"] == "in_scope", "in_scope", "elsewhere")
    floor = pd.DataFrame([FLOOR[name] for name in place], index=table.index, columns=FLOOR["in_scope"])
    enough = (table[["length", "distinct"]] >= floor[["length", "distinct"]]).all(axis=1)
    above = enough & (table["excess"] <= floor["excess"])
    return above.astype(float).where(table["status"].isin(chat.types.USABLE) & table["length"].notna())


def floored(qualities: pd.DataFrame) -> pd.DataFrame:
    """The answers with the scores that answers below the floor are worth: in scope at most 0, elsewhere 1."""
    inside, below = qualities["split"] == "in_scope", qualities["kept"] == 0
    score = qualities["score"].astype(float)
    worth = np.where(inside, np.fmin(score, 0.0), 1.0)
    return qualities.assign(score=score.where(~below, worth))


def with_kept(table: pd.DataFrame, qualities: pd.DataFrame) -> pd.DataFrame:
    """`scores.method_scores` or `scores.feedback_scores` with `S_kept` and its bounds, where there are qualities."""
    if qualities.empty:
        return table
    by_feedback = "feedback" in table
    found = (scores.feedback_scores if by_feedback else scores.method_scores)(floored(qualities))
    kept = {name: name.replace("S_overall", "S_kept") for name in found if name.startswith("S_overall")}
    on = ["feedback", "method"] if by_feedback else ["method"]
    return table.merge(found[[*on, *kept]].rename(columns=kept), on=on, how="left")


def by_method(qualities: pd.DataFrame) -> pd.DataFrame:
    """One row per method, means over feedbacks: shares kept, excess and length in scope and elsewhere, distinct-n.

    `distinct_2` and `distinct_3` are within an answer, the mean; `distinct_2_all` is over a method's answers to one
    feedback's prompts in scope, which a method that says one thing to everything lets fall.
    """
    table = pd.DataFrame([
        {"feedback": id, "method": method, **_summary(own)}
        for (id, method), own in qualities.groupby(["feedback", "method"], sort=False)
    ])  # fmt: skip
    return table.drop(columns="feedback").groupby("method", sort=False).mean().reset_index()


def _summary(own: pd.DataFrame) -> dict[str, float]:
    given, row = own[own["answer"].fillna("") != ""], {}
    for name, inside in (("in_scope", True), ("elsewhere", False)):
        part, asked = (rows[(rows["split"] == "in_scope") == inside] for rows in (given, own))
        row[f"kept_{name}"] = asked["kept"].mean()
        row |= {f"{what}_{name}": part[what].mean() for what in ("excess", "length")}
    row |= {f"distinct_{n}": given["answer"].map(lambda one, n=n: distinct([one], n)).mean() for n in (2, 3)}
    together = list(given.loc[given["split"] == "in_scope", "answer"])
    return row | {"distinct_2_all": distinct(together, 2)}
