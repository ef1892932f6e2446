"""Two feedbacks in one model (figure 7): their adapters added, or one adapter trained on the rows of both.

A pair goes by the name `a+b`. Its jointly trained adapters lie in train/a+b/<method>, made by finetune.py as any other;
sums of adapters are made when they are needed. Answers are scored by both feedbacks, on the test prompts of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pandas as pd

from c3po_utils.adapters import WEIGHTS
from c3po_utils.chat import ChatModel
from c3po_utils.evaluate import ANSWERS, adapter_folder, model_for, refuse_unscored, score_rows
from c3po_utils.feedback import Feedback
from c3po_utils.figure_style import FLOOR
from c3po_utils.judge import Judge, verdict_counts
from c3po_utils.ledger import Ledger
from c3po_utils.local_chat import LocalChat
from c3po_utils.metrics import check
from c3po_utils.mixing import load_added
from c3po_utils.models import load_tokenizer
from c3po_utils.open_chat import RememberedChat
from c3po_utils.runs import LEDGER, Stage, content_hash, done_stages, read_jsonl, write_jsonl
from c3po_utils.sample import ROWS, SampleSettings, add_answers, feedback_id, load_rows, stored_settings
from c3po_utils.scores import application_share, applied

How = Literal["add", "joint"]
SUFFIX = {"add": "@added", "joint": "@joint"}  # of the method's name, in folders and tables
SETTING = {"add": "mixed", "joint": "joint"}  # figure 7's panels, after `single`


def pair_name(ids: Sequence[str]) -> str:
    """`a+b`, which sample.members takes apart."""
    return "+".join(ids)


def joint_name(names: Sequence[str]) -> str:
    """What 02_train takes as `feedback` to train on all of these: `a+b`, or `path/to/set.yaml#a+b`."""
    place = "".join(names[0].rpartition("#")[:2])
    return place + pair_name([feedback_id(name) for name in names])


def pair_stage(run: Path | str, ids: Sequence[str], method: str, how: How, judge: Judge | None = None) -> Stage:
    """The folder of a pair's answers and scores, done when they came from these samples, adapters and judge.

    Raises:
        ValueError: another `how`, or fewer than two feedbacks.
        FileNotFoundError: an adapter is not there; says how it is trained.
    """
    if how not in SUFFIX or len(set(ids)) < 2:
        raise ValueError(f"expected different feedbacks and how in {list(SUFFIX)}; found {list(ids)} and {how!r}")
    run, pair = Path(run), pair_name(ids)
    folders = {id: adapter_folder(run, id, method) / WEIGHTS for id in (ids if how == "add" else [pair])}
    for id, path in folders.items():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run notebooks/02_train.ipynb with feedback={id!r} first")
    identity = {
        "pair": pair,
        "method": method,
        "how": how,
        "rows": {id: content_hash(run / "sample" / id / ROWS) for id in ids},
        "adapters": {id: content_hash(path) for id, path in folders.items()},
        **({"judge": judge.identity} if judge else {}),
    }
    return Stage(run / "eval" / pair / (method + SUFFIX[how]), identity, ANSWERS)


@contextmanager
def _answering(stage: Stage, run: Path, settings: SampleSettings) -> Iterator[ChatModel]:
    """The pair's model behind the run's ledger."""
    identity, ids = stage.identity, list(stage.identity["rows"])
    if identity["how"] == "joint":
        with model_for(run, identity["pair"], identity["method"], settings) as model:
            yield model
        return
    policy, stage.notes["difference_from_sum"] = load_added(run, ids, identity["method"], settings.model)
    name = "+".join([settings.model, *identity["adapters"].values()])
    chat = LocalChat(policy.merge_and_unload(), load_tokenizer(settings.model), name=name)
    yield RememberedChat(chat, Ledger(run / LEDGER))


def evaluate_pair(
    run: Path | str, feedbacks: Sequence[Feedback], method: str, how: How, judge: Judge | None = None
) -> list[dict]:
    """Answer the test prompts of all the feedbacks with the pair's model, and score every answer by each feedback.

    Rows are those of evaluate.score_rows with `prompts_of`, the feedback whose test prompt it is (general prompts
    are in each feedback's test set), `pair`, and `setting`. Stored; read back if that was done.

    Raises:
        ValueError: a feedback without a metric, and no judge.
    """
    run, ids = Path(run), [feedback.id for feedback in feedbacks]
    for feedback in feedbacks:
        refuse_unscored(feedback, judge)
    stage = pair_stage(run, ids, method, how, judge)
    if stage.done:
        return read_jsonl(stage.path(ANSWERS))
    settings = stored_settings(run, pair_name(ids))
    answers, place = [], {"pair": pair_name(ids), "setting": SETTING[how]}
    with stage, _answering(stage, run, settings) as model:
        for id in ids:
            rows = load_rows(run, id, "test")
            add_answers(model, rows, settings, method)
            for feedback in feedbacks:
                answers += [row | {"prompts_of": id} | place for row in score_rows(rows, feedback, method, judge)]
        write_jsonl(stage.path(ANSWERS), answers)
        stage.notes["missing"] = sum(row["score"] is None for row in answers)
        if judge:
            stage.notes["verdicts"] = verdict_counts(answers)
    return answers


def collect_pairs(*runs: Path | str) -> pd.DataFrame:
    """All stored answers of pairs in the runs, as `evaluate_pair` returns them; no rows where there are none."""
    return pd.DataFrame([row for run in runs for row in _stored(run)])


def _stored(run: Path | str) -> Iterator[dict]:
    for folder, manifest in done_stages(run, "eval"):
        if "pair" in manifest["identity"]:
            yield from read_jsonl(folder / ANSWERS)


def side_by_side(singles: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    """The answers table of scores.py for single feedbacks and for pairs, on the same prompts, told apart by `setting`.

    A feedback stands in it once for each of its pairs, named `a (a+b)`: the pair is what is averaged over.

    Args:
        singles: every finished evaluation of single feedbacks (evaluate.collect).
        mixed: those of pairs (collect_pairs).
    """
    own = mixed[mixed["prompts_of"] == mixed["feedback"]]
    pairs = own[["feedback", "pair"]].drop_duplicates()
    kept = singles[singles["method"].isin([FLOOR, *own["method"]])]
    both = pd.concat([kept.merge(pairs, on="feedback").assign(setting="single"), own])
    return both.assign(feedback=both["feedback"] + " (" + both["pair"] + ")").reset_index(drop=True)


def setting_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Figure 7's table, from `side_by_side`: application shares by setting, each beside the same noise floor."""
    floor = table[table["method"] == FLOOR]
    parts = []
    for setting, own in table.groupby("setting", sort=False):
        rows = own if setting == "single" else pd.concat([own, floor[floor["feedback"].isin(own["feedback"])]])
        parts.append(application_share(rows).assign(setting=setting))
    return pd.concat(parts, ignore_index=True)


def as_methods(table: pd.DataFrame) -> pd.DataFrame:
    """`side_by_side` with the setting in the method's name (`c3po@added`), for tables and paired differences."""
    suffix = table["setting"].map({SETTING[how]: SUFFIX[how] for how in SUFFIX}).fillna("")
    return table.assign(method=table["method"] + suffix)


def crossings(singles: pd.DataFrame, mixed: pd.DataFrame, feedbacks: Sequence[Feedback]) -> pd.DataFrame:
    """How often one feedback's effect shows where the other applies, a row per feedback and other: shares of answers.

    `baseline`: pi_0's answers; `single`: those of the other feedback's own adapter; `mixed`: the pair's model. Of a
    feedback without a metric the first two are not known: no judge has looked at them with its eyes.

    Args:
        mixed: the rows of one pair and method (evaluate_pair).
    """
    rows = []
    for feedback in feedbacks:
        cross = mixed[(mixed["feedback"] == feedback.id) & (mixed["prompts_of"] != feedback.id)]
        for other, part in cross[cross["split"] == "in_scope"].groupby("prompts_of"):
            own = singles[(singles["feedback"] == other) & singles["method"].isin(mixed["method"])]
            own = own[own["prompt_id"].isin(part["prompt_id"])]
            alone = own[own["answer"] != ""] if feedback.metric else own.iloc[:0]
            single = [check(feedback.metric, row.answer, row.baseline) for row in alone.itertuples()]
            shares = {
                "baseline": part["ok_baseline"].astype(float).mean(),
                "single": pd.Series(single, dtype=float).mean(),
                "mixed": applied(part).mean(),
            }
            rows.append({"effect of": feedback.id, "on prompts of": other, **shares})
    return pd.DataFrame(rows)
