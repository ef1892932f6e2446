import asyncio
import functools
import json
import threading
import time

import pytest

from c3po_utils.chat.ledger import Entry, Ledger
from c3po_utils.chat.names import OPENAI, parse_model_name
from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.types import Request, Sampling, request
from tests.asking import ANSWER_USD, SAMPLING, ambient_headers, asks, by_id, echo, fast_client, tally
from tests.servers import Reply, embedded_server, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


# Names and keys


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt-4.1", ("gpt-4.1", OPENAI)),
        ("openai:mistralai/M-7B@http://127.0.0.1:8000/v1", ("mistralai/M-7B", "http://127.0.0.1:8000/v1")),
        ("openai:claude@20240229@https://api.example.org/v1/", ("claude@20240229", "https://api.example.org/v1")),
    ],
)
def test_names_are_model_and_endpoint(name, expected):
    assert parse_model_name(name) == expected


@pytest.mark.parametrize("name", ["openai:", "openai:a b", "anthropic:x"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="expected openai:MODEL"):
        parse_model_name(name)


@pytest.mark.parametrize("base", ["http://u:hunter2secret@h/v1", "https://h/v1?api_key=hunter2secret"])
def test_a_key_in_a_name_is_refused_and_not_repeated(base):
    with pytest.raises(ValueError, match="keys come from the environment") as raised:
        parse_model_name(f"openai:m@{base}")
    assert "hunter2" not in str(raised.value)


def test_unknown_limits_name_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'max_in_flight'"):
        open_model("openai:m@http://h/v1", tmp_path / "l", max_inflight=3)


def test_each_server_gets_its_own_key_only(client, monkeypatch):
    ambient_headers(monkeypatch)
    with scripted(echo) as server:
        seen = []
        for name, value in ((None, None), ("C3PO_API_KEY", "any-server"), ("C3PO_API_KEY_127_0_0_1", "this-server")):
            if name:
                monkeypatch.setenv(name, value)
            list(client(server).complete([request("r", f"prompt {name}")], SAMPLING))
            seen.append(server.asked[-1].headers)
    assert [headers["authorization"] for headers in seen] == ["Bearer none", "Bearer any-server", "Bearer this-server"]
    assert not [headers for headers in seen if headers.keys() & {"openai-organization", "x-gateway-key"}]


def test_openai_without_a_key_is_an_error_before_any_call_and_stored_answers_need_none(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = open_model("openai:gpt-4.1", tmp_path / "calls.sqlite")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY in the environment"):
        list(model.complete(asks(1), SAMPLING))
    (call,) = model.calls(asks(1), SAMPLING)
    model.ledger.record(call.key, model.scope, "{}", Entry("ok", text="stored"))
    assert next(model.complete(asks(1), SAMPLING)).text == "stored"


# Asking once


def test_every_request_gets_its_own_answer(client):
    with scripted(echo) as server:
        outcomes = by_id(client(server).complete(asks(50), SAMPLING))
    assert all(outcomes[ask.id].text == f"answer to {ask.messages[0]['content']}" for ask in asks(50))
    assert (outcomes["r0"].prompt_tokens, outcomes["r0"].completion_tokens) == (11, 7)
    assert outcomes["r0"].details == {"price_usd": pytest.approx(ANSWER_USD)}


def test_a_rerun_asks_only_for_what_is_missing(client):
    with scripted(echo) as server:
        list(client(server).complete(asks(20), SAMPLING))
        again = by_id(client(server).complete(asks(30), SAMPLING))
        assert len(server.asked) == 30
    assert len(again) == 30


def test_the_same_conversation_is_asked_once_and_a_replicate_anew(client):
    same = [Request(f"r{n}", ({"role": "user", "content": "hi"},), replicate=n % 2) for n in range(10)]
    with scripted(lambda asked: Reply(str(asked.body["seed"]))) as server:
        outcomes = by_id(client(server).complete(same, SAMPLING))
        assert len(server.asked) == 2
    assert len({outcome.text for outcome in outcomes.values()}) == 2


def test_ids_given_twice_are_refused(client):
    with scripted(echo) as server, pytest.raises(ValueError, match="'r0' is there twice"):
        list(client(server).complete(asks(1) * 2, SAMPLING))


def test_what_changes_the_answer_changes_the_key(tmp_path):
    def key(base="http://h/v1", sampling=SAMPLING, model="m", **changes) -> str:
        book = Ledger(tmp_path / "calls.sqlite")
        asked = Request("id", ({"role": "user", "content": changes.pop("text", "hi")},), **changes)
        return open_model(f"openai:{model}@{base}", book).calls([asked], sampling)[0].key

    variants = [
        key(),
        key(base="http://other/v1"),
        key(model="n"),
        key(text="ho"),
        key(schema={"type": "object"}),
        key(replicate=1),
        *(key(sampling=Sampling(max_new_tokens=32, **{name: value})) for name, value in [("seed", 1), ("top_k", 3)]),
        key(sampling=Sampling(max_new_tokens=33)),
        key(sampling=Sampling(max_new_tokens=32, stop=("x",))),
    ]
    assert len(set(variants)) == len(variants)
    assert key(sampling=Sampling(temperature=1, max_new_tokens=32)) == key(
        sampling=Sampling(temperature=1.0, max_new_tokens=32)
    )


def test_requests_carry_what_the_server_needs(client, tmp_path):
    schema = {"title": "Verdict", "type": "object", "properties": {}}
    asked = Request("r", ({"role": "user", "content": "hi"},), schema=schema)
    with scripted(lambda asked: Reply("{}")) as server:
        list(client(server, omit=("seed",)).complete([asked], Sampling(top_k=7, stop=("END",), max_new_tokens=9)))
        body = server.asked[0].body
    assert (body["top_k"], body["stop"], body["max_tokens"], "seed" in body) == (7, ["END"], 9, False)
    assert body["response_format"]["json_schema"] == {"name": "Verdict", "schema": schema, "strict": True}
    ours = open_model("openai:gpt-4.1", tmp_path / "l").calls([asked], Sampling(top_k=7, max_new_tokens=9))[0].body
    assert ours["max_completion_tokens"] == 9
    assert not ours.keys() & {"top_k", "max_tokens"}


def test_outcomes_stream_while_others_are_still_out(client):
    def script(asked):
        return Reply("late", delay=2) if asked.prompt == "prompt 3" else Reply("soon")

    with scripted(script) as server:
        outcomes = client(server, timeout_s=10).complete(asks(8), SAMPLING)
        early = [next(outcomes).text for _ in range(7)]
        assert not next(asked for asked in server.asked if asked.prompt == "prompt 3").answered
        assert early == ["soon"] * 7
        assert [outcome.text for outcome in outcomes] == ["late"]


def test_it_works_inside_a_running_event_loop(client):
    with scripted(echo) as server:

        async def cell() -> list:
            return list(client(server).complete(asks(5), SAMPLING))

        assert len(asyncio.run(cell())) == 5


def test_two_runs_at_once_ask_once(client):
    """Two threads, each with a ledger of its own on the same file, as two processes would have."""
    with scripted(lambda asked: Reply(asked.prompt, delay=0.05)) as server:
        found, models = [], [client(server, max_in_flight=6) for _ in range(2)]
        threads = [
            threading.Thread(target=lambda m=model: found.append(by_id(m.complete(asks(40), SAMPLING))))
            for model in models
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(server.asked) == 40
    assert [len(outcomes) for outcomes in found] == [40, 40]
    assert {key: o.text for key, o in found[0].items()} == {key: o.text for key, o in found[1].items()}


def test_a_caller_who_stops_listening_keeps_what_is_on_its_way(client):
    with scripted(lambda asked: Reply(asked.prompt, delay=0.2)) as server:
        model = client(server, max_in_flight=4)
        outcomes = model.complete(asks(40), SAMPLING)
        next(outcomes)
        outcomes.close()
        asked = len(server.asked)
        assert asked < 20
        time.sleep(0.3)
        assert len(server.asked) == asked, "nothing is asked after the end"
        assert model.ledger.report()[0]["calls"] == asked
        by_id(model.complete(asks(40), SAMPLING))
        assert len(server.asked) == 40
    assert threading.active_count() < 5


# A real server


@pytest.mark.embedded
@pytest.mark.parametrize("stream", [False, True], ids=["", "streamed"])
def test_llama_cpp_answers_many_requests(tmp_path, stream):
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite", max_in_flight=4, stream=stream)
    outcomes = by_id(model.complete(asks(8), Sampling(max_new_tokens=4)))
    assert set(tally(outcomes.values())) <= {"ok", "truncated"}
    assert all(outcome.prompt_tokens > 5 and 1 <= outcome.completion_tokens <= 4 for outcome in outcomes.values())
    again = by_id(model.complete(asks(8), Sampling(max_new_tokens=4)))
    assert again == outcomes


@pytest.mark.embedded
def test_llama_cpp_keeps_to_a_schema(tmp_path):
    properties = {"colour": {"enum": ["red", "blue"]}, "number": {"type": "integer", "minimum": 1, "maximum": 5}}
    schema = {"title": "Choice", "type": "object", "properties": properties}
    schema |= {"required": ["colour", "number"], "additionalProperties": False}
    message = {"role": "user", "content": "Choose a colour and a number."}
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite")
    requests = [Request(f"r{n}", (message,), schema, n) for n in range(3)]
    for outcome in model.complete(requests, Sampling(max_new_tokens=40)):
        assert outcome.status == "ok"
        choice = json.loads(outcome.text)
        assert choice["colour"] in ("red", "blue")
        assert 1 <= choice["number"] <= 5
