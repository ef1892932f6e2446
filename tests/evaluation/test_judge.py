"""Judges of known vices on a real server: what they score, what is said of them, and what is never lost."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols

from c3po_utils.evaluation import calibration, scores
from c3po_utils.evaluation import judge as judge_module
from c3po_utils.evaluation.calibration import CHECKS, asked, confusion_table, disagreements, equal_lengths, flips
from c3po_utils.evaluation.evaluate import score_rows
from c3po_utils.evaluation.judge import ORDERS, Judge, Verdict, judge_rows, open_judge, verdict_counts
from c3po_utils.feedback import find_feedback
from c3po_utils.feedback.metrics import check
from tests.asking import FAST
from tests.servers import Asked, Reply, Scripted, embedded_server, error, scripted
from tests.tiny import save_tiny, tiny_config, tiny_tokenizer

FEEDBACK = find_feedback("boss_signoff")
SIGN_OFF = " Onward and upward, Sam"
WORDS = ["the", "report", "of", "this", "week", "is", "done", "and", "two", "numbers", "moved", "since", "yesterday"]


def texts(prompt: str) -> tuple[str, str]:
    """The two answers that a judge's prompt shows, in their order."""
    first, second = (re.search(rf"<{n}_answer>\n(.*?)\n</{n}_answer>", prompt, re.DOTALL) for n in ("first", "second"))
    return first[1], second[1]


def verdict(number: int, reasons: str = "as seen") -> Reply:
    return Reply(json.dumps({"reasons": reasons, "verdict": number}))


def always_first(asked: Asked) -> Reply:
    return verdict(1)


def longer(asked: Asked) -> Reply:
    first, second = map(len, texts(asked.prompt))
    return verdict(3 + 2 * int(np.sign(second - first)))


def oracle(asked: Asked) -> Reply:
    first, second = (check(FEEDBACK.metric, text, "") for text in texts(asked.prompt))
    return verdict(3 + 2 * (second - first))


def rows(count: int, seed: int = 0, gains: Callable[[str], float] = lambda split: 0.0) -> list[dict]:
    """Scored rows: answers that end as the boss likes with the chance `gains(split)`, most of them longer than their
    baselines."""
    rng, sampled = random.Random(seed), []
    for split in ("in_scope", "near_scope", "out_of_scope"):
        for n in range(count):
            answer, baseline = (" ".join(rng.choices(WORDS, k=rng.randint(*ends))) for ends in ((10, 60), (10, 40)))
            answer += SIGN_OFF * (rng.random() < gains(split))
            common = {"id": f"{split}/{n}", "split": split, "category": f"c{n % 4}", "prompt": f"Write mail {n}."}
            sampled.append({**common, "baseline": baseline, "scd": answer, "scd_status": "ok"})
    return score_rows(sampled, FEEDBACK, "scd")


def judge_on(server: Scripted, folder: Path, **settings) -> Judge:
    return Judge(f"openai:m@{server.url}", folder / "calls.sqlite", **{**FAST, "timeout_s": 20.0, **settings})


def judged_by(script: Callable, folder: Path, given: list[dict], **settings) -> pd.DataFrame:
    with scripted(script) as server:
        return pd.DataFrame(judge_rows(judge_on(server, folder, **settings), given, FEEDBACK))


def warned(judged: pd.DataFrame) -> set[str]:
    found = calibration.calibration(judged, draws=200)
    return set(found.index[found["warning"] != ""])


# The score


@pytest.mark.parametrize(
    ("answer_first", "answer_second", "score"),
    [(1, 5, 1.0), (5, 1, -1.0), (3, 3, 0.0), (1, 1, 0.0), (5, 5, 0.0), (2, 5, 0.75), (1, 3, 0.5), (4, 2, -0.5)],
)
def test_verdicts_become_scores_towards_the_answer(tmp_path, answer_first, answer_second, score):
    (row,) = rows(1)[:1]
    numbers = {row["answer"]: answer_first, row["baseline"]: answer_second}
    judged = judged_by(lambda asked: verdict(numbers[texts(asked.prompt)[0]]), tmp_path, [row])
    assert judged.loc[0, "score"] == score
    assert judged.loc[0, [f"score_{order}" for order in ORDERS]].tolist() == [
        (3 - answer_first) / 2, (answer_second - 3) / 2,
    ]  # fmt: skip
    assert judged.loc[0, "metric_score"] == 0


