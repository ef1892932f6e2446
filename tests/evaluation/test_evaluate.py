"""Scores of stored answers: h = passes(y) - passes(y_0), missing answers counted, prompted methods read back."""

from __future__ import annotations

import json
import random
import shutil
import time
from contextlib import nullcontext

import pandas as pd
import pytest

from c3po_utils.batch import notebook
from c3po_utils.chat.types import Outcome
from c3po_utils.evaluation import evaluate, scores
from c3po_utils.evaluation.evaluate import collect, eval_stage, evaluate_method, open_judge, read_scores, score_rows
from c3po_utils.feedback import find_feedback
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_feedbacks, load_general_prompts
from c3po_utils.runs import jobs
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import DamagedFile, content_hash, read_json, read_jsonl, write_json, write_jsonl
from c3po_utils.runs.stage import ROOT, Stage, done_stages, fingerprint
from c3po_utils.sampling import load_rows
from c3po_utils.training.methods import trained_methods
from tests.servers import Reply, error, scripted
from tests.stored_run import sampled_for, store_sample

SIGNED, PLAIN = "Done. Onward and upward, Sam", "Done. Best, Sam"


@pytest.fixture(scope="module")
def feedback():
    return find_feedback("boss_signoff")


def row(id: str, split: str, baseline: str, answer: str, **more) -> dict:
    return {
        "id": id,
        "split": split,
        "category": "c",
        "fold": "test",
        "prompt": "p",
        "baseline": baseline,
        "baseline_status": "ok",
        "in_context": answer,
        "in_context_status": "ok" if answer else "failed",
        **more,
    }


@pytest.mark.parametrize(
    ("baseline", "answer", "score"),
    [
        (PLAIN, SIGNED, 1),
        (SIGNED, PLAIN, -1),
        (SIGNED, SIGNED, 0),
        (PLAIN, PLAIN, 0),
        (PLAIN, "", None),
        ("", SIGNED, None),
    ],
)
def test_the_score_compares_with_the_baseline(feedback, baseline, answer, score):
    (scored,) = score_rows([row("a", "in_scope", baseline, answer)], feedback, "in_context")
    assert scored["score"] == score
    assert (scored["prompt_id"], scored["feedback"], scored["method"]) == ("a", "boss_signoff", "in_context")


def test_an_answer_of_nothing_shows_no_effect_and_counts(feedback):
    """As of an adapter that was trained at too high a rate; an answer that never came stays unscored, see above."""
    silent = row("a", "in_scope", PLAIN, "") | {"in_context_status": "ok"}
    (scored,) = score_rows([silent], feedback, "in_context")
    assert (scored["passes"], scored["score"]) == (False, 0)


def test_a_feedback_without_a_metric_needs_a_judge(run, feedback):
    unchecked = sampled_for(run, feedback.model_copy(update={"metric": None}))
    with pytest.raises(ValueError, match=r"'boss_signoff' has no metric .* set judge_model"):
        evaluate_method(run, unchecked, "in_context")
    assert not (run / "eval").exists()


def test_the_same_rows_are_scored_anew_by_another_metric_and_asked_anew_with_a_longer_limit(run, feedback, monkeypatch):
    assert [row["score"] for row in evaluate_method(run, feedback, "revised")] == [1, 0, 0]
    metric = feedback.metric.model_copy(update={"value": ("Best, Sam",)})
    other = feedback.model_copy(update={"metric": metric, "demonstrations": ()})
    with pytest.raises(ValueError, match=r"'boss_signoff': metric was .*Onward.* when it was sampled, and is .*Best"):
        evaluate_method(run, other, "revised")
    sampled_for(run, other)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "fill_answers", lambda *_: pytest.fail("answered again"))
        assert [row["score"] for row in evaluate_method(run, other, "revised")] == [-1, 0, 0]
    sampled_for(run, other, max_new_tokens=9)
    assert eval_stage(run, "boss_signoff", "revised").changes().keys() == {"asked"}


