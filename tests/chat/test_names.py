import subprocess
import sys

import pytest

from c3po_utils import chat
from c3po_utils.chat.names import OPENAI, parse_model_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt-4.1", ("gpt-4.1", OPENAI)),
        ("openai:ft:gpt-4o-mini:me::abc", ("ft:gpt-4o-mini:me::abc", OPENAI)),
        ("openai:mistralai/M-7B@http://127.0.0.1:8000/v1", ("mistralai/M-7B", "http://127.0.0.1:8000/v1")),
        ("openai:claude@20240229@https://api.example.org/v1/", ("claude@20240229", "https://api.example.org/v1")),
        ("openai:m@http://[::1]:8000/v1", ("m", "http://[::1]:8000/v1")),
        ("openai:m@HTTP://127.0.0.1:8000/v1", ("m", "http://127.0.0.1:8000/v1")),
        ("HuggingFaceTB/SmolLM2-135M", ("HuggingFaceTB/SmolLM2-135M", None)),
        ("NAME@4bit", ("NAME@4bit", None)),
        ("/my models/a", ("/my models/a", None)),
    ],
)
def test_names_are_model_and_endpoint(name, expected):
    assert parse_model_name(name) == expected


@pytest.mark.parametrize(
    "name",
    ["", " gpt", "openai:", "openai:a b", "openai:x\n", "anthropic:x", "OpenAI:gpt-4.1", "m@http://127.0.0.1/v1"]
    + [f"openai:{rest}" for rest in ("llama@127.0.0.1:8000/v1", "x@htp://127.0.0.1/v1", "@http://127.0.0.1:8000/v1")]
    + [f"openai:m@{base}" for base in ("http://", "http:/h/v1", "https//h/v1", "http:///v1", "http://h:99999/v1")]
    + [f"openai:m@{base}" for base in ("http://h:x/v1", "http://h:/v1", "http://hé/v1", "20240229", "ftp://h/v1")]
    + ["openai:http://127.0.0.1:8000/v1"],
)
def test_no_mistyped_address_is_taken_for_a_model_at_openai(name):
    with pytest.raises(ValueError, match=r"expected openai:MODEL .*for example openai:llama@http") as raised:
        parse_model_name(name)
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "base",
    [
        "http://u:hunter2secret@h/v1",
        "http://hunter2secret@h/v1",
        "https://h/v1?api_key=hunter2secret",
        "htp://u:hunter2@h",
        "u:hunter2secret@h:8000/v1",
        "http://h/v1#hunter2secret",
    ],
)
def test_a_key_in_a_name_is_refused_and_not_repeated(base):
    with pytest.raises(ValueError, match="expected") as raised:
        parse_model_name(f"openai:m@{base}")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "limits", "told"),
    [
        ("openai:gpt-4.1", {"max_inflight": 3}, "unknown limit 'max_inflight' .did you mean 'max_in_flight'"),
        ("openai:gpt-4.1", {"max_attempts": 0}, "limit 'max_attempts': found 0, expected a whole number >= 1"),
        ("openai:m@http://h/v1", {"budget_usd": 1.0}, r"budget_usd needs prices=\{'m'"),
        ("gpt2", {"memory_gib": 0}, "limit 'memory_gib': found 0.0, expected a finite number >= 1e-06"),
        ("gpt2", {"budget_usd": 1.0}, "unknown limit 'budget_usd'"),
        ("not/a/model", {}, "no model 'not/a/model': expected a folder that exists"),
    ],
)
def test_opening_a_model_checks_its_limits(tmp_path, name, limits, told):
    for check in (
        chat.open.check_model,
        lambda name, **given: chat.open_chat(name, tmp_path / "calls.sqlite", **given),
    ):
        with pytest.raises(ValueError, match=told):
            check(name, **limits)
    assert not (tmp_path / "calls.sqlite").exists()


def test_checking_imports_nothing_heavy():
    code = (
        "import sys; from c3po_utils import chat; chat.open.check_model('openai:gpt-4.1', budget_usd=1.0);"
        "chat.keys.looks_like_secret('x'); print(*{'openai', 'httpx2', 'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