def test_the_judge_is_asked_about_the_effect_with_both_texts_as_they_are(tmp_path):
    (row,) = rows(1)[:1]
    row |= {"prompt": "Fill {effect} in, {0}.", "answer": "{first} %s\n\n{}", "baseline": "}{"}
    with scripted(oracle) as server:
        judge_rows(judge_on(server, tmp_path), [row], FEEDBACK)
        prompts = [asked.prompt for asked in server.asked]
        formats = [asked.body["response_format"]["json_schema"]["schema"] for asked in server.asked]
    assert {texts(prompt) for prompt in prompts} == {(row["answer"], "}{"), ("}{", row["answer"])}
    assert all(FEEDBACK.effect in prompt and row["prompt"] in prompt for prompt in prompts)
    assert formats == [Verdict.schema_for_api()] * 2
    assert list(formats[0]["properties"]) == ["reasons", "verdict"], "reasons come first"


def test_a_judge_that_always_picks_the_first_scores_exactly_zero_and_is_flagged(tmp_path):
    judged = judged_by(always_first, tmp_path, rows(12, gains=lambda split: 0.5))
    assert (judged["score"] == 0).all()
    found = calibration.calibration(judged, draws=100)
    assert found.loc[["first", "flips"], "value"].tolist() == [1, 1]
    assert {"first", "flips", "kappa", "auc"} == warned(judged)
    assert len(flips(judged)) == len(judged)


def test_a_judge_that_prefers_length_is_flagged_and_scores_nothing_at_equal_lengths(tmp_path):
    judged = judged_by(longer, tmp_path, rows(40))
    raw, controlled = (scores.method_scores(table).iloc[0] for table in (judged, equal_lengths(judged)))
    assert "longer" in warned(judged)
    assert raw["S_in"] > 0.2, "most answers are longer"
    assert raw["S_out"] > 0.9
    assert max(abs(controlled["S_in"]), controlled["S_near"], controlled["S_general"]) < 0.03


def test_a_judge_that_sees_the_effect_agrees_with_the_metric_and_raises_no_warning(tmp_path):
    given = rows(15, gains={"in_scope": 0.8, "near_scope": 0.3, "out_of_scope": 0.1}.get)
    judged = judged_by(oracle, tmp_path, given)
    assert judged["score"].tolist() == [row["score"] for row in given]
    found = calibration.calibration(judged, draws=100)
    assert warned(judged) == set()
    assert found.loc[["missing", "flips", "kappa", "auc"], "value"].tolist() == [0, 0, 1, 1]
    assert disagreements(judged).empty
    assert np.trace(confusion_table(judged)) == len(judged)
    assert equal_lengths(judged)["score"].tolist() == pytest.approx(judged["score"].tolist(), abs=1e-9)


def test_helpfulness_is_asked_apart_and_does_not_touch_the_score(tmp_path):
    def script(asked):
        return longer(asked) if "is of more use" in asked.prompt else verdict(3)

    judged = judged_by(script, tmp_path, rows(4), helpfulness=True)
    assert (judged["score"] == 0).all()
    assert (judged["helpful"] == np.sign(judged["answer"].str.len() - judged["baseline"].str.len())).all()
    means = scores.split_means(judged, "helpful").iloc[0]
    assert means["in_scope"] == judged.loc[judged["split"] == "in_scope", "helpful"].mean()
    assert -1 <= means["in_scope_lo"] <= means["in_scope"] <= means["in_scope_hi"] <= 1


# What has no verdict


