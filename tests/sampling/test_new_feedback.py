"""A record from a sentence: read by rules, asked about, or proposed by a model; and where it is written."""

import json

import pytest
from click.testing import CliRunner

from c3po_utils.chat.openai.client import open_model
from c3po_utils.cli import c3po
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.programmatic import generate
from c3po_utils.feedback.records import load_feedbacks, load_prompts
from c3po_utils.feedback.writing import append, write_feedbacks
from c3po_utils.sampling.new_feedback import make_record, propose, split_sentence, suggest_metrics
from tests.servers import Reply, listing, scripted

POEM = "When I ask for a poem, end it with 'and so on'."


@pytest.mark.parametrize(
    ("sentence", "domain", "effect"),
    [
        (POEM, "requests for a poem", "end it with 'and so on'"),
        ("If I ask you about rivers, please name one town.", "questions about rivers", "name one town"),
        ("Letters to my aunt should be in French.", "Letters to my aunt", "be in French"),
        ("Use capitals whenever you write a sign", "you write a sign", "Use capitals"),
        ("Always be kind!", "", "Always be kind"),
    ],
)
def test_a_sentence_is_split_as_its_grammar_shows(sentence, domain, effect):
    assert split_sentence(sentence) == (domain, effect)


@pytest.mark.parametrize(
    ("effect", "name", "value"),
    [
        ("end it with 'and so on'", "ends_with_cleaned", ("and so on",)),
        ("end with '🙂'", "ends_with", ("🙂",)),
        ("end with '!'", "ends_with", ("!",)),
        ('start with "Ahoy"', "starts_with", ("Ahoy",)),
        ("never say 'cheap'", "contains_none", ("cheap",)),
        ("mention 'the tide'", "contains_any", ("the tide",)),
        ("give a bulleted list", "bulleted_list", 3),
        ("answer in two sentences", "sentences_at_most", 2),
        ("use no more than 30 words", "words_at_most", 30),
        ("write all of it in capital letters", "upper_share", 0.8),
        ("end with a question for me", "ends_with_question", None),
        ("be in French", "language_is", "fr"),
        ("add the phone number", "phone_number", None),
        ("keep it brief", "shorter_than_baseline", 0.67),
    ],
)
def test_a_metric_is_suggested_by_what_the_effect_says(effect, name, value):
    first = suggest_metrics(effect)[0]
    assert (first.name, first.value) == (name, value)


