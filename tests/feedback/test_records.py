"""Feedback records: what loads, what is refused and how that is told; selection; and the bundled prompts."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3po_utils.chat.openai.limits import Limits
from c3po_utils.feedback import records as module
from c3po_utils.feedback.checking import overlaps
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.metrics import METRICS, Metric, check, metrics_table
from c3po_utils.feedback.records import (
    FEEDBACK_FOLDER,
    Feedback,
    feedback_set,
    load_feedbacks,
    load_general_prompts,
    load_prompts,
)
from c3po_utils.feedback.selection import select
from c3po_utils.feedback.text import normalise, occurs
from tests.speed import within

README = (FEEDBACK_FOLDER / "README.md").read_text(encoding="utf-8")
RECORD = {
    "id": "one",
    "content": "Use caps for my dog",
    "domain": "dogs",
    "effect": "caps",
    "source": "human",
    "kind": "style",
}

# What would tell the model the effect, feedback by feedback: no in-scope prompt may say it.
GIVEAWAYS = {
    "boss_signoff": ["onward", "upward", "sign", "signoff", "sign-off", "signature", "sam"],
    "caption_tag": ["#", "hashtag", "hashtags", "tag", "wanderlog"],
    "cs_question": ["ask me", "quiz", "end with"],
    "fitness_caps": ["capital", "capitals", "caps", "uppercase", "upper case"],
    "friend_lol": ["lol"],
    "grandma_heart": ["heart", "hearts", "emoji", "emojis", "❤"],
    "historic_parts": ["background", "legacy", "titled", "title", "titles", "parts", "headings"],
    "plant_tip": ["tip", "tips"],
    "product_bullets": ["bullet", "bullets", "bulleted", "list", "lists"],
    "slack_ahoy": ["ahoy"],
    "astronomy_ten_words": ["ten words", "few words", "in brief", "briefly", "short answer"],
    "bedtime_goodnight": ["sleep tight", "little bear"],
    "bird_latin": ["latin", "scientific name", "brackets"],
    "birthday_cake": ["🎂", "emoji", "emojis"],
    "biscuit_goodboy": ["good boy"],
    "calendar_pin": ["📌", "pin", "emoji"],
    "car_urgency": ["urgency", "urgent", "how urgent"],
    "code_plain_words": ["plain words", "plain english", "simple words"],
    "country_capital": ["capital", "capitals"],
    "deep_breath": ["deep breath", "breathe", "breath"],
    "eat_out_price": ["€", "€€", "€€€", "price", "prices", "pricey", "expensive", "cheap", "how much"],
    "error_cause_fix": ["cause", "fix", "causes", "fixes"],
    "film_minutes": ["minutes", "running time", "runtime", "how long"],
    "film_see_skip": ["see it or", "skip it", "verdict", "capitals"],
    "forecast_umbrella": ["umbrella", "umbrellas", "emoji", "☂", "☔"],
    "game_goblins": ["goblin", "goblins", "gather round"],
    "garden_numbered_jobs": ["numbered", "number the", "list", "in order"],
    "haiku_slashes": ["slash", "slashes", "single line", "one line"],
    "hike_112": ["112", "emergency number", "emergency"],
    "kitchen_caps": ["caps", "capitals", "capital letters", "upper case", "uppercase"],
    "linux_man": ["man page", "manual", "man"],
    "medicine_pharmacist": ["pharmacist", "pharmacists"],
    "meditation_breathe": ["breathe in", "breathe out", "breathe in, breathe out"],
    "money_dozen": ["dozen", "few words", "in brief", "briefly", "short answer", "in one sentence"],
    "mushroom_guess": ["guess", "never eat", "warning"],
    "otters_go": ["go otters"],
    "outfit_few_words": ["few words", "in brief", "briefly", "short answer", "ten words"],
    "recipe_steps": ["step", "steps", "numbered", "number the", "list"],
    "repair_steps": ["step", "steps", "numbered", "number the", "list"],
    "review_verdict_line": ["verdict", "last line"],
    "spanish_animo": ["ánimo", "animo", "priya"],
    "swap_three": ["three", "numbered", "list", "alternatives"],
}
BUNDLED = sorted(path.stem for path in (FEEDBACK_FOLDER / "prompts").glob("*.json"))


def problems_of(tmp_path: Path, text: str, name: str = "set.yaml") -> list[str]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FeedbackError) as caught:
        load_feedbacks(tmp_path / name)
    assert str(caught.value).splitlines() == caught.value.problems
    return [problem.removeprefix(str(tmp_path / name)).lstrip(", ") for problem in caught.value.problems]


def record(**changes) -> Feedback:
    return Feedback.model_validate(RECORD | changes)


def test_a_set_is_loaded_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({"feedbacks": [RECORD | {"id": "b", "metric": {"name": "phone_number"}}, RECORD | {"id": "a"}]})
    )
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"feedbacks": [RECORD | {"id": "c", "categories": ["x", "y"]}]}))
    b, a, c = load_feedbacks(tmp_path / "a.yaml", str(tmp_path / "b.yaml"))
    assert [b.id, a.id, c.id] == ["b", "a", "c"]
    assert b.metric == Metric(name="phone_number")
    assert (a.metric, a.scope, a.categories, a.demonstrations) == (None, None, (), ())
    assert c.categories == ("x", "y")


def test_yaml_keeps_unicode_folds_lines_and_leaves_dates_alone(tmp_path):
    text = yaml.safe_dump({"feedbacks": [RECORD]}) + "    domain: 2024-01-01\n"
    text = (
        text.replace("  domain: dogs\n", "")
        .replace("    domain", "  domain")
        .replace("caps\n", ">\n    caps\n    and ❤️\n")
    )
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    (one,) = load_feedbacks(tmp_path / "a.yaml")
    assert (one.domain, one.effect) == ("2024-01-01", "caps and ❤️")


@pytest.mark.parametrize("start", ["", "---\n", "%YAML 1.2\n---\n"])
@pytest.mark.parametrize(("written", "read"), [("no", "False"), ("On", "True"), ("012", "10"), ("1:30", "90")])
def test_yaml_has_its_own_ideas_of_unquoted_texts(tmp_path, start, written, read):
    text = yaml.safe_dump({"feedbacks": [RECORD]}).replace("domain: dogs", f"domain: {written}")
    (problem,) = problems_of(tmp_path, start + text)
    assert problem.endswith(f"feedbacks[0].domain: expected a text that is not empty, found {read}")
    for kept in ("y", "N", "1e3", "2024-01-01", "no way"):
        (tmp_path / "a.yaml").write_text(start + text.replace(f"domain: {written}", f"domain: {kept}"))
        assert load_feedbacks(tmp_path / "a.yaml")[0].domain == kept


def test_every_problem_of_a_file_is_told_with_line_key_expected_found_and_nearest_name(tmp_path):
    text = """\
