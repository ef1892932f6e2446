"""A method's answers to the test prompts, scored against the baseline's (section 4 of the paper)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_utils import chat, training  # as rooms: their heavy parts are imported when they are used
from c3po_utils.evaluation.judge import Judge, judge_rows, open_judge, verdict_counts
from c3po_utils.evaluation.routing import adapted
from c3po_utils.feedback import Feedback, find_feedback
from c3po_utils.runs import LEDGER, Stage, done_stages, files, stage
from c3po_utils.sampling import SampleSettings, answers, load_rows, rows_hash, stored_settings
from c3po_utils.sampling import rows as sampled
from c3po_utils.training import BASE_RESAMPLED, adapter_folder

ANSWERS = "answers.jsonl"
Answered = tuple[Sequence[dict], dict]  # rows with a column of answers, and the columns that tell their scores apart


def eval_stage(run: Path | str, feedback_id: str, method: str, judge: Judge | None = None) -> Stage:
    """The folder of one method's scores, done when they came from these samples, this adapter and this judge."""
    folder = Path(run) / "eval" / feedback_id / method
    rows = rows_hash(run, feedback_id)
    inputs: dict[str, Any] = {"rows": rows, **asked_of(folder, run, [feedback_id], rows)}
    if method not in training.methods.PROMPTED:
        inputs["adapter"] = training.stage.known_hash(adapter_folder(run, feedback_id, method))
    if judge:
        inputs["judge"] = judge.identity
    return Stage(folder, {"method": method, **inputs}, ANSWERS)


def asked_of(folder: Path, run: Path | str, ids: Sequence[str], rows: str | dict[str, str]) -> dict[str, str]:
    """What else answers to these rows and their scores depend on; nothing where they were stored before that was."""
    known = (Stage(folder, {}).manifest or {}).get("identity", {"asked": ""})
    if "asked" not in known and known.get("rows") == rows:
        return {}
    every = [sampled.asked_and_scored(run, id) for id in ids]
    return every[0] if len(every) == 1 else {key: files.content_hash([one[key] for one in every]) for key in every[0]}


@contextmanager
def model_for(
    run: Path | str,
    feedback_id: str,
    method: str,
    settings: SampleSettings,
    limits: dict[str, Any] | None = None,
    server: chat.vllm.Engine | None = None,
) -> Iterator[chat.ChatModel]:
    """pi_0 (method `base_resampled`) or pi_0 with the method's adapter (`adapted`), behind the run's ledger.

    `limits` hold where pi_0 answers behind an API; `server` runs it, if it is given and pi_0 answers itself.
    """
    if method != BASE_RESAMPLED:
        with adapted(run, [feedback_id], method, settings.model, server=server) as model:
            yield model
    elif server and settings.answering == settings.model:
        yield server.chat(settings.model, chat.vllm.BASE, Path(run) / LEDGER)
    else:
        yield chat.open.open_within(settings.answering, Path(run) / LEDGER, limits)


def fill_answers(
    run: Path | str,
    feedback_id: str,
    method: str,
    rows: Sequence[dict],
    settings: SampleSettings,
    limits: dict[str, Any] | None = None,
    server: chat.vllm.Engine | None = None,
) -> None:
    """Make sure that the rows have a column named after the method.

    `base_resampled` is a second, independent sample of pi_0: what it scores is the noise floor. `revised` is what the
    trained methods aim at: y+ in scope and the baseline elsewhere. In-context answers were sampled with the data.

    Raises:
        RuntimeError: more than 5% of the calls to a server failed, or most of a local model's answers; the next run
            asks these again.
    """
    if method == "revised":
        for row in rows:
            if row["split"] != "in_scope":
                row.update(revised=row["baseline"], revised_status=row["baseline_status"])
    elif method == BASE_RESAMPLED or method not in training.methods.PROMPTED:
        with model_for(run, feedback_id, method, settings, limits, server) as model:
            answers.add_answers(model, rows, settings, method)
        served = server or model.name.startswith("openai:")
        at_most = answers.FAILED_AT_MOST if served else answers.MOST_FAILED
        answers.refuse_outage([row for row in rows if row["baseline"]], [method], at_most)


