import json
from urllib.parse import quote

import pytest

from c3po_utils.chat.keys import MOST_SHOWN, Redaction, check_key, looks_like_secret
from c3po_utils.chat.types import Sampling
from tests.asking import SAMPLING, asks, fast_client
from tests.servers import Reply, error, scripted

KEY = "sk-canary/0123456789+abcdef=0123456789-45chars"
FORMS = {
    "raw": lambda key: key,
    "repr": lambda key: repr({"authorization": f"Bearer {key}"}),
    "bytes": lambda key: repr(f"Bearer {key}".encode()),
    "JSON": lambda key: json.dumps({"key": key}),
    "JSON with escaped slashes": lambda key: json.dumps(key).replace("/", "\\/"),
    "URL": lambda key: f"?k={quote(key)}",
    "URL, all of it": lambda key: quote(key, safe="").lower(),
}


def parts_of_the_key(text: str) -> list[str]:
    """Pieces of the key's inside, 8 characters each, that are in a text."""
    return [piece for start in range(3, len(KEY) - 8) if (piece := KEY[start : start + 8]) in text]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["", "\r", "\n", "\r\n"], ids=repr)
def test_keys_are_taken_out_in_every_form(form, end):
    for said in (KEY, KEY + end):
        text = Redaction([KEY + end]).clean(f"before {FORMS[form](said)} after")
        assert parts_of_the_key(text) == []
        assert text.startswith("before ")
        assert text.endswith(" after")


@pytest.mark.parametrize("before", range(MOST_SHOWN - 50, MOST_SHOWN + 5, 5))
def test_what_is_cut_holds_no_part_of_a_key(before):
    shown = Redaction([KEY]).message("x" * before + KEY + "y" * 100)
    assert parts_of_the_key(shown) == []
    assert len(shown) == MOST_SHOWN


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " "], ids=repr)
def test_a_key_from_a_crlf_file_works_and_is_shown_nowhere(tmp_path, monkeypatch, capfd, end):
    """A server that gives the key back in a message, an answer and a broken body, cut or not."""
    monkeypatch.setenv("C3PO_API_KEY", KEY + end)

    def script(asked):
        key, place = asked.headers["authorization"], int(asked.prompt.split()[1])
        replies = [
            error(400, "m" * 480 + key),
            Reply(f"I saw {key}"),
            Reply(body=b"b" * 60 + key.encode(), kind="text/x"),
        ]
        replies += [Reply("", finish="f" * 470 + key), Reply(text=None, refusal="r" * 480 + key)]
        return replies[place]

    with scripted(script) as server:
        outcomes = list(fast_client(tmp_path, server).complete(asks(5), SAMPLING))
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert len(outcomes) == 5
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode("latin-1")
    shown = repr(outcomes) + "".join(capfd.readouterr()) + stored
    assert "I saw Bearer [key]" in shown
    assert parts_of_the_key(shown) == []


@pytest.mark.parametrize(
    "bad", ["with\rreturn", "with space", "ключ-0123456789", "tab\tinside", "nul\x00"[:3] + "\x7f"]
)
def test_a_key_that_cannot_be_sent_is_one_error_before_any_call(tmp_path, monkeypatch, bad):
    key = f"sk-canary-{bad}-0123456789"
    monkeypatch.setenv("C3PO_API_KEY", key)
    with scripted(lambda asked: Reply("fine")) as server:
        name, told = f"openai:m@{server.url}", "C3PO_API_KEY in the environment is no key: expected visible ASCII"
        with pytest.raises(ValueError, match=told) as raised:
            check_key(name)
        with pytest.raises(ValueError, match=told):
            list(fast_client(tmp_path, server).complete(asks(20), Sampling()))
        assert server.asked == []
    assert "canary" not in str(raised.value)


def test_openai_needs_a_key_and_other_servers_and_local_models_do_not(monkeypatch):
    for name in ("OPENAI_API_KEY", "C3PO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    check_key("openai:m@http://127.0.0.1:8000/v1")
    check_key("gpt2")
    for value in (None, "", " \r\n"):
        if value is not None:
            monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(ValueError, match=r"no API key for https://.*: set OPENAI_API_KEY"):
            check_key("openai:gpt-4.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789\r")
    check_key("openai:gpt-4.1")


@pytest.mark.parametrize(
    "value",
    [
        "sk-proj-abcdefghijkl0123456789",
        "my key is gsk_abcdefghijkl0123456789",
        "Authorization: Bearer abcdefgh123456789012",
        "http://user:password@host/v1",
        "openai:m@https://token@host/v1",
        "https://host/v1?api_key=abc12345",
        "api_key=abc123456789",
        {"limits": {"api_key": "x"}},
        {"headers": [{"Authorization": "x"}]},
        {"env_vars": {"AWS_SECRET_ACCESS_KEY": "x"}},
        {"env_vars": {"C3PO_API_KEY_HOST": "letmein"}},
        {"AWS_SESSION_TOKEN": "x"},
        {"HF_TOKEN": "x"},
        {"AZURE_OPENAI_KEY": "x"},
        {"TOKEN": "letmein"},
        {"setup": ["module load cuda", "export WANDB_API_KEY='letmein'"]},
        "export TOKEN=letmein",
        ["a", {"b": ["AKIAABCDEFGHIJKLMNOP"]}],
    ],
    ids=str,
)
def test_secrets_are_known_by_their_looks(value):
    assert looks_like_secret(value)


def test_what_the_environment_keeps_secret_is_one_wherever_it_is(monkeypatch):
    assert not looks_like_secret({"a": "my-own-server"})
    monkeypatch.setenv("C3PO_API_KEY", "my-own-server")
    assert looks_like_secret({"a": "my-own-server"})


@pytest.mark.parametrize(
    "value",
    [
        "openai:m@http://127.0.0.1:8000/v1",
        "openai:claude@20240229@https://api.example.org/v1",
        "task-force-1234567890123456 and risk-averse-123456789012345",
        "Use key=value pairs, and ask me for a token.",
        {"tokens_per_minute": 200000, "max_new_tokens": 64, "keys": 3, "prices": {"m": [1, 2]}},
        ["https://github.com/a/b?tab=readme", None, 3.5, True],
        {"environment": ["OPENAI_API_KEY"], "env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}},
        {"setup": ["export WANDB_API_KEY=$MY_KEY", 'export TOKEN="$(cat ~/.token)"', "export MONKEY=banana"]},
    ],
    ids=str,
)
def test_ordinary_parameters_are_no_secrets(value):
    assert not looks_like_secret(value)