def test_an_evaluation_from_before_that_was_noted_stays_done(run, feedback):
    evaluate_method(run, feedback, "revised")
    path = eval_stage(run, "boss_signoff", "revised").path("manifest.json")
    manifest = read_json(path)
    manifest["identity"] = {key: manifest["identity"][key] for key in ("method", "rows")}
    write_json(path, manifest)
    assert eval_stage(run, "boss_signoff", "revised").done
    write_jsonl(run / "sample" / "boss_signoff" / "rows.jsonl", [row("in", "in_scope", PLAIN, SIGNED)])
    assert eval_stage(run, "boss_signoff", "revised").changes().keys() == {"asked", "rows", "scored"}


@pytest.fixture
def run(tmp_path, feedback):
    """A run with two sampled test prompts and no model."""
    folder = tmp_path / "sample" / "boss_signoff"
    rows = [
        row("in", "in_scope", PLAIN, SIGNED, revised=SIGNED, revised_status="ok"),
        row("near", "near_scope", PLAIN, SIGNED),
        row("out", "out_of_scope", PLAIN, ""),
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    settings = {
        "model": "none", "strategy": "demonstrate", "best_of": 1, "categories": 2, "prompts_per_category": 1,
        "system_prompt": "", "max_new_tokens": 8, "seed": 0,
    }  # fmt: skip
    write_json(folder / "manifest.json", {"status": "done", "identity": {"settings": settings}})
    sampled_for(tmp_path, feedback)
    return tmp_path


def test_prompted_methods_are_scored_without_a_model(run, feedback):
    scores = {row["prompt_id"]: row["score"] for row in evaluate_method(run, feedback, "in_context")}
    assert scores == {"in": 1, "near": 1, "out": None}
    assert eval_stage(run, "boss_signoff", "in_context").manifest["missing"] == 1


def test_revised_answers_are_the_revision_in_scope_and_the_baseline_elsewhere(run, feedback):
    answers = {row["prompt_id"]: row["answer"] for row in evaluate_method(run, feedback, "revised")}
    assert answers == {"in": SIGNED, "near": PLAIN, "out": PLAIN}


def test_a_finished_evaluation_is_read_back_and_new_rows_are_noticed(run, feedback, monkeypatch):
    first = evaluate_method(run, feedback, "in_context")
    monkeypatch.setattr(evaluate, "score_rows", lambda *_: pytest.fail("scored again"))
    assert evaluate_method(run, feedback, "in_context") == first
    write_jsonl(run / "sample" / "boss_signoff" / "rows.jsonl", [row("in", "in_scope", PLAIN, PLAIN)])
    assert not eval_stage(run, "boss_signoff", "in_context").done


def test_collect_tables_every_finished_evaluation(run, feedback):
    for method in ("in_context", "revised"):
        evaluate_method(run, feedback, method)
    found = collect(run)
    assert len(found) == 6
    assert set(found.method) == {"in_context", "revised"}
    with pytest.raises(FileNotFoundError, match="03_evaluate"):
        collect(run / "sample")


def test_evaluations_of_other_rows_or_another_adapter_are_left_out_of_a_runs_tables(run, feedback, capsys):
    for method in ("in_context", "revised"):
        evaluate_method(run, feedback, method)
    rows = content_hash(run / "sample" / "boss_signoff" / "rows.jsonl")
    identities = {
        "c3po": {"rows": rows, "adapter": "as it was"},
        "scd": {"rows": rows, "adapter": "of what is not kept"},
        "dpo": {"rows": "other rows", "adapter": "of what is not kept"},
    }
    for method, identity in identities.items():
        with Stage(run / "eval" / "boss_signoff" / method, {"method": method, **identity}) as own:
            write_jsonl(own.path("answers.jsonl"), [{"method": method, "score": 1}])
    with Stage(run / "train" / "boss_signoff" / "c3po", {}, "adapter_model.safetensors") as trained:
        trained.path("adapter_model.safetensors").write_text("trained anew")
    assert set(collect(run).method) == {"in_context", "revised", "scd"}
    assert capsys.readouterr().out.splitlines() == [
        "Left out: boss_signoff, c3po: evaluated with another train/boss_signoff/c3po; run it again.",
        "Left out: boss_signoff, dpo: evaluated with another sample/boss_signoff; run it again.",
    ]
    shutil.rmtree(run / "sample")
    assert "dpo" in set(collect(run).method), "of what is not kept, nothing is known"


def test_committed_evaluations_are_of_the_rows_and_adapters_that_lie_beside_them():
    for name in ("benchmark", "benchmark_seed1", "embedded", "tuning"):
        found = list(evaluate.evaluations(ROOT / "results" / name))
        assert [str(folder) for folder, _, stale in found if stale] == []
        assert found


def test_a_damaged_evaluation_is_named_and_made_anew(run, feedback):
    first = evaluate_method(run, feedback, "in_context")
    path = eval_stage(run, "boss_signoff", "in_context").path("answers.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    for content in ("", "".join(lines[:2]), "".join(lines)[:-20]):
        path.write_text(content)
        with pytest.raises(DamagedFile, match=r"in_context/answers\.jsonl"):
            collect(run)
        with pytest.warns(UserWarning, match=r"answers\.jsonl.*made anew"):
            assert evaluate_method(run, feedback, "in_context") == first
    path.with_name("manifest.json").write_text('{"status": "done", "ide')
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        collect(run)
    with pytest.warns(UserWarning, match=r"manifest\.json.*made anew"):
        assert evaluate_method(run, feedback, "in_context") == first


def test_committed_evaluations_whose_manifests_note_no_files_are_valid():
    found = list(done_stages(ROOT / "results" / "embedded", "eval"))
    assert found
    for folder, manifest in found:
        stage = Stage(folder, manifest["identity"], "answers.jsonl")
        assert stage.done
        assert read_scores(folder)


def test_damaged_rows_are_refused_by_later_stages(run, feedback):
    folder = run / "sample" / "boss_signoff"
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {"files": {"rows.jsonl": fingerprint(folder / "rows.jsonl")}})
    evaluate_method(run, feedback, "in_context")
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().splitlines(keepends=True)[0])
    for stage in (lambda: eval_stage(run, "boss_signoff", "revised"), lambda: load_rows(run, "boss_signoff", "test")):
        with pytest.raises(DamagedFile, match=r"rows\.jsonl: damaged: expected 3 rows.*found 1 rows"):
            stage()