def score_rows(rows: Sequence[dict], feedback: Feedback, method: str, judge: Judge | None = None) -> list[dict]:
    """One row per prompt: texts, whether answer and baseline pass the metric, and h = passes(y) - passes(y_0).

    A prompt without an answer (its status says why) has no score; it is counted as missing, not dropped. A judge's
    score takes the metric's place (judge.judge_rows); without a metric and a judge no row has one.
    """
    scored = [_score_row(row, feedback, method) for row in rows]
    return judge_rows(judge, scored, feedback) if judge else scored


def _score_row(row: dict, feedback: Feedback, method: str) -> dict:
    answer, baseline = row[method], row["baseline"]
    answered = bool(answer) or row[f"{method}_status"] in chat.types.USABLE  # with nothing, which shows no effect
    checkable = feedback.metric and answered and baseline
    passes, baseline_passes = (
        bool(text) and feedback.passes(text, baseline) if checkable else None for text in (answer, baseline)
    )
    return {
        "prompt_id": row["id"], "feedback": feedback.id, "method": method, "split": row["split"],
        "category": row["category"], "prompt": row["prompt"], "baseline": baseline, "answer": answer,
        "status": row[f"{method}_status"], "passes": passes, "baseline_passes": baseline_passes,
        "score": None if passes is None else int(passes) - int(baseline_passes), "scored_by": "metric",
    }  # fmt: skip


def refuse_unscored(feedback: Feedback, judge: Judge | str | None) -> None:
    """Raise ValueError for a feedback that nothing can score: it has no metric, and there is no judge."""
    if feedback.metric is None and not judge:
        raise ValueError(
            f"feedback {feedback.id!r} has no metric to score answers by, so it needs a judge: set judge_model, for"
            " example to 'openai:gpt-4.1', 'openai:MODEL@http://127.0.0.1:8000/v1' or a local model"
        )


def refuse_imported(stages: Iterable[Stage]) -> None:
    """Raise ValueError for scores that were imported: they are the only ones, and are not to be made anew."""
    for own in stages:
        if "imported" in (own.manifest or {}).get("identity", {}):
            raise ValueError(f"{own} was imported: expected another run's folder to evaluate this method in")


def read_scores(folder: Path) -> list[dict]:
    """The stored rows of a finished evaluation. Raises DamagedFile where they are not those that it stored."""
    stage.intact(folder, ANSWERS)
    return files.read_jsonl(folder / ANSWERS)


def stored_scores(
    own: Stage,
    feedbacks: Sequence[Feedback],
    method: str,
    judge: Judge | None,
    answered: Callable[[], Iterable[Answered]],
) -> list[dict]:
    """Every answer scored by every feedback, stored with counts in the manifest; read back if that was done.

    What lay there before goes when all are scored: a judge who stops half-way, at a budget, costs no answers.

    Args:
        own: the evaluation's stage.

    Raises:
        ValueError: a feedback without a metric, and no judge; imported scores.
    """
    refuse_imported([own])
    for feedback in feedbacks:
        refuse_unscored(feedback, judge)
    if own.done:
        return read_scores(own.folder)
    start = time.monotonic()
    scored = [
        row | place
        for rows, place in answered()
        for feedback in feedbacks
        for row in score_rows(rows, feedback, method, judge)
    ]
    with own:
        if judge:
            own.notes["verdicts"] = verdict_counts(scored)
        files.write_jsonl(own.path(ANSWERS), scored)
        own.notes["missing"] = sum(row["score"] is None for row in scored)
        own.notes["wall_s"] = round(time.monotonic() - start, 1)  # with answering and scoring, which came before
    return scored


