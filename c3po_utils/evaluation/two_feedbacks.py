"""Two feedbacks in one model (figure 7): their adapters added, or one adapter trained on the rows of both.

Two feedbacks go by the name `a+b`. An adapter that was trained on both lies in train/a+b/<method>, made as any other;
sums of adapters are made when they are needed. Answers are scored by both feedbacks, on the test prompts of both that
neither was trained on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from c3po_utils import training  # as a room: its heavy parts are imported when they are used
from c3po_utils.evaluation.evaluate import (
    ANSWERS,
    Answered,
    asked_of,
    collected,
    evaluations,
    rows_to_answer,
    stored_scores,
)
from c3po_utils.evaluation.judge import Judge
from c3po_utils.evaluation.routing import RoutedChat, adapted
from c3po_utils.evaluation.scores import application_share, applied
from c3po_utils.feedback import Feedback, find_feedback, records
from c3po_utils.runs import Stage
from c3po_utils.sampling import answers, load_rows, rows_hash, stored_settings
from c3po_utils.sampling import rows as sampled
from c3po_utils.training import BASE_RESAMPLED, adapter_folder

How = Literal["add", "joint"]
SETTING = {"add": "added", "joint": "joint"}  # figure 7's panels, after `single`
OPENED = ("own", "both", "other", "neither")  # gates, at a prompt of one of the feedbacks
SUFFIX = {how: f"@{setting}" for how, setting in SETTING.items()}  # of the method's name, in folders and tables


def joint_id(ids: Sequence[str]) -> str:
    """`a+b`, which sampling.members takes apart."""
    return "+".join(ids)


def joint_name(names: Sequence[str]) -> str:
    """What 02_train takes as `feedback` to train on all of these: `a+b`, or `path/to/set.yaml#a+b`."""
    place = "".join(names[0].rpartition("#")[:2])
    return place + joint_id([records.feedback_id(name) for name in names])


def two_feedbacks_stage(
    run: Path | str, ids: Sequence[str], method: str, how: How, judge: Judge | None = None
) -> Stage:
    """The folder of the answers and scores, done when they came from these samples, adapters and judge.

    Raises:
        ValueError: another `how`, or other than two feedbacks.
        FileNotFoundError: an adapter is not there; says how it is trained.
    """
    if how not in SUFFIX or not len(ids) == len(set(ids)) == 2:
        raise ValueError(f"expected two different feedbacks and how in {list(SUFFIX)}; found {list(ids)} and {how!r}")
    together = joint_id(ids)
    adapters = ids if how == "add" else [together]
    folder = Path(run) / "eval" / together / (method + SUFFIX[how])
    rows = {id: rows_hash(run, id) for id in ids}
    identity = {
        "two_feedbacks": together,
        "method": method,
        "how": how,
        "rows": rows,
        **asked_of(folder, run, ids, rows),
        "adapters": {id: training.stage.known_hash(adapter_folder(run, id, method)) for id in adapters},
        **({"judge": judge.identity} if judge else {}),
    }
    return Stage(folder, identity, ANSWERS)


@dataclass(frozen=True)
class TwoFeedbacks:
    """Two feedbacks in one model of a run: `add` their adapters of one method, or one that was trained `joint`ly."""

    run: Path
    records: Sequence[Feedback]
    method: str
    how: How
    judge: Judge | None = None

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.records]

    @cached_property
    def stage(self) -> Stage:
        return two_feedbacks_stage(self.run, self.ids, self.method, self.how, self.judge)

    def answers(self) -> list[dict]:
        """The test prompts of both feedbacks (`untrained`) answered by the model of both, each scored by each feedback.

        Rows are those of evaluate.score_rows with `prompts_of`, the feedback whose test prompt it is (general prompts
        are in each feedback's test set), `two_feedbacks`, and `setting`; see evaluate.stored_scores.
        """
        for record in self.records:
            sampled.refuse_changed(self.run, record)
        return stored_scores(self.stage, self.records, self.method, self.judge, self._answered)

    def _answered(self) -> Iterator[Answered]:
        together = joint_id(self.ids)
        settings = stored_settings(self.run, together)
        ids = [together] if self.how == "joint" else self.ids
        trained = [row for id in self.ids for row in load_rows(self.run, id, "train")]
        with adapted(self.run, ids, self.method, settings.model, self.stage.notes) as model:
            for id in self.ids:
                rows = untrained(rows_to_answer(self.run, id), trained)
                answers.add_answers(model, rows, settings, self.method)
                if isinstance(model, RoutedChat) and self.how == "add":
                    self.stage.notes.setdefault("gates", {})[id] = self._open_gates(model, rows, id)
                yield rows, {"prompts_of": id, "two_feedbacks": together, "setting": SETTING[self.how]}

    def _open_gates(self, model: RoutedChat, rows: Sequence[dict], id: str) -> dict[str, dict[str, int]]:
        """By split, of how many of this feedback's test prompts which gates were open."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            opened = model.opened[f"{row['id']}#{self.method}"]
            others = set(opened) - {id}
            which = ("both" if others else "own") if id in opened else "other" if others else "neither"
            counts[row["split"]][which] += 1
        return {split: dict(found) for split, found in counts.items()}


def untrained(tests: Iterable[dict], trained: Iterable[dict]) -> list[dict]:
    """Test rows without the general prompts that are among the rows on which the other feedback was trained.

    Also of adapters that were trained jointly, without these: so figure 7 compares the same prompts.
    """
    ids = {row["id"] for row in trained}
    return [row for row in tests if row["id"] not in ids]


def open_two_feedbacks(
    run: Path | str, feedbacks: Sequence[str], method: str, how: How, judge: Judge | None = None
) -> TwoFeedbacks:
    """Two feedbacks, each `id` or `path/to/set.yaml#id`, in one model of a run."""
    return TwoFeedbacks(Path(run), [find_feedback(name) for name in feedbacks], method, how, judge)


def collect_two_feedbacks(*runs: Path | str) -> pd.DataFrame:
    """All such answers stored in the runs, as `TwoFeedbacks.answers` returns them; no rows where there are none."""
    return collected(*runs, two_feedbacks=True)


def open_gates(*runs: Path | str) -> pd.DataFrame:
    """Of two feedbacks behind gates, by kind of prompt, the shares of prompts at which `own`, `both`, `other` or
    `neither` of the gates were open: columns `method`, `split` and these four; no rows where there are no gates.

    Own is the gate of the feedback whose test prompt it is. General prompts count for each of the two.
    """
    found = (one for run in runs for one in evaluations(run))
    manifests = [manifest for _, manifest, stale in found if "gates" in manifest and not stale]
    counts = pd.DataFrame(
        {"method": manifest["identity"]["method"], "split": split, **dict.fromkeys(OPENED, 0), **found}
        for manifest in manifests
        for of in manifest["gates"].values()
        for split, found in of.items()
    )
    if counts.empty:
        return counts
    sums = counts.groupby(["method", "split"], sort=False)[list(OPENED)].sum()
    return sums.div(sums.sum(axis=1), axis=0).reset_index()


def side_by_side(singles: pd.DataFrame, together: pd.DataFrame) -> pd.DataFrame:
    """The answers table of scores.py for each feedback alone and with another, on the same prompts, by `setting`.

    A feedback stands in it once for each other that it was learned with by this method, named `a (a+b)`: figure 7's
    dots. Its answers with all of them are one feedback's, `prompts_of`; so they are counted where there are means and
    intervals.

    Single feedbacks are compared with what was scored by the same metric or judge; a line says which are left out.

    Args:
        singles: every finished evaluation of single feedbacks (evaluate.collect).
        together: those of two feedbacks (collect_two_feedbacks).
    """
    own = together[together["prompts_of"] == together["feedback"]]
    asked = own[["method", "feedback", "two_feedbacks", "prompt_id", *({"scored_by"} & set(own))]]
    asked = pd.concat([asked, asked.assign(method=BASE_RESAMPLED)]).drop_duplicates()  # the floor, beside all of them
    kept = singles[singles["method"].isin([BASE_RESAMPLED, *own["method"]])]
    alone = kept.assign(prompts_of=kept["feedback"], setting="single")
    alone = _scored_alike(alone.merge(asked, on=["method", "feedback", "prompt_id"], suffixes=("", "_together")))
    both = pd.concat([alone, own])
    return both.assign(feedback=both["feedback"] + " (" + both["two_feedbacks"] + ")").reset_index(drop=True)


def _scored_alike(alone: pd.DataFrame) -> pd.DataFrame:
    """Rows of single feedbacks whose scorer is that of the same prompts with two."""
    if not {"scored_by", "scored_by_together"} <= set(alone):
        return alone
    other = alone["scored_by"] != alone["scored_by_together"]
    for (id, mine, theirs), rows in alone[other].groupby(["feedback", "scored_by", "scored_by_together"]):
        names = ", ".join(rows["method"].unique())
        print(f"Left out: {names} on {id} alone: scored by {mine}, with another feedback by {theirs}.")
    return alone[~other].drop(columns="scored_by_together")


def setting_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Figure 7's table, from `side_by_side`: application shares by setting, each beside the same noise floor.

    `pairs` says `2 of 10` where not all of the two feedbacks were learned so.
    """
    every = table["two_feedbacks"].nunique()
    again = table.duplicated(["setting", "method", "prompts_of", "split", "prompt_id"])
    answers = _by_feedback(table[~(again & (table["setting"] == "single"))])  # each is there for every other feedback
    resampled = answers[answers["method"] == BASE_RESAMPLED]
    parts = []
    for setting, own in answers.groupby("setting", sort=False):
        rows = own if setting == "single" else pd.concat([own, resampled[resampled["feedback"].isin(own["feedback"])]])
        count = table.loc[table["setting"] == setting, "two_feedbacks"].nunique()
        pairs = f"{count} of {every}" if count < every else ""
        parts.append(application_share(rows).assign(setting=setting, pairs=pairs))
    return pd.concat(parts, ignore_index=True)


def as_methods(table: pd.DataFrame) -> pd.DataFrame:
    """`side_by_side` with the setting in the method's name (`c3po@added`), for tables and paired differences."""
    suffix = ("@" + table["setting"]).where(table["setting"] != "single", "")
    return _by_feedback(table).assign(method=table["method"] + suffix)


def _by_feedback(table: pd.DataFrame) -> pd.DataFrame:
    """`side_by_side` with a feedback's answers beside all others as its own: it is one feedback, not one a pair."""
    return table.assign(
        feedback=table["prompts_of"],
        category=table["category"].fillna(table["prompt_id"]),
        prompt_id=table["prompt_id"] + " (" + table["two_feedbacks"] + ")",
    )


def crossings(singles: pd.DataFrame, together: pd.DataFrame, feedbacks: Sequence[Feedback]) -> pd.DataFrame:
    """How often one feedback's effect shows where the other applies, a row per feedback and other: shares of answers.

    `baseline`: pi_0's answers; `single`: those of the other feedback's own adapter; `added`: those of the model of
    both. Of a feedback without a metric the first two are not known: no judge has looked at them with its eyes.

    Args:
        together: the rows of two feedbacks and one method (TwoFeedbacks.answers).
    """
    rows = []
    for feedback in feedbacks:
        cross = together[(together["feedback"] == feedback.id) & (together["prompts_of"] != feedback.id)]
        for other, part in cross[cross["split"] == "in_scope"].groupby("prompts_of"):
            own = singles[(singles["feedback"] == other) & singles["method"].isin(together["method"])]
            own = own[own["prompt_id"].isin(part["prompt_id"])]
            alone = own[own["answer"] != ""] if feedback.metric else own.iloc[:0]
            single = [feedback.passes(row.answer, row.baseline) for row in alone.itertuples()]
            shares = {
                "baseline": part["baseline_passes"].astype(float).mean(),
                "single": pd.Series(single, dtype=float).mean(),
                "added": applied(part).mean(),
            }
            rows.append({"effect of": feedback.id, "on prompts of": other, **shares})
    return pd.DataFrame(rows)
