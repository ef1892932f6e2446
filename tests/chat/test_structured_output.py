import contextlib
import itertools
import json
import random
from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.schemas import Form, Rejected, parse, template
from c3po_utils.chat.structured_output import Question, ask_forms
from c3po_utils.chat.types import Outcome, Sampling
from c3po_utils.feedback.files import Text
from c3po_utils.sampling.deduplicated import Listing
from tests.servers import Reply, embedded_server, error, scripted
from tests.speed import within

SAMPLING = Sampling(max_new_tokens=64)


class Verdict(Form):
    """What a judge says."""

    reasons: str = Field("", description="why, in two sentences")
    score: int = Field(ge=1, le=5, description="1 to 5")
    winner: Literal["A", "B", "tie"]


class Pair(Form):
    """Two texts."""

    left: Text
    right: Text


class Pairs(Form):
    """A list of them."""

    items: tuple[Pair, ...]


# Exact items, or a typed rejection

LISTS = [
    ["Draft a note to Ms. Alvarez.", "Ask my boss for Friday off."],
    ["Cut 10 cm off the 3.5 m rope.", "10 cm is how many inches?", "1. is that a list?"],
    ["Compare: 1. cats 2. dogs", "Rank these: 1) tea 2) coffee", "2. Continue the list"],
    ["Summarise **this** `code`", "What does <br> do in HTML?", "Is *a* < *b*?"],
    ["给老板写一封邮件", "请帮我请假", "下周的会议几点？"],
    ["اكتب رسالة إلى مديري", "متى الاجتماع؟"],
    ["मेरे बॉस को ईमेल लिखो", "कल छुट्टी चाहिए"],
    ["Say hi 👋 to the team", "Add 🎉 please", "No emoji here"],
    ["Explain {braces} and [brackets]", 'What is {"a": 1} in JSON?', "Print ${HOME}"],
    ["Same prompt.", "Same prompt.", "Another one."],
    ["Line one\nline two", "A list:\n- milk\n- eggs", "Single line"],
    ['He said "no", twice.', "It's O'Brien's; isn't it?", "a, b, and c"],
]


def tagged(items: list[str], between: str = "\n") -> str:
    inner = between.join(f"<item>{item}</item>" for item in items)
    return f"<thoughts>Some ideas: 1. this 2. that</thoughts>\n<items>\n{inner}\n</items>"


def as_json(items: list, **more) -> str:
    return json.dumps({"thoughts": "hm", "items": items, **more}, ensure_ascii=False)