def evaluate_method(
    run: Path | str,
    feedback: Feedback,
    method: str,
    judge: Judge | None = None,
    limits: dict[str, Any] | None = None,
    server: chat.vllm.Engine | None = None,
) -> list[dict]:
    """Answer, score and store one method on the test prompts; see `stored_scores`, `rows_to_answer`, `model_for`."""
    sampled.refuse_changed(run, feedback)
    own = eval_stage(run, feedback.id, method, judge)

    def answered() -> Iterator[Answered]:
        rows = rows_to_answer(run, feedback.id)
        if stored := _stored_answers(own, rows):  # scored otherwise: no need of the model that answered
            rows = [row | stored[row["id"]] for row in rows]
        else:
            fill_answers(run, feedback.id, method, rows, stored_settings(run, feedback.id), limits, server)
            own.notes |= {"engine": chat.vllm.VLLM} if server else {}
        yield rows, {}

    return stored_scores(own, [feedback], method, judge, answered)


def rows_to_answer(run: Path | str, feedback_id: str) -> list[dict]:
    """The sampled rows that answers are tested on. Raises ValueError where there are none; else as `load_rows`."""
    rows = load_rows(run, feedback_id, "test")
    if not rows:
        raise ValueError(f"{feedback_id!r} has no test prompts among its sampled rows: expected one or more")
    return rows


def _stored_answers(own: Stage, rows: Sequence[dict]) -> dict[str, dict]:
    """By prompt id, the answers to all rows of a finished evaluation that differs only in who scores, and by what."""
    if own.done or not own.manifest or not own.changes().keys() <= {"judge", "scored"}:
        return {}
    method = own.identity["method"]
    try:
        scored = read_scores(own.folder)
    except (FileNotFoundError, files.DamagedFile):  # `done` has said so
        return {}
    stored = {row["prompt_id"]: {method: row["answer"], f"{method}_status": row["status"]} for row in scored}
    return stored if stored.keys() >= {row["id"] for row in rows} else {}


@dataclass(frozen=True)
class Evaluation:
    """One feedback's evaluation in a run: what is looked for, who scores (None: the metric), an API's limits, and the
    engine that runs pi_0 and adapters, which is no part of what a score is known by."""

    run: Path
    record: Feedback
    judge: Judge | None
    limits: dict[str, Any]
    engine: str = chat.vllm.LOCAL

    @property
    def scored_by(self) -> str:
        return self.judge.name if self.judge else "the metric"

    def answers(self, methods: Sequence[str]) -> pd.DataFrame:
        """The tidy answers table of scores.py: a row per method and test prompt; asked for and scored where new."""
        with self._server(methods) as server:
            given = self.judge, self.limits, server
            scored = [evaluate_method(self.run, self.record, method, *given) for method in methods]
        return pd.DataFrame([row for rows in scored for row in rows])

    def with_stored(self, answers: pd.DataFrame) -> pd.DataFrame:
        """The answers after those of other methods that are stored, of the same rows and by the same judge."""
        rows, judge = rows_hash(self.run, self.record.id), self.judge.identity if self.judge else None
        others = [
            row
            for folder, manifest in done_stages(self.run, f"eval/{self.record.id}")
            if folder.name not in set(answers["method"])
            and (manifest["identity"].get("rows"), manifest["identity"].get("judge")) == (rows, judge)
            and asked_of(folder, self.run, [self.record.id], rows).items() <= manifest["identity"].items()
            for row in read_scores(folder)
        ]
        return pd.concat([pd.DataFrame(others), answers], ignore_index=True) if others else answers

    def _server(self, methods: Sequence[str]) -> AbstractContextManager[chat.vllm.Engine | None]:
        """One for all methods that are to be answered, which is started when the first has to be asked."""
        url = chat.vllm.read_engine(self.engine)
        asked = [] if url is None else [method for method in methods if self._unanswered(method)]
        if not asked:
            return nullcontext()
        model, trained = stored_settings(self.run, self.record.id).model, training.trained_methods(asked)
        return training.served.answering(self.run, self.record.id, trained, model).engine(self.run, url)

    def _unanswered(self, method: str) -> bool:
        """Whether no answers of the method are stored: a checkout keeps these, and no adapters."""
        own = eval_stage(self.run, self.record.id, method, self.judge)
        return not own.done and not _stored_answers(own, rows_to_answer(self.run, self.record.id))