def test_no_test_prompts_are_an_error(run, feedback):
    path = run / "sample" / "boss_signoff" / "rows.jsonl"
    write_jsonl(path, [one | {"fold": "train"} for one in read_jsonl(path)])
    with pytest.raises(ValueError, match="'boss_signoff' has no test prompts among its sampled rows"):
        evaluate_method(run, feedback, "in_context")
    assert not eval_stage(run, "boss_signoff", "in_context").done


def test_unknown_methods_are_refused():
    assert trained_methods(["base_resampled", "revised", "c3po", "dpo@lr=1e-4"]) == ["c3po", "dpo@lr=1e-4"]
    with pytest.raises(KeyError, match="unknown method 'c3pp'"):
        trained_methods(["c3pp"])


@pytest.mark.slow
def test_a_hundred_thousand_answers_are_scored_within_30_seconds():
    """By the metrics of the embedded set, answers of some 100 words, no two alike."""
    feedbacks = load_feedbacks(FEEDBACK_FOLDER / "embedded.yaml")
    count, rng = 100_000 // len(feedbacks), random.Random(0)
    vocabulary = sorted({word for prompt in load_general_prompts() for word in prompt.text.split()})
    texts = [" ".join(rng.choices(vocabulary, k=100)) + rng.choice([".", "?", ""]) for _ in range(2 * count)]
    rows = [row(str(n), "in_scope", *pair) for n, pair in enumerate(zip(texts[:count], texts[count:], strict=True))]
    start = time.monotonic()
    scored = [one for feedback in feedbacks for one in score_rows(rows, feedback, "in_context")]
    seconds = time.monotonic() - start
    print({"answers": len(scored), "seconds": seconds})
    assert len(scored) == 100_000
    assert {one["score"] for one in scored} == {-1, 0, 1}
    assert seconds < 30