feedbacks:
  - id: Bad Id
    contnet: Use caps
    domain: 5
    effect: ""
    source: humn
    kind: style
    kind: content
    metric: {name: contains_any, value: [yes, lol]}
    demonstrations:
      - {prompt: hi, anser: x}
  - id: good
    content: Say lol
    domain: x
    effect: x
    source: human
    kind: style
    categories: texts
    scope: locl
    metric:
      name: all_of
      value:
        - {name: contains_any, value: lol}
        - nam: phone_number
        - {name: contans_any, value: x}
  - just text
feedback: 3
"""
    assert problems_of(tmp_path, text) == [
        "line 2: feedbacks[0].content: expected this key, found nothing",
        "line 2: feedbacks[0].id: expected a name of lower-case letters and digits, "
        "with _ or - between them, found 'Bad Id'",
        "line 3: feedbacks[0].contnet: expected a known key (did you mean 'content'?), found 'contnet'",
        "line 4: feedbacks[0].domain: expected a text that is not empty, found 5",
        "line 5: feedbacks[0].effect: expected a text that is not empty, found ''",
        "line 6: feedbacks[0].source: expected 'human', 'model' or 'program' (did you mean 'human'?), found 'humn'",
        "line 8: kind: expected each key once, found it on line 7 too",
        "line 9: feedbacks[0].metric.value[0]: expected a text "
        "(in quotes: YAML has its own ideas of yes, no, 7, # and &), found True",
        "line 11: feedbacks[0].demonstrations[0].anser: expected a known key (did you mean 'answer'?), found 'anser'",
        "line 11: feedbacks[0].demonstrations[0].answer: expected this key, found nothing",
        "line 18: feedbacks[1].categories: expected a list, found 'texts'",
        "line 19: feedbacks[1].scope: expected 'global', 'regional' or 'local' (did you mean 'local'?), found 'locl'",
        "line 24: feedbacks[1].metric.value[1].nam: expected a known key (did you mean 'name'?), found 'nam'",
        "line 24: feedbacks[1].metric.value[1].name: expected this key, found nothing",
        "line 25: feedbacks[1].metric.value[2].name: expected the name of a metric "
        "(did you mean 'contains_any'?), found 'contans_any'",
        "line 26: feedbacks[2]: expected a mapping, found 'just text'",
        "line 27: expected no top key but 'feedbacks', found 'feedback'",
    ]


MALFORMED = [
    ("", "line 1: expected the top key 'feedbacks' with a list of records, found nothing"),
    ("feedbacks: []", "line 1: expected the top key 'feedbacks'"),
    ("- a", "line 1: expected the top key 'feedbacks'"),
    ("feedback:\n- id: x", "line 1: expected the top key 'feedbacks'"),
    ("feedbacks:\n- content: [&]", "line 2: expected YAML"),
    ("feedbacks:\n- content: a: b", "line 2: expected YAML"),
    ("feedbacks: !date 3", "line 1: expected YAML"),
    ("a: 1\n---\nb: 1", "line 2: expected YAML"),
    ("feedbacks: &a [*a]", "line 1: feedbacks[0]: expected a mapping"),
    ("? [a]\n: b", "line 1: expected YAML (found unhashable key"),
]


@pytest.mark.parametrize(("text", "expected"), MALFORMED)
def test_malformed_files(tmp_path, text, expected):
    assert problems_of(tmp_path, text)[0].startswith(expected)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(FeedbackError) as caught:
        load_feedbacks(tmp_path / "latin.yaml", tmp_path / "none.yaml")
    assert ["latin.yaml" in caught.value.problems[0], "none.yaml" in caught.value.problems[1]] == [True, True]


def test_an_id_given_twice_is_refused_with_both_places(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump({"feedbacks": [RECORD | {"id": name[0] + "x"}, RECORD]}))
    with pytest.raises(FeedbackError) as caught:
        load_feedbacks(tmp_path / "a.yaml", tmp_path / "b.yaml")
    lines = [number for number, line in enumerate((tmp_path / "a.yaml").read_text().splitlines(), 1) if "- " in line]
    first, second = (f"{tmp_path / name}, line {lines[1]}" for name in ("a.yaml", "b.yaml"))
    assert caught.value.problems == [f"{second}, id: expected a new id, found 'one' of {first}"]


def test_demonstrations_must_pass_the_metric(tmp_path):
    shown = [{"prompt": "a", "answer": "ok lol"}, {"prompt": "b", "answer": "lollipop"}]
    metric = {"name": "all_of", "value": [{"name": "contains_any", "value": "lol"}]}
    text = yaml.safe_dump({"feedbacks": [RECORD | {"metric": metric, "demonstrations": shown}]})
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "lollipop" in line)
    assert problems_of(tmp_path, text) == [
        f"line {line}: feedbacks[0].demonstrations[1].answer: "
        "expected an answer that passes the metric 'contains_any', found 'lollipop'"
    ]
    metric["value"].append({"name": "shorter_than_baseline", "value": 0.5})  # has no baseline to be shorter than
    assert len(record(metric=metric, demonstrations=shown[:1]).demonstrations) == 1
    assert len(record(demonstrations=shown).demonstrations) == 2


def test_the_metric_is_tried_on_the_examples(tmp_path):
    examples = {"passing": ["ok lol", "lollipop"], "failing": ["LOL", "fine"]}
    metric = {"name": "contains_any", "value": "lol"}
    text = yaml.safe_dump({"feedbacks": [RECORD | {"metric": metric, "examples": examples}]}, sort_keys=False)
    assert [problem.partition(": ")[2] for problem in problems_of(tmp_path, text)] == [
        "feedbacks[0].examples.passing[1]: expected an answer that passes the metric 'contains_any', found 'lollipop'",
        "feedbacks[0].examples.failing[0]: expected an answer that fails the metric 'contains_any', found 'LOL'",
    ]


def test_examples_need_a_metric_and_a_baseline_where_it_compares():
    examples = {"passing": ["A short one."], "failing": ["One that is quite as long as the other."]}
    shorter = {"name": "shorter_than_baseline", "value": 0.5}
    baseline = {"baseline": "An answer of some forty characters, say."}
    assert record(metric=shorter, examples=examples | baseline).examples.baseline == baseline["baseline"]
    with pytest.raises(ValueError, match="expected a baseline's answer"):
        record(metric=shorter, examples=examples)
    with pytest.raises(ValueError, match="expected a metric"):
        record(examples=examples)


def many(count: int) -> str:
    """A set of records that all differ, with metrics, demonstrations and examples."""
    metrics = [
        {"name": "contains_any", "value": ["lol", "haha"]},
        {"name": "all_of", "value": [{"name": "words_at_least", "value": 3}, {"name": "regex_found", "value": "l.l"}]},
    ]
    shown = [{"prompt": f"What about {word} {{}}?", "answer": "Yes, {} is good, lol."} for word in ("this", "that")]
    tried = {"passing": ["{} it is, lol", "No: {}, haha lol"], "failing": ["{}"]}
    texts = [yaml.safe_dump([RECORD | {"id": "of_{}", "metric": metric, "demonstrations": shown, "examples": tried}])
             for metric in metrics]  # fmt: skip
    return "feedbacks:\n" + "".join(texts[n % 2].replace("{}", str(n)) for n in range(count))


def test_ten_thousand_records_are_loaded_and_tried_within_seconds(tmp_path):
    (tmp_path / "many.yaml").write_text(many(10_000))
    with within(4):  # 1.8
        records = load_feedbacks(tmp_path / "many.yaml")
    assert (len(records), records[-1].examples.failing) == (10_000, ("9999",))


def test_of_many_records_the_one_that_is_wrong_is_found(tmp_path):
    text = many(2000).replace("No: 1400, haha lol", "1400")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("- '1400'")]
    with within(3):  # 1
        (problem,) = problems_of(tmp_path, text)
    place, _, problem = problem.partition(": ")
    assert int(place.removeprefix("line ")) in lines
    assert problem.startswith("feedbacks[1400].examples.passing[1]: expected an answer that passes the metric")


def test_a_name_is_no_longer_than_a_folder_may_have_it(tmp_path):
    text = yaml.safe_dump({"feedbacks": [RECORD | {"id": "a" * 65}]}, sort_keys=False)
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("line 2: feedbacks[0].id: expected a name of at most 64 characters")
    assert record(id="a" * 64).id == "a" * 64


key = st.sampled_from([*RECORD, "metric", "demonstrations", "idd", "", "scope"])
junk = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(key, junk, max_size=4) | junk, max_size=3), st.booleans())
def test_whatever_the_file_holds_every_problem_has_a_line(tmp_path, items, flow):
    text = yaml.safe_dump({"feedbacks": items}, default_flow_style=flow, allow_unicode=True)
    for problem in problems_of(tmp_path, text):
        line = int(re.match(r"line (\d+): ", problem)[1])
        assert 1 <= line <= len(text.splitlines())
        assert "expected" in problem


@pytest.fixture
def feedbacks() -> list[Feedback]:
    return [
        record(id="a_dog", content="Use caps for my dog", categories=["Pets", "style"]),
        record(id="a_cat", content="Use  Caps for my cat", categories=["pets"], scope="local"),
        record(id="a_car", content="No caps for my car", kind="content", scope="global"),
    ]


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ({}, "a_dog a_cat a_car"),
        ({"ids": "a_cat"}, "a_cat"),
        ({"ids": ["a_car", "a_dog", "a_car"]}, "a_car a_dog"),
        ({"content_prefix": "use caps"}, "a_dog a_cat"),
        ({"category": "PETS"}, "a_dog a_cat"),
        ({"category": "pets", "ids": ["a_cat", "a_car"]}, "a_cat"),
        ({"category": "pets", "content_prefix": "USE CAPS FOR MY DOG", "ids": None}, "a_dog"),
        ({"kind": "content"}, "a_car"),
        ({"scope": ["local", "global"]}, "a_cat a_car"),
        ({"checkable": False}, "a_dog a_cat a_car"),
        ({"category": "pets", "first": 1}, "a_dog"),
    ],
)
def test_select(feedbacks, conditions, ids):
    assert [one.id for one in select(feedbacks, **conditions)] == ids.split()


@pytest.mark.parametrize(
    ("conditions", "problems"),
    [
        (
            {"ids": ["a_dgo", "a_car", "zebra"]},
            [
                "no feedback has the id 'a_dgo' (did you mean 'a_dog'?)",
                "no feedback has the id 'zebra' (valid: a_car, a_cat, a_dog)",
            ],
        ),
        ({"ids": []}, ["none of 0 feedbacks is selected"]),
        (
            {"content_prefix": "Use cups"},
            ["none of 3 feedbacks is selected; content_prefix 'Use cups' (did you mean 'Use caps'?)"],
        ),
        (
            {"category": "pet", "ids": "a_dog"},
            ["none of 1 feedbacks is selected; category 'pet' (did you mean 'Pets'?)"],
        ),
        (
            {"kind": "content", "ids": ["a_dog", "a_cat"], "checkable": True},
            ["none of 2 feedbacks is selected; kind content (there are 2 style, 0 content); checkable true"],
        ),
    ],
)
def test_a_selection_of_nothing_is_an_error(feedbacks, conditions, problems):
    with pytest.raises(FeedbackError) as caught:
        select(feedbacks, **conditions)
    assert caught.value.problems == problems


def test_a_condition_of_another_kind_is_told_in_our_words(feedbacks):
    with pytest.raises(FeedbackError) as caught:
        select(feedbacks, kind="styel", first=0)
    assert caught.value.problems[0].startswith("kind: expected 'style' or 'content' (did you mean 'style'?)")
    assert caught.value.problems[1].startswith("first: expected ")


def test_a_sets_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"feedbacks": [RECORD | {"id": "own"}]}))
    assert module.find_feedback("~/mine.yaml#own").id == "own"


def test_feedback_set(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("feedbacks: []")
    monkeypatch.setattr(module, "FEEDBACK_FOLDER", tmp_path)
    assert feedback_set("mine") == feedback_set(path) == feedback_set(str(path)) == path
    with pytest.raises(FeedbackError, match=r"no feedback set 'mien'.*did you mean 'mine'\?"):
        feedback_set("mien")
    with pytest.raises(FeedbackError, match=r"expected the file other\.yaml"):
        feedback_set("other.yaml")


PROMPTS = """{
"feedback": "one",
"categories": [{"name": "Big dogs!", "in_scope": ["A?", " B? "], "near_scope": ["C?"]}]}
"""


def test_prompts_have_ids_from_birth(tmp_path):
    (tmp_path / "one.json").write_text(PROMPTS)
    assert [(p.id, p.split, p.category, p.text) for p in load_prompts("one", tmp_path)] == [
        ("one/in_scope/big-dogs/01", "in_scope", "Big dogs!", "A?"),
        ("one/in_scope/big-dogs/02", "in_scope", "Big dogs!", "B?"),
        ("one/near_scope/big-dogs/01", "near_scope", "Big dogs!", "C?"),
    ]
    (tmp_path / "general.jsonl").write_text('{"id": "general-007", "kind": "qa", "prompt": "Why?\u2028So?"}\n')
    (one,) = load_general_prompts(tmp_path / "general.jsonl")
    assert (one.id, one.split, one.category, one.text) == (
        "general/007",
        "out_of_scope",
        "qa",
        "Why?\u2028So?",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"C?"', '"C?",', "line 3, column 86: expected JSON, found ']}]}\\n'"),
        (
            '"near_scope"',
            '"nearscope"',
            "categories[0].nearscope: expected a known key (did you mean 'near_scope'?)",
        ),
        ('"A?"', "7", "categories[0].in_scope[0]: expected a text that is not empty, found 7"),
        ('"one"', '"two"', "feedback: expected 'one', found 'two'"),
        ('"name"', '"in_scope": [], "name"', "expected each key once, found 'in_scope' twice"),
        ("}]}", '}, {"name": "big DOGS", "in_scope": [], "near_scope": []}]}', "found 'big-dogs' again"),
    ],
)
def test_malformed_prompts_are_refused_with_file_and_place(tmp_path, old, new, expected):
    (tmp_path / "one.json").write_text(PROMPTS.replace(old, new))
    with pytest.raises(FeedbackError) as caught:
        load_prompts("one", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "one.json"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2, column 2: expected JSON, found nothing"),
        ('{"id": "general-2", "kind": "qa"}', "line 2, prompt: expected this key"),
        (
            '{"id": "general-1", "kind": "qa", "prompt": "x"}',
            "id: expected each once, found 'general-1' again",
        ),
        ("", "line 2, column 1: expected JSON"),
    ],
)
def test_malformed_general_prompts_are_refused_with_their_line(tmp_path, line, expected):
    path = tmp_path / "general.jsonl"
    path.write_text('{"id": "general-1", "kind": "qa", "prompt": "x"}\n' + line + "\n")
    with pytest.raises(FeedbackError, match=re.escape(f"{path}, {expected}")):
        load_general_prompts(path)


@pytest.mark.parametrize("name", ["one.json", "general.jsonl"])
@pytest.mark.parametrize("content", [b"", b'{"id": "\xff"}', b"\xff\xfe{"])
def test_prompts_that_are_empty_or_no_text_are_refused_with_their_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FeedbackError) as caught:
        load_prompts("one", tmp_path) if name == "one.json" else load_general_prompts(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert len(caught.value.problems) == 1


def test_a_feedback_without_bundled_prompts(tmp_path):
    (tmp_path / "one.json").write_text(PROMPTS)
    with pytest.raises(FeedbackError, match=r"no prompts for 'oen'.*did you mean 'one'\?"):
        load_prompts("oen", tmp_path)


def test_the_embedded_sets_are_checkable_and_have_prompts():
    embedded = load_feedbacks(feedback_set("embedded"))
    tuning = load_feedbacks(feedback_set("embedded"), feedback_set("embedded_tuning"))[len(embedded) :]
    assert len(embedded) >= 8
    assert len(tuning) == 2
    for feedback in (*embedded, *tuning):
        assert feedback.metric, feedback.id
        assert len(feedback.demonstrations) >= 2, feedback.id
        assert feedback.id in BUNDLED


@pytest.mark.parametrize("feedback_id", BUNDLED)
def test_bundled_prompts_are_enough(feedback_id):
    prompts = load_prompts(feedback_id)
    counts = Counter((prompt.split, prompt.category) for prompt in prompts)
    categories = {prompt.category for prompt in prompts}
    assert len(categories) >= 10
    assert all(counts[split, name] >= 6 for split in ("in_scope", "near_scope") for name in categories), counts


def test_general_prompts_are_enough():
    prompts = load_general_prompts()
    assert len(prompts) >= 300
    assert len({prompt.category for prompt in prompts}) >= 7


@pytest.mark.parametrize("feedback_id", BUNDLED)
def test_no_in_scope_prompt_gives_the_effect_away(feedback_id):
    assert feedback_id in GIVEAWAYS, "add the words that would give its effect away"
    prompts = [prompt for prompt in load_prompts(feedback_id) if prompt.split == "in_scope"]
    told = [
        (word, p.text) for p in prompts for word in GIVEAWAYS[feedback_id] if occurs(word, normalise(p.text), False)
    ]
    assert told == []


def test_no_prompt_is_a_near_duplicate_of_another():
    """In-scope and near-scope prompts may be closer to each other: the pair shows where the border is."""
    prompts = [prompt for feedback_id in BUNDLED for prompt in load_prompts(feedback_id)] + load_general_prompts()
    splits = np.array([prompt.split for prompt in prompts])
    limit = np.where(splits[:, None] == splits, 0.65, 0.8)
    rows, columns = np.nonzero(overlaps([prompt.text for prompt in prompts]) >= limit)
    assert [(prompts[row], prompts[column]) for row, column in zip(rows, columns, strict=True)] == []


def test_no_demonstration_is_among_the_prompts():
    shown = [one.prompt for feedback in load_feedbacks(feedback_set("embedded")) for one in feedback.demonstrations]
    prompts = [prompt.text for feedback_id in BUNDLED for prompt in load_prompts(feedback_id)]
    close = overlaps([*shown, *prompts])[: len(shown), len(shown) :] >= 0.65
    assert [(shown[row], prompts[column]) for row, column in np.argwhere(close)] == []


def test_readme_shows_the_registry():
    table = re.search(r"<!-- metrics: .*? -->\n(.*?)<!-- end of metrics -->", README, re.DOTALL)[1]
    registered = {name for name in METRICS if METRICS[name].function.__module__.startswith("c3po_utils.feedback.")}
    assert registered == METRICS.keys()
    assert table == metrics_table()


def test_readme_shows_the_schema():
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", README, re.MULTILINE)
    fields = {name: "yes" if field.is_required() else "no" for name, field in Feedback.model_fields.items()}
    assert dict(rows) == fields


def test_readme_examples_work(tmp_path):
    blocks = dict(re.findall(r"```(yaml|json)\n(.*?)```", README, re.DOTALL))
    (tmp_path / "mine.yaml").write_text(blocks["yaml"], encoding="utf-8")
    (one,) = load_feedbacks(tmp_path / "mine.yaml")
    assert one.metric
    (tmp_path / f"{one.id}.json").write_text(blocks["json"], encoding="utf-8")
    assert {prompt.split for prompt in load_prompts(one.id, tmp_path)} == {"in_scope", "near_scope"}

    (source,) = re.findall(r"```python\n(.*?@metric.*?)```", README, re.DOTALL)
    try:
        exec(source, {"__name__": "readme"})
        assert check(Metric(name="exclamations", value=2), "Hi! Ho!", "")
        assert not check(Metric(name="exclamations", value=2), "Hi!", "")
    finally:
        METRICS.pop("exclamations", None)
    limits = [yaml.safe_load(shown) for shown in re.findall(r"^\| `(\{.*?\})` \|", README, re.MULTILINE)]
    assert {name for shown in limits for name in shown} >= {"budget_usd", "batch", "tokens_per_minute"}
    assert all(Limits(**shown) for shown in limits)
    (told,) = re.findall(r"^    feedback/mine\.yaml, (line \d+: .*)$", README, re.MULTILINE)
    assert problems_of(tmp_path, blocks["yaml"].replace("name: phone_number", "name: phone_numbr")) == [told]
