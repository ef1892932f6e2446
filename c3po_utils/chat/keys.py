"""Keys of APIs: read from the environment, checked, and kept out of everything that is shown or stored."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from c3po_utils.chat.names import OPENAI, parse_model_name

MOST_SHOWN = 500  # characters of a server's message
SECRET_NAME = re.compile(
    r"(^|[\W_])(api[-_]?key|secret([-_]key)?|passw(or)?d|authorization|(access|auth)[-_]token)$", re.I
)
_VARIABLE = r"(?:C3PO_API_KEY\w*|(?:[A-Z][A-Z0-9_]*_)?(?:KEY|TOKEN|SECRET|PASSWORD))"
SECRET_VARIABLE = re.compile(_VARIABLE)  # of an environment
SWITCH = re.compile(r"[01]|true|false|yes|no|on|off", re.I)  # HF_HUB_DISABLE_IMPLICIT_TOKEN: "1"
SECRET_TEXT = re.compile(
    r"(?<![A-Za-z0-9])(sk|gsk|xai|hf|gh[opsu])[-_](?=[\w-]*\d)[\w-]{16,}"  # vendors' keys by their beginnings
    r"|\b(AKIA[0-9A-Z]{16}|AIza[\w-]{30,})"
    r"|\b(?i:bearer)\s+(?=[^\s]*\d)[\w.~+/=-]{16,}"
    r"|://[^/\s@]+@"  # user:password@ in a URL
    r"|[?&](?i:key|token)=[^&\s]+|(?i:api[-_]?key|access[-_]token)\s*[=:]\s*[^&\s]{8,}"
    rf"|\bexport\s+{_VARIABLE}=[\"']?[^\s$\"'`]"  # in a job's script; `export X_KEY=$X_KEY` holds none
)


OWN = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def _variables(endpoint: str) -> list[str]:
    """Where an endpoint's key may be: OpenAI's goes to OpenAI only, and no other goes there."""
    if endpoint == OPENAI:
        return ["OPENAI_API_KEY"]
    host = re.sub(r"\W", "_", urlsplit(endpoint).hostname or "").upper()
    return [f"C3PO_API_KEY_{host}", "C3PO_API_KEY"]


def header_value(variable: str) -> str:
    """What an environment variable holds for a header, without white space around it (a `.env` with CRLF has some).

    Raises ValueError, which does not show the value, for what no header may hold.
    """
    value = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise ValueError(f"{variable} in the environment is no key: expected visible ASCII characters without spaces")
    return value


def api_key(endpoint: str) -> str:
    """The endpoint's key from the environment, or `none` for servers that need none.

    Raises ValueError without one for OpenAI, and for one that cannot be sent.
    """
    variables = _variables(endpoint)
    key = next((value for variable in variables if (value := header_value(variable))), "")
    if not key and endpoint == OPENAI:
        raise ValueError(f"no API key for {endpoint}: set {variables[0]} in the environment, where it stays")
    return key or "none"


def check_key(name: str) -> None:
    """Raises ValueError if a model (by its name as for `open_chat`) needs a key that the environment lacks."""
    endpoint = parse_model_name(name).endpoint
    if endpoint:
        api_key(endpoint)


def secrets() -> list[str]:
    """Everything in the environment that may travel in our headers and must not come back into a file."""
    names = [name for name in os.environ if name.startswith("C3PO_API_KEY")]
    values = [os.environ.get(name, "") for name in (*OWN, *names)]
    values += re.findall(r"[^\s:]{16,}", os.environ.get("OPENAI_CUSTOM_HEADERS", ""))  # shorter ones are words
    return [value for value in values if len(value.strip()) >= 8]


class Redaction:
    """Takes secrets out of texts, as they are or as they look in code, JSON and URLs."""

    def __init__(self, values: Iterable[str]):
        longest_first = sorted({value.strip() for value in values}, key=len, reverse=True)
        patterns = ("".join(map(_written, value)) for value in longest_first)
        self._pattern = re.compile("|".join(patterns) or "(?!)", re.IGNORECASE)

    def clean(self, text: str) -> str:
        """The text without any secret in it: servers echo headers."""
        return self._pattern.sub("[key]", text)

    def message(self, text: str) -> str:
        """A reason to show and store: cleaned before it is cut, so that no part of a key is left at the cut."""
        return self.clean(text).encode("utf-8", "backslashreplace").decode()[:MOST_SHOWN]


def _written(char: str) -> str:
    """A pattern of the ways in which a character of a secret may be written."""
    if char.isascii() and char.isalnum():
        return char
    percent = "".join(f"%{byte:02x}" for byte in char.encode(errors="surrogateescape"))
    forms = {char, percent, f"\\u{ord(char):04x}", repr(char)[1:-1], ascii(char)[1:-1]}
    return rf"\\{{0,4}}(?:{'|'.join(re.escape(form) for form in forms)})"


def _names_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name) or SECRET_VARIABLE.fullmatch(name))


def looks_like_secret(value: Any) -> bool:
    """Whether a parameter's value, or anything inside it, is shaped like a key, a password or a URL with one."""
    if isinstance(value, dict):
        named = (inner for name, inner in value.items() if _names_secret(str(name)))
        told = any(inner and not SWITCH.fullmatch(str(inner)) for inner in named)
        return told or any(map(looks_like_secret, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(looks_like_secret, value))
    if not isinstance(value, str):
        return False
    return bool(SECRET_TEXT.search(value)) or Redaction(secrets()).clean(value) != value