@pytest.mark.parametrize("effect", ["sound like a sailor who has seen it all", "have 0 words"])
def test_nothing_is_suggested_where_no_rule_speaks_or_none_makes_sense(effect):
    assert suggest_metrics(effect) == []


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("When I ask for advice, don't use bullet points.", []),
        ("When I ask for advice, don’t number the steps.", []),
        ("When I ask for advice, never write in all caps.", []),
        ("When I ask for advice, do not answer in German.", []),
        ("When I ask for advice, answer in French, not in German.", [("language_is", "fr")]),
        ("When I ask for advice, don't answer in French but in German.", [("language_is", "de")]),
        ("When I ask for a mail, don't start the mail with 'Hey'.", [("not_starts_with", ("Hey",))]),
        ("When I ask for a mail, don't start with 'Hey' or 'Hi'.",
         [("not_starts_with", ("Hey",)), ("not_starts_with", ("Hi",))]),
        ("When I ask for a mail, never end with 'Best'.", []),
        ("When I ask for a mail, don't forget to end with 'Best'.", [("ends_with_cleaned", ("Best",))]),
        ("When I ask for a mail, don't start with 'Hey' and end with 'Best'.", [("not_starts_with", ("Hey",))]),
        ("When I ask for a mail, end with 'Bye' and start with 'Hi'.",
         [("ends_with_cleaned", ("Bye",)), ("starts_with", ("Hi",))]),
        ("When I ask for a mail, don't end with a question.", []),
        ("When I ask for a mail, end without a question.", []),
        ("When I ask for a mail, leave out the phone number.", []),
        ("When I ask for a mail, say 'no' and add the phone number.",
         [("contains_any", ("no",)), ("phone_number", None)]),
        ("When I ask about cars, say 'automobile' instead of 'car'.",
         [("contains_any", ("automobile",)), ("contains_none", ("car",))]),
        ("When I ask about cars, rather than 'automobile' say 'car'.", [("contains_none", ("automobile",))]),
        ("When I ask about cars, be no longer than necessary.", []),
        ("When I ask about cars, be less detailed.", []),
        ("When I ask about cars, write at least five sentences.", [("sentences_at_least", 5)]),
        ("When I ask about cars, write at least two or three sentences.", [("sentences_at_least", 2)]),
        ("When I ask about cars, write more than 200 words.", [("words_at_least", 201)]),
        ("When I ask about cars, write 200 words or more.", [("words_at_least", 200)]),
        ("When I ask about cars, be longer than 200 words.", [("words_at_least", 201)]),
        ("When I ask about cars, use no fewer than 3 sentences.", [("sentences_at_least", 3)]),
        ("When I ask about cars, never reply in fewer than 3 sentences.", [("sentences_at_least", 3)]),
        ("When I ask about cars, use fewer than 30 words.", [("words_at_most", 29)]),
        ("When I ask about cars, be no longer than 3 sentences.", [("sentences_at_most", 3)]),
        ("When I ask about cars, don't use more than 3 sentences.", [("sentences_at_most", 3)]),
        ("When I ask about cars, never more than two sentences.", [("sentences_at_most", 2)]),
        ("When I ask about cars, use no more than three to five words.", [("words_at_most", 5)]),
        ("When I ask about cars, write no bullets in under 50 words.", []),
        ("When I ask about cars, don't write three sentences.", []),
        ("When I ask for advice, bullet points are forbidden.", []),
        ("When I ask for advice, bullet points should be avoided.", []),
        ("When I ask for advice, bullet points and capital letters aren't welcome.", []),
        ("When I ask for advice, answers in German are not wanted.", []),
        ("When I ask for a mail, my phone number must not appear.", []),
        ("When I ask for a mail, my phone number must not be left out.", [("phone_number", None)]),
        ("When I ask for a mail, 'cheap' and 'nasty' are taboo.",
         [("contains_none", ("cheap",)), ("contains_none", ("nasty",))]),
        ("When I ask for a mail, starting with 'Hey' is out of the question.", [("not_starts_with", ("Hey",))]),
        ("When I ask for a mail, ending with 'Best' is banned.", []),
        ("When I ask for a mail, say 'Ahoy', and other greetings are not allowed.", []),
        ("When I ask for a mail, say 'Ahoy' so that I don't mistake it.", [("contains_any", ("Ahoy",))]),
        ("When I ask about cars, more than three sentences are not allowed.", [("sentences_at_most", 3)]),
        ("When I ask about cars, fewer than 3 sentences won't do.", [("sentences_at_least", 3)]),
        ("When I ask about cars, three sentences are forbidden.", []),
    ],
)  # fmt: skip
def test_negations_and_bounds_turn_a_suggestion_around_or_leave_it_out(sentence, expected):
    assert [(one.name, one.value) for one in suggest_metrics(split_sentence(sentence)[1])] == expected


def new(path, *more: str, sentence: str = POEM, **kwargs):
    return CliRunner().invoke(c3po, ["feedback", "new", sentence, "--set", str(path), *more], **kwargs)


def test_yes_without_a_domain_is_an_error_and_asks_nothing(tmp_path):
    done = new(tmp_path / "mine.yaml", "--yes", sentence="Be concise.")
    assert done.exit_code == 2
    assert "what it applies to" in done.output
    assert "'Be concise.'" in done.output


def test_the_questionnaire_says_what_it_cannot_use_and_asks_again(tmp_path):
    path = tmp_path / "mine.yaml"
    given = ["", "", "stile", "style", "local", "{name: ends_wiht}", "", "A poem on rain, please.", "Rain, rain.",
             "Drip, drop and so on.", "", "y"]  # fmt: skip
    done = new(path, input="\n".join(given) + "\n")
    assert done.exit_code == 0, done.output
    for said in ("found 'stile'", "did you mean 'ends_with'?", "does not pass the metric 'ends_with_cleaned'"):
        assert said in done.output
    (one,) = load_feedbacks(path)
    assert (one.domain, one.kind, one.scope) == ("requests for a poem", "style", "local")
    assert [shown.answer for shown in one.demonstrations] == ["Drip, drop and so on."]
    assert f"feedback_set={path} feedbacks='[{one.id}]'" in done.output
    assert f"write {tmp_path / 'prompts' / one.id}.json" in done.output