EXACT = {  # what a parser has to get right
    "JSON": as_json,
    "pretty JSON": lambda items: json.dumps({"items": items}, indent=4),
    "fenced JSON": lambda items: f"```json\n{as_json(items)}\n```",
    "JSON after a preamble": lambda items: f"Sure! Here are {{some}} prompts:\n\n{as_json(items)}",
    "JSON before a postamble": lambda items: f"{as_json(items)}\n\nLet me know if you need 10 more!",
    "JSON after thinking": lambda items: f'<think>{{"items": ["draft"]}}</think>\n{as_json(items)}',
    "JSON with tags in it": lambda items: json.dumps({"thoughts": "</items> and <items>", "items": items}),
    "JSON after thinking, its start lost": lambda items: f'I draft {{"items": ["x"]}}.</think>{as_json(items)}',
    "tagged": tagged,
    "tagged with words around": lambda items: f"Of course:\n1. {tagged(items)}\n\nI hope this helps! 1. 2. 3.",
    "tagged and fenced": lambda items: f"```xml\n{tagged(items)}\n```",
    "tagged with bullets": lambda items: tagged(items, "\n- ").replace("<items>\n", "<items>\n- ", 1),
    "tagged with commas": lambda items: tagged(items, ",\n"),
    "tagged and numbered": lambda items: tagged(items, "\n2. "),
    "tagged with a draft": lambda items: "<draft><item>old</item></draft>\n" + tagged(items),
    "tagged after thinking": lambda items: f"<think><items><item>draft</item></items></think>{tagged(items)}",
    "tagged, Windows lines": lambda items: tagged(items).replace(">\n<", ">\r\n<"),
}
HOSTILE = {  # what may be rejected, but not taken for something else
    "numbered": lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)),
    "bullets": lambda items: "Here you go:\n" + "\n".join(f"- {item}" for item in items),
    "no list": lambda items: f"I could write {len(items)} prompts for you. Shall I?",
    "cut JSON": lambda items: as_json(items)[:-4],
    "cut in the first item": lambda items: as_json(items)[:28],
    "cut tags": lambda items: tagged(items)[:-12],
    "a lost end tag": lambda items: tagged(items).replace("</item>", "", 1),
    "a lost start tag": lambda items: tagged(items)[::-1].replace(">meti<", "", 1)[::-1],
    "a nested item": lambda items: tagged(items).replace("<item>", "<item><item>", 1),
    "two lists": lambda items: f"{tagged(items[:1])}\nBetter:\n{tagged(items)}",
    "two objects": lambda items: f"{as_json(items[:1])}\nBetter:\n{as_json(items)}",
    "a line without tags": lambda items: tagged(items[1:]).replace("\n</items>", f"\n{items[0]}\n</items>"),
    "words between": lambda items: tagged(items, "\nand also, for the 10 cm rope:\n"),
    "an empty item": lambda items: tagged([*items, " "]),
    "an empty JSON item": lambda items: as_json([*items, ""]),
    "a number": lambda items: as_json([*items, 10]),
    "a null": lambda items: as_json([*items, None]),
    "a nested list": lambda items: as_json([*items, ["more"]]),
    "a text for a list": lambda items: json.dumps({"items": "; ".join(items)}),
    "a key twice": lambda items: as_json(items[:1])[:-1] + f', "items": {json.dumps(items)}}}',
    "an unknown key": lambda items: as_json(items, prompts=items[:1]),
    "the wrong key": lambda items: json.dumps({"prompts": items}),
    "a bare array": lambda items: json.dumps(items),
    "trailing comma": lambda items: as_json(items).replace("]}", ",]}"),
    "Python quotes": lambda items: str({"thoughts": "hm", "items": items}),
    "upper-case tags": lambda items: tagged(items).upper(),
    "an open thought": lambda items: f"<think>Let me see. {tagged(items)}",
    "items without a list": lambda items: "".join(f"<item>{item}</item>" for item in items),
}


def attempt(text: str) -> tuple[list[str], Rejected | None]:
    """The items, or why there are none."""
    try:
        return list(parse(text, Listing).items), None
    except Rejected as rejected:
        return [], rejected


@pytest.mark.parametrize("form", EXACT)
@pytest.mark.parametrize("items", LISTS, ids=range(len(LISTS)))
def test_lists_in_any_wrapping_are_exact(form, items):
    assert list(parse(EXACT[form](items), Listing).items) == items


@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.parametrize("items", LISTS, ids=range(len(LISTS)))
def test_hostile_lists_are_exact_or_rejected_with_a_kind(form, items):
    found, rejected = attempt(HOSTILE[form](items))
    if rejected is None:
        assert found == items
    else:
        assert rejected.kind in ("no_form", "ambiguous", "fields")
        assert len(str(rejected)) < 1000


def test_that_is_more_than_200_hostile_answers():
    assert len(LISTS) * len(HOSTILE) > 200


def test_no_prefix_of_an_answer_passes_for_it():
    """A list that broke off anywhere is rejected, or whole."""
    for items, wrap in itertools.product(LISTS, (as_json, tagged)):
        text = wrap(items)
        for end in range(len(text)):
            with contextlib.suppress(Rejected):
                assert list(parse(text[:end], Listing).items) == items