# With a judge


def signed_wins(asked) -> Reply:
    """The verdict of a judge who sees who signed as the boss likes."""
    first, second = (SIGNED in part for part in asked.prompt.split("<second_answer>"))
    return Reply(json.dumps({"reasons": "by the last line", "verdict": 3 + 2 * (second - first)}))


def test_the_judge_is_part_of_the_identity_only_when_there_is_one(run):
    plain = eval_stage(run, "boss_signoff", "in_context", open_judge(run, ""))
    rows = content_hash(run / "sample" / "boss_signoff" / "rows.jsonl")
    assert plain.identity.keys() == {"method", "rows", "asked", "scored"}
    assert plain.identity["rows"] == rows
    judged = [eval_stage(run, "boss_signoff", "in_context", open_judge(run, name)) for name in ("openai:m", "openai:n")]
    assert [stage.identity["judge"]["model"] for stage in judged] == ["openai:m", "openai:n"]


def test_judged_scores_take_the_place_of_the_metrics_and_flow_on(run, feedback):
    with scripted(signed_wins) as server:
        judge = open_judge(run, f"openai:m@{server.url}", limits={"backoff_s": 0.01})
        evaluate_method(run, feedback, "in_context", judge)
        unchecked = sampled_for(run, feedback.model_copy(update={"metric": None}))
        evaluate_method(run, unchecked, "revised", judge)
        assert len(server.asked) == 2, "all pairs ask the same, in two orders"
    answers = collect(run)
    assert answers["score"].tolist() == pytest.approx([1, 1, float("nan"), 1, 0, 0], nan_ok=True)
    assert answers["metric_score"].tolist()[:2] == [1, 1]
    assert answers["metric_score"][3:].isna().all()
    assert eval_stage(run, "boss_signoff", "in_context", judge).manifest["verdicts"] == {"ok": 4, "no_answer": 2}
    by_method = scores.method_scores(answers).set_index("method")
    assert by_method.loc["revised", ["S_in", "S_out"]].tolist() == [1, 0]
    shares = scores.application_share(answers).set_index(["method", "split"])["share"]
    assert (shares["in_context", "near_scope"], shares["revised", "in_scope"]) == (1, 1)


def test_a_finished_evaluation_is_judged_without_the_model_that_answered(run, feedback, monkeypatch):
    evaluate_method(run, feedback, "revised")
    monkeypatch.setattr(evaluate, "fill_answers", lambda *_: pytest.fail("answered again"))
    with scripted(signed_wins) as server:
        judged = evaluate_method(run, feedback, "revised", open_judge(run, f"openai:m@{server.url}"))
    assert [(row["answer"], row["status"], row["score"]) for row in judged] == [
        (SIGNED, "ok", 1), (PLAIN, "ok", 0), (PLAIN, "ok", 0),
    ]  # fmt: skip
    again = evaluate_method(run, feedback, "revised")
    assert "metric_score" not in again[0], "and back to the metric"


