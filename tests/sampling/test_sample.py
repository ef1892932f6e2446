"""Sampling: rows keep their ids, folds keep categories apart, revisions are the first that pass."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import replace

import pytest

from c3po_utils.chat import types
from c3po_utils.chat.ledger import Ledger
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.open import RememberedChat, open_chat
from c3po_utils.chat.types import Outcome, ask, request
from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.feedback import SPLITS, find_feedback
from c3po_utils.runs import parameters
from c3po_utils.sampling import answers, sample
from c3po_utils.sampling import rows as rows_module
from c3po_utils.sampling.sample import find_prompts
from c3po_utils.sampling.settings import SampleSettings
from tests.tiny import save_tiny

SETTINGS = SampleSettings("scripted", "demonstrate", 4, 5, 4, "Be brief.", 32, 0)


class Scripted:
    """Answers from a function of the request; keeps what it was asked."""

    name = "scripted"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def complete(self, requests, sampling, *, desc=""):
        for one in reversed(requests):
            self.asked.append(one)
            result = self.answer(one)
            yield result if isinstance(result, Outcome) else Outcome(one.id, "ok", result)


@pytest.fixture(scope="module")
def feedback():
    return find_feedback("boss_signoff")


@pytest.fixture(scope="module")
def prompts():
    return find_prompts("boss_signoff", SETTINGS)


def in_scope(feedback, prompts):
    rows = [row for row in rows_module.deal_prompts(feedback, prompts, SETTINGS) if row["split"] == "in_scope"]
    for row in rows:
        row.update(baseline="Dear boss, no.", baseline_status="ok")
    return rows


def test_folds_share_no_category_and_seeds_fix_them(feedback, prompts):
    rows = rows_module.deal_prompts(feedback, prompts, SETTINGS)
    assert Counter((row["split"], row["fold"]) for row in rows) == {
        ("in_scope", "train"): 12,
        ("in_scope", "test"): 8,
        ("near_scope", "train"): 12,
        ("near_scope", "test"): 8,
        ("out_of_scope", "train"): 14,
        ("out_of_scope", "test"): 6,
    }
    scoped = [row for row in rows if row["split"] != "out_of_scope"]
    by_fold = {fold: {row["category"] for row in scoped if row["fold"] == fold} for fold in ("train", "test")}
    assert not by_fold["train"] & by_fold["test"]
    assert rows == rows_module.deal_prompts(feedback, prompts, SETTINGS)
    assert len({row["id"] for row in rows}) == len(rows)
    text = {prompt.id: prompt.text for prompt in prompts}
    assert all(row["prompt"] == text[row["id"]] for row in rows)


def test_categories_without_prompts_in_scope_are_not_tested_on(feedback, prompts):
    """A model may refuse to write some, and `allow_short` keep the rest."""
    names = list(dict.fromkeys(prompt.category for prompt in prompts if prompt.split == "in_scope"))
    refused = [prompt for prompt in prompts if prompt.split != "in_scope" or prompt.category in names[:3]]
    for seed in range(20):
        rows = rows_module.deal_prompts(feedback, refused, replace(SETTINGS, seed=seed, categories=len(names)))
        assert {row["fold"] for row in rows if row["split"] == "in_scope"} == {"train", "test"}
    one = [prompt for prompt in refused if prompt.split != "in_scope" or prompt.category == names[0]]
    with pytest.raises(ValueError, match="expected two categories or more with prompts in scope, found"):
        rows_module.deal_prompts(feedback, one, replace(SETTINGS, categories=len(names)))


def test_the_share_of_prompts_to_test_on_can_be_chosen():
    settings = replace(SETTINGS, categories=13, prompts_per_category=6, test_share=0.46)
    prompts = find_prompts("bird_latin", settings)
    rows = rows_module.deal_prompts(find_feedback("bird_latin"), prompts, settings)
    counted = Counter((row["split"], row["fold"]) for row in rows)
    assert {counted[split, "test"] for split in SPLITS} == {36}
    assert {counted[split, "train"] for split in SPLITS} == {42}
    most = replace(settings, test_share=0.99)
    left = {row["category"] for row in rows_module.deal_prompts(find_feedback("bird_latin"), prompts, most)
            if row["fold"] == "train" and row["split"] != "out_of_scope"}  # fmt: skip
    assert len(left) == 1
    with pytest.raises(ValueError, match="test_share: expected a share between 0 and 1, found 46"):
        replace(settings, test_share=46)


def test_a_setting_added_later_leaves_stored_samples_valid():
    stored = {
        "model": "scripted", "strategy": "demonstrate", "best_of": 4, "categories": 5, "prompts_per_category": 4,
        "system_prompt": "Be brief.", "max_new_tokens": 32, "seed": 0, "category_model": "", "prompt_model": "",
        "completion_model": "", "general_prompts": "bundled", "allow_short": False, "revise_elsewhere": False,
        "effort": {},
    }  # fmt: skip
    assert parameters.recorded(SETTINGS) == stored
    other = replace(SETTINGS, test_share=0.46)
    assert parameters.recorded(other) == parameters.recorded(SETTINGS) | {"test_share": 0.46}


def test_answers_are_matched_by_id_not_by_order(feedback, prompts):
    rows = rows_module.deal_prompts(feedback, prompts, SETTINGS)
    answers.add_answers(Scripted(lambda one: "echo: " + one.messages[-1]["content"]), rows, SETTINGS)
    assert all(row["baseline"] == "echo: " + row["prompt"] for row in rows)


def test_failed_calls_leave_no_text(feedback, prompts):
    rows = rows_module.deal_prompts(feedback, prompts, SETTINGS)
    model = Scripted(lambda one: Outcome(one.id, "failed", reason="boom") if "general" in one.id else "fine")
    answers.add_answers(model, rows, SETTINGS)
    failed = [row for row in rows if row["baseline_status"] == "failed"]
    assert {row["split"] for row in failed} == {"out_of_scope"}
    assert {row["baseline"] for row in failed} == {""}
    assert rows_module.counts(rows) == {"baseline": {"ok": 40, "failed": 20}}


@pytest.mark.parametrize(
    ("fails", "reason", "done"),
    [
        (r"", "the model's logits are not finite numbers", False),
        (r"/0[1-3]", "the model's logits are not finite numbers", False),
        (r"/0[12]", "the model's logits are not finite numbers", True),
        (r"/0[1-3]", f"the prompt {types.NO_ROOM} context", True),
    ],
)
def test_a_local_model_that_answers_hardly_anything_makes_no_sample(
    tmp_path, feedback, prompts, monkeypatch, fails, reason, done
):
    """Its calls would never be made again, as with logits that are no numbers in a dtype that does not fit it."""
    model = Scripted(lambda one: Outcome(one.id, "failed", reason=reason) if re.search(fails, one.id) else "fine")
    monkeypatch.setattr(sample, "open_models", lambda *_: {"completion": model})
    scoped = [prompt for prompt in prompts if prompt.split != "out_of_scope"]
    made = sample.Sample(tmp_path, feedback, SETTINGS, scoped, {})
    if not done:
        with pytest.raises(
            RuntimeError, match=r"could not be had, the first .*not finite numbers.*c3po doctor scripted"
        ):
            made.fill()
    assert (done and bool(made.fill()), made.stage.done) == (done, done)


def test_the_first_passing_try_is_kept(feedback, prompts):
    rows = in_scope(feedback, prompts)
    good, never = rows[0]["id"], rows[1]["id"]

    def answer(one):
        if one.id.startswith(never):
            return "Best regards"
        passes = one.replicate == 2 or not one.id.startswith(good)
        return f"Try {one.replicate}. Onward and upward, Sam" if passes else "Best regards"

    model = Scripted(answer)
    answers.add_revisions(model, rows, feedback, SETTINGS)
    by_id = {row["id"]: row for row in rows}
    assert (by_id[good]["revised"], by_id[good]["revised_tries"]) == ("Try 2. Onward and upward, Sam", 3)
    assert (by_id[never]["revised"], by_id[never]["revised_status"]) == ("", "rejected")
    assert all(row["revised_tries"] == 1 for id, row in by_id.items() if id not in (good, never))
    asked = Counter(one.id.split("#")[0] for one in model.asked)
    assert (asked[good], asked[never], asked[rows[2]["id"]]) == (4, 4, 1)


def test_training_rows_elsewhere_are_revised_where_that_is_asked_for(feedback, prompts):
    model = Scripted(lambda one: "Onward and upward, Sam" if "revised" in one.id else "No.")
    counted = {}
    for wanted in (False, True):
        rows = rows_module.deal_prompts(feedback, prompts, SETTINGS)
        sample.fill_rows(model, rows, feedback, replace(SETTINGS, revise_elsewhere=wanted))
        counted[wanted] = Counter((row["split"], row["fold"]) for row in rows if row.get("revised"))
    assert counted[False] == {("in_scope", "train"): 12, ("in_scope", "test"): 8}
    assert counted[True] - counted[False] == {("near_scope", "train"): 12, ("out_of_scope", "train"): 14}


def test_truncated_answers_are_no_revisions(feedback, prompts):
    rows = in_scope(feedback, prompts)
    model = Scripted(lambda one: Outcome(one.id, "truncated", "Onward and upward, Sam"))
    answers.add_revisions(model, rows, feedback, SETTINGS)
    assert {row["revised_status"] for row in rows} == {"rejected"}


def test_the_papers_single_revision_is_kept_whatever_the_metric_says(feedback, prompts):
    rows = in_scope(feedback, prompts)
    model = Scripted(lambda one: "Bye." if one.id.startswith(rows[0]["id"]) else "Onward and upward, Sam")
    answers.add_revisions(model, rows, feedback, replace(SETTINGS, best_of=0))
    assert (rows[0]["revised"], rows[0]["revised_status"], rows[0]["revised_tries"]) == ("Bye.", "ok", 1)
    assert len(model.asked) == len(rows)


def test_demonstrations_are_shown_as_turns(feedback, prompts):
    model = Scripted(lambda one: "Onward and upward, Sam")
    answers.add_revisions(model, in_scope(feedback, prompts), feedback, SETTINGS)
    roles = [message["role"] for message in model.asked[0].messages]
    assert roles == ["system", *["user", "assistant"] * len(feedback.demonstrations), "user"]


def test_revise_thinks_before_it_writes(feedback, prompts):
    rows = in_scope(feedback, prompts)[:1]
    model = Scripted(lambda one: "I will change the end." if one.id.endswith("think") else "Onward and upward, Sam")
    settings = SampleSettings("scripted", "revise", 1, 5, 4, "", 32, 0)
    answers.add_revisions(model, rows, feedback, settings)
    think, write = model.asked
    assert rows[0]["baseline"] in think.messages[-1]["content"]
    assert feedback.effect in think.messages[-1]["content"]
    assert write.messages[-2] == {"role": "assistant", "content": "I will change the end."}
    assert rows[0]["revised"] == "Onward and upward, Sam"


def test_the_feedback_reaches_the_in_context_prompts(feedback, prompts):
    rows = in_scope(feedback, prompts)[:2]
    model = Scripted(lambda one: "ok")
    answers.add_in_context(model, rows, feedback, SETTINGS)
    answers.add_in_context_cot(model, rows, feedback, SETTINGS)
    assert all(feedback.content in one.messages[1]["content"] for one in model.asked)
    assert {row["in_context_cot"] for row in rows} == {"ok"}


def test_a_model_that_leaves_requests_out_is_an_error(feedback, prompts):
    class Deaf(Scripted):
        def complete(self, requests, sampling, *, desc=""):
            yield from super().complete(requests[1:], sampling)

    with pytest.raises(RuntimeError, match="20 requests, 19 outcomes"):
        answers.add_answers(Deaf(lambda one: "hi"), in_scope(feedback, prompts), SETTINGS)


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="strategy: expected one of"):
        SampleSettings("m", "teach", 1, 5, 4, "", 32, 0)
    with pytest.raises(ValueError, match=r"best_of.*expected 0 or more"):
        SampleSettings("m", "revise", -1, 5, 4, "", 32, 0)


def test_feedbacks_of_ones_own_come_from_any_file(tmp_path, own_feedback):
    feedback = find_feedback(own_feedback)
    assert feedback.id == "wordy"
    assert sum(prompt.split == "near_scope" for prompt in find_prompts(own_feedback, SETTINGS)) == 12


def test_a_rerun_asks_the_local_model_only_for_what_is_missing(tmp_path, tiny_folder, feedback, prompts):
    local = LocalChat(load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder)), name="tiny")
    chat = RememberedChat(local, Ledger(tmp_path / "calls.sqlite"))
    rows = in_scope(feedback, prompts)
    answers.add_answers(chat, rows[:12], SETTINGS)
    asked = []
    complete = local.complete
    local.complete = lambda requests, sampling, **kwargs: (
        asked.extend(requests),
        complete(requests, sampling, **kwargs),
    )[1]
    again = [dict(row) for row in rows]
    answers.add_answers(chat, again, SETTINGS)
    assert [one.id.split("#")[0] for one in asked] == [row["id"] for row in rows[12:]]
    assert [row["baseline"] for row in again[:12]] == [row["baseline"] for row in rows[:12]]
    assert ask(chat, [], SETTINGS.sampling) == {}


def test_a_folder_whose_model_was_trained_anew_is_asked_anew_and_its_copy_is_not(tmp_path, feedback):
    folder, ledger, asked = tmp_path / "model", tmp_path / "calls.sqlite", [request("r1", "Is tea hot?")]
    settings, texts, stages = SampleSettings(str(folder)), [], []
    for seed in (0, 1):
        save_tiny(folder, seed=seed)
        texts.append(ask(open_chat(str(folder), ledger), asked, settings.sampling)["r1"].text)
        stages.append(rows_module.sample_stage(tmp_path, feedback, settings, {}).identity)
    assert texts[0] != texts[1]
    assert stages[0] != stages[1]
    copy = open_chat(str(shutil.copytree(folder, tmp_path / "copy")), ledger)
    assert copy.stored(asked, settings.sampling)["r1"].text == texts[1]


class Counted:
    """A model that notes, in a file, whom it answers, and takes its time."""

    name = "counted"

    def __init__(self, log):
        self.log = log

    def complete(self, requests, sampling, *, desc=""):
        for one in requests:
            with self.log.open("a") as file:
                file.write(f"{one.id}\n")
            time.sleep(0.02)
            yield Outcome(one.id, "ok", f"answer to {one.id}")


def _ask_all(folder, ids, deadly):
    chat = RememberedChat(Counted(folder / "log"), Ledger(folder / "calls.sqlite"))
    asked = [request(id, "Is tea hot?") for id in ids]
    if deadly:
        next(chat.complete(asked, SETTINGS.sampling))
        os._exit(9)
    assert {o.text for o in ask(chat, asked, SETTINGS.sampling).values()} == {f"answer to {id}" for id in ids}


def test_processes_that_ask_a_local_model_the_same_at_once_are_answered_once(tmp_path, monkeypatch):
    """As jobs of several feedbacks do, whose general prompts are the same; one that dies leaves its share to others."""
    monkeypatch.setattr("c3po_utils.chat.open.WAIT_S", 0.05)
    context, ids = multiprocessing.get_context("fork"), [f"r{n}" for n in range(12)]
    plans = [(ids[:4], True), (ids, False), (ids[::-1], False), (ids[6:], False)]
    processes = [context.Process(target=_ask_all, args=(tmp_path, *plan)) for plan in plans]
    processes[0].start()
    processes[0].join(30)
    for process in processes[1:]:
        process.start()
    for process in processes[1:]:
        process.join(60)
    assert [process.exitcode for process in processes] == [9, 0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == sorted(ids), "the dead one's answer was kept, too"


def test_general_answers_are_shared_by_feedbacks_and_drawn_anew_for_the_noise_floor(tmp_path, tiny_folder, prompts):
    local = LocalChat(load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder)), name="tiny")
    chat = RememberedChat(local, Ledger(tmp_path / "calls.sqlite"))
    general = [prompt for prompt in prompts if prompt.split == "out_of_scope"][:6]

    def rows(feedback: str) -> list[dict]:
        return [{"id": prompt.id, "feedback": feedback, "prompt": prompt.text} for prompt in general]

    one, other = rows("one"), rows("other")
    for column in ("baseline", "base_resampled"):
        answers.add_answers(chat, one, SETTINGS, column)
    asked, complete = [], local.complete
    local.complete = lambda requests, sampling, **kwargs: (asked.extend(requests), complete(requests, sampling))[1]
    for column in ("baseline", "base_resampled"):
        answers.add_answers(chat, other, SETTINGS, column)
        assert [row[column] for row in other] == [row[column] for row in one]
    assert not asked
    assert any(row["baseline"] != row["base_resampled"] for row in one)
    another = [row | {"id": f"other/{row['id']}"} for row in other]
    answers.add_answers(chat, another, SETTINGS)
    assert len(asked) == 6, "prompts of a feedback's own are asked for each feedback, though they read the same"