clean = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@given(st.lists(clean, min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_texts_survive_json(items, thoughts):
    text = json.dumps({"thoughts": thoughts, "items": items}, ensure_ascii=False)
    assert list(parse(text, Listing).items) == items


@given(st.text(max_size=300))
def test_any_text_at_all_is_a_list_or_a_rejection(text):
    found, rejected = attempt(text)
    assert (found == []) == (rejected is not None)


@pytest.mark.parametrize(
    "text", ["{" * 200_000, '{"a":' * 50_000, "<item>" * 100_000, "<items>" + "<item>a</item>" * 50_000]
)
def test_huge_nonsense_is_rejected_in_no_time(text):
    with within(5), pytest.raises(Rejected):
        parse(text, Listing)


# Other forms


@pytest.mark.parametrize(
    "text",
    [
        '{"reasons": "A is better", "score": 4, "winner": "A"}',
        "<reasons>A is better</reasons><score>4</score><winner>A</winner>",
        "I think:\n<reasons>A is better</reasons>\n<score> 4 </score>\n<winner>\nA\n</winner>",
    ],
)
def test_verdicts_are_read_from_json_and_tags(text):
    assert parse(text, Verdict) == Verdict(reasons="A is better", score=4, winner="A")


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 6, "winner": "A"}',
        '{"score": true, "winner": "A"}',
        '{"score": "4", "winner": "A"}',
        '{"score": 4.5, "winner": "A"}',
        '{"score": 4, "winner": "a"}',
        '{"score": 4}',
        "<score>4/5</score><winner>A</winner>",
        "<score>4</score><winner>A or B</winner>",
        "<score>4</score><score>5</score><winner>A</winner>",
        "4, A",
    ],
)
def test_verdicts_that_are_not_exact_are_rejected(text):
    with pytest.raises(Rejected):
        parse(text, Verdict)


def test_lists_of_forms_are_read_from_json_and_tags():
    expected = Pairs(items=(Pair(left="a", right="b"), Pair(left="c", right="d")))
    inner = "".join(f"<item><left>{left}</left>\n<right>{right}</right></item>" for left, right in ("ab", "cd"))
    assert parse(f"<items>{inner}</items>", Pairs) == expected
    assert parse(expected.model_dump_json(), Pairs) == expected
    with pytest.raises(Rejected):
        parse(f"<items>{inner.replace('<right>d</right>', '')}</items>", Pairs)


@pytest.mark.parametrize("form", [Verdict, Pairs, Listing])
def test_schemas_are_strict_and_templates_parse(form):
    schema = form.schema_for_api()
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    assert '"default"' not in json.dumps(schema)
    assert form.__doc__ not in json.dumps(schema)
    filled = template(form).replace("1 to 5", "3").replace("<winner>...", "<winner>A").replace("<item>...</item>\n", "")
    if form is not Listing:
        assert parse(filled, form)


# Asking


class Scripted:
    """A chat model that answers from a script: `answer(request)` is a text or an outcome's status."""

    name = "scripted"

    def __init__(self, answer, supports_schema=False):
        self.answer, self.supports_schema, self.asked = answer, supports_schema, []

    def complete(self, requests, sampling, *, desc=""):
        shuffled = list(requests)
        random.Random(0).shuffle(shuffled)
        for request in shuffled:
            self.asked.append(request)
            answer = self.answer(request)
            bad = answer in ("refused", "failed", "truncated")
            yield Outcome(request.id, answer, "", "why") if bad else Outcome(request.id, "ok", answer)


def questions(count: int) -> list[Question]:
    return [Question(f"q{n}", ({"role": "user", "content": f"number {n}"},)) for n in range(count)]


def test_answers_are_matched_by_id_and_rejections_are_asked_again():
    def answer(request):
        number = request.messages[0]["content"].split()[1]
        if request.replicate == 0 and int(number) % 2:
            return "no idea"
        return as_json([f"item {number}"])

    model = Scripted(answer)
    answers = ask_forms(model, questions(10), Listing, SAMPLING)
    assert [answers[f"q{n}"].value.items for n in range(10)] == [(f"item {n}",) for n in range(10)]
    assert answers["q1"].rejections == Counter(no_form=1)
    assert len(model.asked) == 15
    assert len({(request.id, request.replicate) for request in model.asked}) == 15