def open_evaluation(
    run: Path | str,
    feedback: str,
    judge_model: str = "",
    judge_helpfulness: bool = False,
    limits: dict[str, Any] | None = None,
    engine: str = chat.vllm.LOCAL,
) -> Evaluation:
    """The evaluation of one feedback, `id` or `path/to/set.yaml#id`; the judge as in `open_judge`.

    `limits` hold for the judge, and for pi_0 where it answers behind an API; `engine` as in chat.vllm.read_engine.
    """
    judge = open_judge(run, judge_model, judge_helpfulness, limits)
    return Evaluation(Path(run), find_feedback(feedback), judge, limits or {}, engine)


def collect(*runs: Path | str) -> pd.DataFrame:
    """All stored evaluations of single feedbacks in the runs, as one tidy answers table (scores.py).

    Where the methods of one feedback were scored by different ones, a line says so.

    Raises:
        FileNotFoundError: no run has a finished evaluation.
    """
    table = collected(*runs, two_feedbacks=False)
    if table.empty:
        raise FileNotFoundError(
            f"no finished evaluation below {[str(run) for run in runs]}: run notebooks/03_evaluate.ipynb first"
        )
    _tell_scorers(table)
    return table


def _tell_scorers(answers: pd.DataFrame) -> None:
    if "scored_by" not in answers:
        return
    mixed = answers[answers.groupby("feedback")["scored_by"].transform("nunique") > 1]
    if mixed.empty:
        return
    by = (f"{', '.join(own['method'].unique())} by {name}" for name, own in mixed.groupby("scored_by", sort=False))
    ids = ", ".join(mixed["feedback"].unique())
    print(f"Not to be compared: {'; '.join(by)} (of {ids}); evaluate them with one judge_model, or none.")


def collected(*runs: Path | str, two_feedbacks: bool) -> pd.DataFrame:
    """The rows of all finished evaluations of single feedbacks, or of two in one model; none where there are none."""
    kept = current(*runs, two_feedbacks=two_feedbacks)
    return pd.DataFrame([row for folder, _ in kept for row in read_scores(folder)])


def current(*runs: Path | str, two_feedbacks: bool | None = None) -> Iterator[tuple[Path, dict]]:
    """Folder and manifest of the finished evaluations of single feedbacks, of two in one model, or (None) of both.

    One of other rows or of another adapter than the run has now is left out, and a line says so.
    """
    for folder, manifest, stale in (one for run in runs for one in evaluations(run)):
        if two_feedbacks not in (None, "two_feedbacks" in manifest["identity"]):
            continue
        if stale:
            which = f"{folder.parent.name}, {folder.name}"
            print(f"Left out: {which}: evaluated with another {' and '.join(stale)}; run it again.")
        else:
            yield folder, manifest


def evaluations(run: Path | str) -> Iterator[tuple[Path, dict, list[str]]]:
    """Folder and manifest of every finished evaluation, and the folders it was made from that are others by now.

    What is not kept is not compared: a checkout of results may lack adapters, or all stages but these.
    """
    now = cache(partial(_known_hash, run))
    for folder, manifest in done_stages(run, "eval"):
        made_from = _made_from(folder.parent.name, manifest["identity"])
        yield folder, manifest, [place for place, then in made_from.items() if now(place) not in (None, then)]


def _made_from(evaluated: str, identity: dict[str, Any]) -> dict[str, str]:
    """The hashes in the identity of an evaluation of `a` or `a+b`, by the folder in the run."""
    rows, adapters = identity.get("rows", {}), identity.get("adapters", {})
    rows = {evaluated: rows} if isinstance(rows, str) else rows  # of two feedbacks they are by id
    adapters = {evaluated: identity["adapter"]} if "adapter" in identity else adapters
    trained = {f"train/{id}/{identity['method']}": then for id, then in adapters.items()}
    return {f"sample/{id}": then for id, then in rows.items()} | trained


def _known_hash(run: Path | str, place: str) -> str | None:
    kind, id, *_ = place.split("/")
    with suppress(FileNotFoundError, files.DamagedFile):
        return rows_hash(run, id) if kind == "sample" else training.stage.known_hash(Path(run) / place, told_only=True)
    return None