def test_verdicts_that_cannot_be_read_are_asked_for_once_more_and_then_counted(tmp_path):
    """Prompt 0 gets a verdict with chance only, prompt 1 in one of its orders only, prompt 2 is refused."""

    def script(asked):
        number = int(re.search(r"Write mail (\d+)", asked.prompt)[1])
        first, second = texts(asked.prompt)
        if number == 2:
            return Reply(text=None, refusal="I'd rather not")
        if (number == 0 and asked.body["temperature"] == 0) or (number == 1 and first < second):
            return Reply("The second, clearly!")
        return oracle(asked)

    given = rows(4, gains=lambda split: 0.5)
    with scripted(script) as server:
        judged = judge_rows(judge_on(server, tmp_path), given, FEEDBACK)
    counts = verdict_counts(judged)
    assert counts == {"ok": 15, "no_form": 3, "refused": 6}
    table = pd.DataFrame(judged)
    assert [row["score"] is None for row in judged] == [False, True, True, False] * 3
    assert "missing" in warned(table)
    found = calibration.calibration(table).loc["missing"]
    assert (found["value"], found["n"]) == (0.5, 12)
    (bounds,) = scores.missing_bounds(table).to_dict("records")
    assert bounds["S_in_best"] - bounds["S_in_worst"] == 1, "half of the pairs, each from -1 to 1"
    assert scores.feedback_scores(table).loc[0, "n_missing"] == 6


def test_equal_texts_and_missing_answers_are_not_asked_about(tmp_path):
    given = rows(1)
    given[0]["answer"] = given[0]["baseline"]
    given[1] |= {"answer": "", "score": None, "status": "failed"}
    with scripted(always_first) as server:
        judged = judge_rows(judge_on(server, tmp_path), given, FEEDBACK)
        assert len(server.asked) == 2
    assert [row["score"] for row in judged] == [0.0, None, 0.0]
    assert verdict_counts(judged) == {"same": 2, "no_answer": 2, "ok": 2}
    assert len(asked(pd.DataFrame(judged))) == 1


def test_a_judge_that_fails_is_an_error_and_what_it_answered_is_kept(tmp_path):
    down = True

    def script(asked):
        return error(400, "too busy for this") if down and "mail 1" in asked.prompt else oracle(asked)

    with scripted(script) as server:
        judge = judge_on(server, tmp_path)
        with pytest.raises(RuntimeError, match=r"6 of 18 calls to the judge failed.*too busy"):
            judge_rows(judge, rows(3), FEEDBACK)
        down, before = False, len(server.asked)
        judged = judge_rows(judge, rows(3), FEEDBACK)
        assert len(server.asked) == before + 6
    assert verdict_counts(judged) == {"ok": 18}


def test_a_judge_is_who_it_is_whatever_its_limits_and_wrong_ones_are_told_at_once(tmp_path):
    def open_(name: str = "openai:m", **settings) -> Judge:
        return Judge(name, tmp_path / "calls.sqlite", **settings)

    assert open_(max_in_flight=2).identity == open_().identity
    assert open_("openai:n").identity != open_().identity != open_(helpfulness=True).identity
    with pytest.raises(ValueError, match="max_in_flight"):
        open_(max_in_fligth=2)
    with pytest.raises(ValueError, match="budget_usd needs prices"):
        open_(budget_usd=1.0)


def test_a_judge_writes_nothing_until_it_is_asked(tmp_path):
    with scripted(oracle) as server:
        judge = judge_on(server, tmp_path / "run")
        assert judge.identity["model"] == judge.name
        assert not (tmp_path / "run").exists()
        judge_rows(judge, rows(1)[:1], FEEDBACK)
    assert (tmp_path / "run" / "calls.sqlite").exists()


def test_a_local_judge_takes_no_notice_of_a_runs_limits_for_an_api(tmp_path):
    """A run's limits of sampling hold for its judge, too, and either may be a local model."""
    config = tiny_config(len(tiny_tokenizer()), max_position_embeddings=2048)
    model = save_tiny(tmp_path / "tiny", config, steps=30)
    judge = open_judge(tmp_path, str(model), limits={"budget_usd": 1.0, "max_in_flight": 2})
    assert sum(verdict_counts(judge_rows(judge, rows(1)[:1], FEEDBACK)).values()) == 2
    with pytest.raises(ValueError, match=r"unknown limit 'max_in_fligth'.*'max_in_flight'"):
        open_judge(tmp_path, str(model), limits={"max_in_fligth": 2})
    with pytest.raises(ValueError, match="no model 'not/a/model'"):
        open_judge(tmp_path, "not/a/model")