def test_what_stays_rejected_is_said_with_its_kinds():
    answers = ask_forms(Scripted(lambda request: "nonsense"), questions(1), Listing, SAMPLING, tries=4)
    assert (answers["q0"].value, answers["q0"].kind) == (None, "no_form")
    assert answers["q0"].rejections == Counter(no_form=4)


@pytest.mark.parametrize(
    "echo", [as_json(["An entry of the revised list"]), tagged(["Ask for leave", "your thoughts"])]
)
def test_the_forms_own_hints_are_no_answer(echo):
    answer = ask_forms(Scripted(lambda request: echo), questions(1), Listing, SAMPLING, tries=2)["q0"]
    assert (answer.value, answer.rejections) == (None, Counter(echo=2))
    fine = Scripted(lambda request: as_json(["Ask for leave"], thoughts="your thoughts"))
    assert ask_forms(fine, questions(1), Listing, SAMPLING)["q0"].value.items == ("Ask for leave",)


@pytest.mark.parametrize(("status", "tries"), [("failed", 1), ("refused", 3), ("truncated", 3)])
def test_failed_calls_are_left_to_the_client_and_the_next_run(status, tries):
    model = Scripted(lambda request: status)
    answers = ask_forms(model, questions(1), Listing, SAMPLING)
    assert (answers["q0"].kind, answers["q0"].reason, len(model.asked)) == (status, "why", tries)


def test_ids_must_differ():
    with pytest.raises(ValueError, match="ids must differ"):
        ask_forms(Scripted(str), questions(1) * 2, Listing, SAMPLING)


def test_a_schema_is_sent_where_the_server_takes_it_and_tags_elsewhere():
    plain, structured = Scripted(lambda request: tagged(["a"])), Scripted(lambda request: as_json(["a"]), True)
    for model in (plain, structured):
        assert ask_forms(model, questions(1), Listing, SAMPLING)["q0"].value.items == ("a",)
    assert plain.asked[0].schema is None
    assert template(Listing) in plain.asked[0].messages[-1]["content"]
    assert structured.asked[0].schema == Listing.schema_for_api()
    assert '"items": ["an entry of the revised list"]' in structured.asked[0].messages[-1]["content"]


def test_a_server_that_refuses_schemas_is_asked_for_tags_in_the_same_run(tmp_path):
    def script(asked):
        if "response_format" in asked.body:
            return error(400, "response_format json_schema is not supported")
        return Reply(tagged(["a", "b"]))

    with scripted(script) as server:
        model = open_model(f"openai:m@{server.url}", tmp_path / "calls.sqlite")
        answers = ask_forms(model, questions(4), Listing, SAMPLING, tries=1)
        assert all(answer.value.items == ("a", "b") for answer in answers.values())
        assert len(server.asked) == 8


def test_a_server_that_ignores_schemas_is_understood_all_the_same(tmp_path):
    with scripted(lambda asked: Reply(tagged(["a"]))) as server:
        model = open_model(f"openai:m@{server.url}", tmp_path / "calls.sqlite")
        assert ask_forms(model, questions(1), Listing, SAMPLING)["q0"].value.items == ("a",)


@pytest.mark.embedded
def test_llama_cpp_fills_forms_by_schema_and_says_when_it_cannot(tmp_path):
    """The embedded model has little to say, but its verdicts are whole; a form cut short is a typed rejection."""
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite", max_in_flight=4)
    ask = tuple(questions(1)[0].messages)
    judged = ask_forms(model, [Question(f"q{n}", ask, n) for n in range(3)], Verdict, Sampling(max_new_tokens=120))
    for answer in judged.values():
        assert isinstance(answer.value, Verdict) or answer.kind == "truncated"
    assert any(answer.value for answer in judged.values())
    cut = ask_forms(model, questions(1), Verdict, Sampling(max_new_tokens=3), tries=1)["q0"]
    assert (cut.value, cut.kind) == (None, "truncated")