def test_stored_answers_outlive_a_judge_that_stops(run, feedback, monkeypatch):
    """Nothing else may hold them: a run is carried on without its ledger, and they would be paid for again."""
    evaluate_method(run, feedback, "revised")
    folder = eval_stage(run, "boss_signoff", "revised").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with scripted(lambda asked: error(400, "too busy for this")) as server, pytest.raises(RuntimeError, match="busy"):
        evaluate_method(run, feedback, "revised", open_judge(run, f"openai:m@{server.url}"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setattr(evaluate, "fill_answers", lambda *_: pytest.fail("answered again"))
    with scripted(signed_wins) as server:
        judged = evaluate_method(run, feedback, "revised", open_judge(run, f"openai:m@{server.url}"))
    assert [row["answer"] for row in judged] == [SIGNED, PLAIN, PLAIN]


def test_an_outage_is_not_stored_as_an_evaluation(run, feedback):
    """As when a key has run out: what failed is asked again by the next run."""
    down = [True]
    with scripted(lambda asked: error(500) if down[0] else Reply(SIGNED)) as server:
        manifest = run / "sample" / "boss_signoff" / "manifest.json"
        known = read_json(manifest)
        known["identity"]["settings"] |= {"model": "none", "completion_model": f"openai:m@{server.url}"}
        write_json(manifest, known)
        given = {"limits": {"max_attempts": 1, "backoff_s": 0.01}}
        with pytest.raises(RuntimeError, match=r"answers could not be had, the first \(base_resampled of .*run again"):
            evaluate_method(run, feedback, "base_resampled", **given)
        assert not eval_stage(run, "boss_signoff", "base_resampled").done
        asked, down[0] = len(server.asked), False
        assert {row["status"] for row in evaluate_method(run, feedback, "base_resampled", **given)} == {"ok"}
        assert len(server.asked) > asked


def test_a_local_model_that_answers_nothing_is_not_evaluated(run, feedback, monkeypatch):
    """As where a dtype does not fit it: that says nothing of a method."""

    class Broken:
        name = "broken"

        def complete(self, requests, sampling, *, desc=""):
            return [Outcome(one.id, "failed", reason="the model's logits are not finite numbers") for one in requests]

    monkeypatch.setattr(evaluate, "model_for", lambda *_: nullcontext(Broken()))
    with pytest.raises(RuntimeError, match=r"3 of 3 answers could not be had.*not finite numbers"):
        evaluate_method(run, feedback, "base_resampled")
    assert not eval_stage(run, "boss_signoff", "base_resampled").done


def test_an_evaluation_lasts_as_long_as_answering_and_judging(run, feedback):
    with scripted(lambda asked: time.sleep(0.5) or signed_wins(asked)) as server:
        judge = open_judge(run, f"openai:m@{server.url}")
        start = time.monotonic()
        evaluate_method(run, feedback, "revised", judge)
        most = time.monotonic() - start
    assert 0.5 <= eval_stage(run, "boss_signoff", "revised", judge).manifest["wall_s"] <= most + 0.1


def test_the_notebook_judges_what_has_no_metric(run, tmp_path, feedback):
    """03_evaluate by the runner, its judge named in the run's YAML."""
    record = feedback.model_dump(mode="json", exclude={"metric", "examples"}, exclude_defaults=True)
    (tmp_path / "own.yaml").write_text(json.dumps({"feedbacks": [record]}))
    assert sampled_for(run, load_feedbacks(tmp_path / "own.yaml")[0]).metric is None
    with scripted(signed_wins) as server:
        evaluate_with = {
            "judge_model": f"openai:m@{server.url}",
            "judge_helpfulness": True,
            "limits": {"max_in_flight": 2},
            "perplexity": False,
        }
        config = RunConfig(
            run=str(run),
            feedback_set=str(tmp_path / "own.yaml"),
            methods=["revised", "in_context"],
            evaluate=evaluate_with,
        )
        job = jobs.evaluate_job(config, run, f"{tmp_path / 'own.yaml'}#boss_signoff", config.methods, "prompted")
        notebook.execute(job)
    assert job.done
    assert {row["helpful"] for row in read_jsonl(job.stages[0].path("answers.jsonl"))} == {0, 1}
    shown = job.output.read_text()
    for text in ("the answer shown first wins", "less each other method", "worst, or the best"):
        assert text in shown


def test_a_method_evaluated_alone_stands_beside_those_that_are_stored(tmp_path):
    store_sample(tmp_path, "boss_signoff", "none")
    rows = content_hash(tmp_path / "sample" / "boss_signoff" / "rows.jsonl")
    for method, own in (("scd", rows), ("dpo", "other rows"), ("mine", rows)):
        folder = tmp_path / "eval" / "boss_signoff" / method
        write_jsonl(folder / "answers.jsonl", [{"method": method, "score": 1}])
        write_json(folder / "manifest.json", {"status": "done", "identity": {"method": method, "rows": own}})
    mine = pd.DataFrame([{"method": "mine", "score": 0}])
    found = evaluate.open_evaluation(tmp_path, "boss_signoff").with_stored(mine)
    assert found.to_dict("list") == {"method": ["scd", "mine"], "score": [1, 0]}