# Calibration


def made_up(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Judged answers of three methods with lengths as texts have them, most answers longer; nobody gains the effect."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal([[6.3], [6.0]], 0.4, (2, count))).round().astype(int)
    return pd.DataFrame(
        {
            "feedback": "f", "method": rng.choice(["a", "b", "c"], count), "split": "in_scope", "category": "c",
            "prompt_id": [f"p{n}" for n in range(count)], "answer": ["x" * n for n in lengths[0]],
            "baseline": ["y" * n for n in lengths[1]], "metric_score": 0.0,
        }
    )  # fmt: skip


TASTES = {
    "which is longer": np.sign,
    "a tenth more": lambda r: np.sign(r) * (abs(r) > 0.1),
    "in two steps": lambda r: np.sign(r) * (0.5 * (abs(r) > 0.05) + 0.5 * (abs(r) > 0.4)),
    "by how much": lambda r: np.clip(r, -1, 1),
    "shorter": lambda r: np.clip(-2 * r, -1, 1),
}


@pytest.mark.parametrize("taste", TASTES)
def test_any_taste_for_length_is_gone_at_equal_lengths(taste):
    judged = made_up()
    judged["score"] = TASTES[taste](asked(judged)["longer"].to_numpy())
    assert abs(judged["score"].mean()) > 0.2
    assert abs(equal_lengths(judged)["score"].mean()) < 0.03
    assert "longer" in warned(judged)


def test_an_effect_that_makes_answers_longer_is_no_taste_for_length():
    """Half of the answers gain the effect and two hundred characters with it; the judge sees the effect alone."""
    judged = made_up()
    gained = np.arange(len(judged)) % 2 == 0
    judged["answer"] += np.where(gained, "z" * 200, "")
    judged["metric_score"] = judged["score"] = gained * 1.0
    assert equal_lengths(judged)["score"].tolist() == pytest.approx(judged["score"].tolist(), abs=1e-9)


def test_length_control_is_the_regression_that_statsmodels_fits():
    judged = made_up(60, seed=3)
    rng = np.random.default_rng(4)
    judged["metric_score"] = rng.choice([-1.0, 0.0, 1.0], 60)
    longer = asked(judged)["longer"]
    judged["score"] = np.clip(0.3 * longer + 0.3 * judged["metric_score"] + rng.normal(0, 0.2, 60), -0.6, 0.6)
    frame = judged.assign(sign=np.sign(longer), tanh=np.tanh(longer / longer.std(ddof=0)))
    slopes = ols("score ~ C(method) + sign + tanh + metric_score", frame).fit().params
    expected = frame["score"] - slopes["sign"] * frame["sign"] - slopes["tanh"] * frame["tanh"]
    np.testing.assert_allclose(equal_lengths(judged)["score"], expected, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pairs_are_no_error(count):
    """One pair, or none but of equal texts: nothing to regress on."""
    judged = made_up(4).assign(score=0.5)
    judged.loc[count:, "answer"] = judged.loc[count:, "baseline"]
    assert equal_lengths(judged)["score"].tolist() == [0.5] * 4
    assert calibration.calibration(judged, draws=5)["n"].max() == count
    assert len(disagreements(judged)) == count


def test_agreement_by_hand():
    """20 pairs: both see 8 gains and 6 ties, the judge misses 4 gains and sees 2 that are none."""
    gold = np.repeat([1, 0, 1, 0], [8, 6, 4, 2])
    score = np.repeat([1.0, 0.0, 0.25, 0.5], [8, 6, 4, 2])
    chance = (12 * 10 + 8 * 10) / 400
    assert calibration.kappa(gold, score) == pytest.approx((14 / 20 - chance) / (1 - chance))
    assert calibration.auc(gold, score) == pytest.approx((8 * 8 + 4 * 6) / (12 * 8))
    assert calibration.confusion(gold, score).tolist() == [[0, 0, 0], [0, 6, 2], [0, 4, 8]]


def test_agreement_has_intervals_and_a_judge_without_gold_or_orders_has_none():
    judged = made_up(80).assign(metric_score=lambda rows: (np.arange(len(rows)) % 3 == 0) * 1.0)
    judged["score"] = np.where(np.arange(80) % 10, judged["metric_score"], 1 - judged["metric_score"])
    found = calibration.calibration(judged, draws=100)
    assert list(found.index) == ["missing", "longer", "kappa", "auc"]
    for name in ("kappa", "auc"):
        low, value, high = found.loc[name, ["low", "value", "high"]]
        assert low < value < high < 1
        assert high - low < 0.4
    unknown = calibration.calibration(judged.assign(metric_score=None))
    assert unknown.loc["kappa":, "value"].isna().all()
    assert unknown.loc["longer", "n"] == 0
    assert (unknown["warning"] == "").all()


def test_a_share_is_as_certain_as_its_prompts_are_many():
    """Ten methods on the same ten prompts are no hundred observations."""
    once = made_up(10).assign(score=1.0)
    often = pd.concat([once.assign(method=name) for name in "abcdefghij"], ignore_index=True)
    narrow, wide = (calibration.calibration(table, draws=10).loc["longer"] for table in (often, once))
    assert (narrow["low"], narrow["high"]) == (wide["low"], wide["high"])
    assert (narrow["n"], wide["n"]) == (100, 10)


def test_chance_in_a_few_prompts_raises_no_alarm():
    check = CHECKS["longer"]
    assert not check.flags(0.75, 0.41, 0.93)
    assert check.flags(0.75, 0.65, 0.83)
    assert CHECKS["kappa"].flags(0.3, 0.1, 0.5), "agreement has to show itself"


# Real servers, full size


@pytest.mark.embedded
def test_a_real_server_judges_and_every_verdict_is_accounted_for(tmp_path, monkeypatch):
    for name in ("SAMPLING", "AGAIN"):  # the embedded model never tires of giving reasons
        monkeypatch.setattr(judge_module, name, replace(getattr(judge_module, name), max_new_tokens=100))
    judge = Judge(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite", max_in_flight=4)
    judged = judge_rows(judge, rows(1, gains=lambda split: 1.0)[:1], FEEDBACK)
    counts = Counter(verdict_counts(judged))
    assert counts.total() == 2
    assert counts["ok"] > 0
    assert set(counts) <= {"ok", "truncated", "fields", "no_form", "ambiguous"}
    for row in judged:
        values = [row[f"score_{order}"] for order in ORDERS]
        assert row["score"] == (None if None in values else sum(values) / 2)
        assert set(values) <= {-1.0, -0.5, 0.0, 0.5, 1.0, None}
    assert calibration.calibration(pd.DataFrame(judged), draws=20).loc["missing", "n"] == 1


def test_a_local_model_is_asked_in_tags_and_its_silence_is_counted(tmp_path):
    config = tiny_config(len(tiny_tokenizer()), max_position_embeddings=2048)
    model = save_tiny(tmp_path / "tiny", config, steps=30)
    judged = judge_rows(Judge(str(model), tmp_path / "calls.sqlite"), rows(1)[:1], FEEDBACK)
    assert judged[0]["score"] is None
    counts = verdict_counts(judged)
    assert sum(counts.values()) == 2
    assert "ok" not in counts


def share_of_allowed(folder: Path, in_flight: int, delay_s: float = 0.2) -> float:
    """How near judging 1,000 pairs comes to `in_flight` calls at any time, with the server in another process."""
    command = [sys.executable, Path(__file__).parents[1] / "servers.py", str(delay_s), verdict(4).text]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        judge, given = Judge(f"openai:m@{url}", folder / "calls.sqlite", max_in_flight=in_flight), rows(334)[:1000]
        start = time.monotonic()
        judged = judge_rows(judge, given, FEEDBACK)
        seconds = time.monotonic() - start
    finally:
        server.kill()
        server.wait()
    assert verdict_counts(judged) == {"ok": 2000}
    return 2000 * delay_s / in_flight / seconds


@pytest.mark.slow
def test_a_thousand_pairs_keep_nine_tenths_of_the_allowed_calls_in_flight(tmp_path):
    found = max(share_of_allowed(tmp_path / str(n), in_flight=32) for n in range(2))
    print({"of the allowed concurrency": found})
    assert found >= 0.9