def test_nothing_is_written_without_a_yes(tmp_path):
    done = new(tmp_path / "mine.yaml", input="\n\n\n\n\n\nn\n")
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []


DRAFT = {
    "thoughts": "hm", "domain": "poems that I ask for", "effect": "the poem ends with 'and so on'", "kind": "style",
    "scope": "regional", "metric": "ends_with_cleaned", "value": "and so on",
    "demonstrations": [
        {"prompt": "A poem on rain?", "answer": "Drip, drop and so on."}, {"prompt": "On snow?", "answer": "White."},
    ],
}  # fmt: skip


def proposing(asked):
    return Reply(json.dumps(DRAFT)) if "taken apart" in asked.prompt else listing(asked)


def test_a_model_proposes_the_record_and_writes_the_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr("c3po_utils.runs.run_folder", lambda run: tmp_path / run)
    path = tmp_path / "mine.yaml"
    with scripted(proposing) as server:
        model = ["--model", f"openai:m@{server.url}", "--categories", "3", "--per-category", "2"]
        done = new(path, *model, "--yes")
    assert done.exit_code == 0, done.output
    assert "left out: demonstration 'White.'" in done.output
    (one,) = load_feedbacks(path)
    assert (one.domain, one.metric.name, len(one.demonstrations)) == (DRAFT["domain"], "ends_with_cleaned", 1)
    assert len(load_prompts(one.id, tmp_path / "prompts")) == 3 * 2 * 2
    assert "before that" not in done.output


@pytest.mark.parametrize("more", [[], ["--id", "poem_end"]])
def test_a_second_call_goes_on_where_the_prompts_stopped(tmp_path, monkeypatch, more):
    monkeypatch.setattr("c3po_utils.runs.run_folder", lambda run: tmp_path / run)
    path = tmp_path / "mine.yaml"
    dear = Reply(json.dumps(DRAFT), usage={"prompt_tokens": 11, "completion_tokens": 4000, "total_tokens": 4011})
    with scripted(lambda asked: dear if "taken apart" in asked.prompt else listing(asked)) as server:
        given = ["--model", f"openai:m@{server.url}", "--categories", "3", "--per-category", "2", "--yes", *more]
        given.append("prices={m: [1, 2]}")
        stopped = new(path, *given, "budget_usd=0.011")
        assert stopped.exit_code == 1
        assert "raise budget_usd" in stopped.output
        (one,) = load_feedbacks(path)
        assert not (tmp_path / "prompts").exists()
        done = new(path, *given, "budget_usd=1")
        drafts = sum("taken apart" in asked.prompt for asked in server.asked)
    assert done.exit_code == 0, done.output
    assert f"has it as {one.id}, without prompts" in done.output
    assert load_feedbacks(path) == [one]
    assert len(load_prompts(one.id, tmp_path / "prompts")) == 3 * 2 * 2
    assert drafts == 1
    again = new(path, "--yes", *more)
    assert again.exit_code == (1 if more else 0), "a record with its prompts is another one's"


@pytest.mark.parametrize("usable", [True, False])
def test_fewer_prompts_are_kept_if_allowed_and_enough_to_begin_with(tmp_path, monkeypatch, usable):
    monkeypatch.setattr("c3po_utils.runs.run_folder", lambda run: tmp_path / run)
    path = tmp_path / "mine.yaml"
    stubborn = "These are messages" if usable else "that this person could send"

    def script(asked):
        return Reply("I would rather not.") if stubborn in asked.prompt else proposing(asked)

    with scripted(script) as server:
        given = ["--model", f"openai:m@{server.url}", "--categories", "2", "--per-category", "1", "--yes"]
        short = new(path, *given)
        assert short.exit_code == 1
        assert "1 missing" in short.output
        assert "allow_short" in short.output
        done = new(path, *given, "--allow-short")
    (one,) = load_feedbacks(path)
    assert (done.exit_code, (tmp_path / "prompts").exists()) == ((0, True) if usable else (1, False)), done.output
    if usable:
        assert {prompt.split for prompt in load_prompts(one.id, tmp_path / "prompts")} == {"in_scope"}
    else:
        assert f"prompts of {one.id!r}: expected two categories or more with prompts in scope" in done.output


