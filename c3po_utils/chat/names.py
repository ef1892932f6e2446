"""A model's name: a local model, or one behind an API and the address it is asked at. Imports next to nothing."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

OPENAI = "https://api.openai.com/v1"
EXPECTED = (
    "expected openai:MODEL (at OpenAI) or openai:MODEL@BASE_URL, for example openai:llama@http://127.0.0.1:8000/v1"
)
AT_URL = re.compile(r"@(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)  # model ids may hold other @
HOST = re.compile(r"[\w.-]+|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)


class ModelName(NamedTuple):
    """A model and the base URL of the API that serves it; no `endpoint` for a local model."""

    model: str
    endpoint: str | None = None


def parse_model_name(name: str) -> ModelName:
    """What `openai:MODEL[@BASE_URL]`, or a local model's name, stands for.

    Nothing that looks like an address, or like another vendor's prefix, is taken for a model's name: its prompts and
    keys would go to the wrong place. Raises ValueError; credentials in a name are not repeated.
    """
    if not name.startswith("openai:"):
        if not name.strip() or name != name.strip() or re.match(r"[A-Za-z][\w+.-]+:", name) or "://" in name:
            raise ValueError(f"model {_shown(name)}: {EXPECTED}, or a local model's name")
        return ModelName(name)
    model, *bases = AT_URL.split(name.removeprefix("openai:"), maxsplit=1)
    if not re.fullmatch(r"[^\s?#]+", model) or "://" in model or ("@" in model and not bases):
        raise ValueError(f"model {_shown(name)}: {EXPECTED}")
    return ModelName(model, _endpoint(name, bases[0]) if bases else OPENAI)


def _endpoint(name: str, base: str) -> str:
    """The base URL with its scheme in small letters, without a slash at its end."""
    parts = _split(base)
    if "@" in base or "?" in base or "#" in base:
        raise ValueError("model name: expected a base URL of host and path only; keys come from the environment")
    if not parts or parts.scheme not in ("http", "https"):
        raise ValueError(f"model {name!r}: found {base!r} for its base URL; {EXPECTED}")
    return f"{parts.scheme}{base[len(parts.scheme) :]}".rstrip("/")


def _split(base: str) -> SplitResult | None:
    """The URL's parts, None where it has no host or no port that can be meant."""
    try:
        parts = urlsplit(base)
        host = parts.netloc.removesuffix(f":{parts.port}")
    except ValueError:
        return None
    return parts if base.isascii() and HOST.fullmatch(host) else None


def _shown(name: str) -> str:
    """The name for a message, unless it may hold a password."""
    return repr(name) if name.count("@") < 2 and not re.search(r"[?#]|sk-", name) else "name"