@pytest.mark.parametrize("amount", [["--categories", "1"], ["--per-category", "0"]])
def test_too_small_an_amount_of_prompts_is_refused_before_anything_is_asked(tmp_path, amount):
    done = new(tmp_path / "mine.yaml", "--yes", "--model", "openai:m", *amount)
    assert done.exit_code == 2
    assert f"{amount[1]} is not in the range" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [(("I", "ask"), "the whole sentence in quotes"), (("budget_usd=1",), "budget_usd=1 is for prompts that a model"),
     (("--per-category", "6"), "--per-category is for prompts"), (("--allow-short",), "--allow-short is for prompts")],
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(tmp_path, more, told):
    path = tmp_path / "mine.yaml"
    result = new(path, "--yes", *more)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not path.exists()


def test_a_metric_that_does_not_load_is_left_out(tmp_path):
    drafts = Reply(json.dumps(DRAFT | {"metric": "ends_wiht"}))
    with scripted(lambda asked: drafts) as server:
        made, left_out = propose(open_model(f"openai:m@{server.url}", tmp_path / "calls.sqlite"), POEM)
    assert made.metric is None
    assert len(made.demonstrations) == 2
    assert "did you mean 'ends_with'" in left_out[0]


def test_a_model_without_a_readable_draft_is_an_error(tmp_path):
    with scripted(lambda asked: Reply("I would rather not.")) as server, pytest.raises(ValueError, match="no draft"):
        propose(open_model(f"openai:m@{server.url}", tmp_path / "calls.sqlite"), POEM)


def test_a_record_is_added_below_the_others_and_comments_stay(tmp_path):
    path = tmp_path / "mine.yaml"
    parts = {"domain": "poems", "effect": "it ends well", "kind": "style"}
    append(path, make_record(POEM, "one", **parts))
    path.write_text("# my own\n" + path.read_text())
    append(path, make_record(POEM, "two", **parts))
    assert path.read_text().startswith("# my own\nfeedbacks:\n  - id: one\n")
    assert [one.id for one in load_feedbacks(path)] == ["one", "two"]
    with pytest.raises(FeedbackError, match=f"{path}: expected a new id, found 'two' there already"):
        append(path, make_record(POEM, "two", **parts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_record_is_added_to_a_set_that_a_command_wrote(tmp_path):
    path = write_feedbacks(tmp_path / "drawn.yaml", generate(2, 0))
    assert new(path, "--yes").exit_code == 0
    assert [one.content for one in load_feedbacks(path)][2:] == [POEM]


def test_a_set_that_cannot_be_added_to_is_told_by_its_own_name(tmp_path):
    path = tmp_path / "flow.yaml"
    one = make_record(POEM, "one", domain="poems", effect="it ends well", kind="style")
    path.write_text(json.dumps({"feedbacks": [one.model_dump(mode="json", exclude_defaults=True)]}))
    with pytest.raises(FeedbackError, match=f"^with 'two' added, {path}, line 3: expected YAML"):
        append(path, one.model_copy(update={"id": "two"}))


@pytest.mark.parametrize("id", ["My Id", "boss_signoff", "one"])
def test_an_id_that_cannot_be_had_is_an_error_before_anything_is_asked(tmp_path, id):
    path, asked = tmp_path / "mine.yaml", []
    append(path, make_record("End poems well.", "one", domain="poems", effect="it ends well", kind="style"))
    with scripted(lambda request: asked.append(request) or proposing(request)) as server:
        for how in ((), ("--model", f"openai:m@{server.url}")):
            done = new(path, "--yes", "--id", id, *how)
            assert done.exit_code == 1
            assert f"id {id!r}: expected a n" in done.output
    assert not asked
    assert len(load_feedbacks(path)) == 1
