"""Forms for a model to fill in: how they are shown to it, and the parser; exact, or rejected by type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

Kind = Literal["no_form", "ambiguous", "fields", "echo", "truncated", "refused", "filtered", "malformed", "failed"]
MOST_BRACES = 50  # places where a JSON object may begin: a hostile text has thousands


class Form(BaseModel):
    """What an answer must hold: its fields, in this order, and no others.

    Fields are texts, numbers, choices, lists of texts or of forms; a description is the hint that the model gets. A
    field with a default may be missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @classmethod
    def schema_for_api(cls) -> dict:
        """The JSON schema, with every field required, as strict servers want it."""
        return _strict(cls.model_json_schema())


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "default"}
    if "properties" in schema:
        strict.pop("description", None)  # our docstring: for readers, and not what an answer's key may hang on
        strict["required"] = list(schema["properties"])
    return strict


F = TypeVar("F", bound=Form)


class Rejected(ValueError):
    """A text that is not exactly one answer of the form asked for; `kind` says how."""

    def __init__(self, kind: Kind, message: str):
        super().__init__(message)
        self.kind = kind


def outline(form: type[Form]) -> dict[str, Any]:
    """The form as JSON, each value a hint."""
    shape = {}
    for name, info in form.model_fields.items():
        item, hint = _item_type(info.annotation), info.description or "..."
        inner = outline(item) if _is_form(item) else hint
        shape[name] = hint if item is None else [inner]
    return shape


def template(form: type[Form]) -> str:
    """The tagged form to be filled in: `<name>description</name>`, lists as `<item>`s."""
    lines = []
    for name, info in form.model_fields.items():
        item, hint = _item_type(info.annotation), info.description or "..."
        if item is None:
            lines.append(f"<{name}>{hint}</{name}>")
        else:
            inner = f"\n{template(item)}\n" if _is_form(item) else hint
            lines.append(f"<{name}>\n<item>{inner}</item>\n<item>...</item>\n</{name}>")
    return "\n".join(lines)


def _item_type(annotation: Any) -> Any:
    """What a field is a list of, or None."""
    return get_args(annotation)[0] if get_origin(annotation) in (list, tuple) else None


def _is_form(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Form)


def parse(text: str, form: type[F]) -> F:
    """The one answer of this form in the text: tagged or a JSON object, with or without words around it.

    Raises Rejected when there is none, more than one, or one that is not exact.
    """
    text = _without_thinking(text).strip()
    bare = text.removeprefix("```json").removeprefix("```").lstrip()
    tagged = not bare.startswith("{") and any(f"<{name}>" in text for name in form.model_fields)
    try:
        if tagged:
            return form.model_validate(_tagged(text, form))
        return form.model_validate_json(json.dumps(_json_object(text)), strict=True)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise Rejected("fields", f"expected the fields of {form.__name__}; {found}") from None


def _without_thinking(text: str) -> str:
    """The text after a reasoning model's <think> block, whose opening some servers leave out."""
    if text.lstrip().startswith("{"):
        return text
    _, end, answer = text.partition("</think>")
    if not end and text.lstrip().startswith("<think>"):
        raise Rejected("no_form", "the answer ends inside <think>")
    return answer if end else text


def _json_object(text: str) -> Any:
    """The only JSON object in the text."""
    decoder, found, at = json.JSONDecoder(object_pairs_hook=_unrepeated), [], 0
    for _ in range(MOST_BRACES):
        at = text.find("{", at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except Rejected:
            raise
        except (ValueError, RecursionError):  # no JSON, too deep, or a number of thousands of digits
            at += 1
    if not found:
        raise Rejected("no_form", f"expected JSON or tags, found {text[:80]!r}")
    if len(found) > 1:
        raise Rejected("ambiguous", f"expected one JSON object, found {len(found)}")
    return found[0]


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise Rejected("ambiguous", "a key is there twice")
    return dict(pairs)


def _tagged(text: str, form: type[Form]) -> dict[str, Any]:
    value = {}
    for name, info in form.model_fields.items():
        content = _between(text, name)
        item = _item_type(info.annotation)
        if content is None:
            continue
        if item is None:
            value[name] = content.strip()
        else:
            value[name] = [_tagged(part, item) if _is_form(item) else part for part in _items(content)]
    return value


def _between(text: str, name: str) -> str | None:
    """What stands between a tag that is there once; None where there is none."""
    opened, closed = text.count(f"<{name}>"), text.count(f"</{name}>")
    if not opened and not closed:
        return None
    start, end = text.find(f"<{name}>"), text.find(f"</{name}>")
    if (opened, closed) != (1, 1) or end < start:
        raise Rejected("ambiguous", f"expected <{name}>...</{name}> once, found {opened} openings and {closed} ends")
    return text[start + len(name) + 2 : end]


MARKER = re.compile(r"[\s,;]*+(?:[-*•]|\(?\d{1,3}[.):]?)?[\s,;]*+")  # what may stand between two items


def _items(content: str) -> list[str]:
    """The texts of `<item>`s; nothing but list markers may stand between them."""
    between, items, rest = [], [], content
    while "<item>" in rest or "</item>" in rest:
        before, start, rest = rest.partition("<item>")
        item, end, rest = rest.partition("</item>")
        if not (start and end) or "<item>" in item or "</item>" in before:
            raise Rejected("ambiguous", f"expected <item>...</item> pairs, found {content[:80]!r}")
        between.append(before)
        items.append(item.strip())
    stray = next((part for part in [*between, rest] if not MARKER.fullmatch(part)), None)
    if stray is not None:
        raise Rejected("ambiguous", f"expected nothing between items, found {stray.strip()[:80]!r}")
    return items


def own_words(answer: F) -> F:
    """The answer, unless something that it must hold is a hint of the form: small models give those back.

    Raises Rejected.
    """
    hints = {hint.casefold() for hint in _texts(outline(type(answer)))}
    if echo := next((text for text in _texts(answer) if text.casefold() in hints), None):
        raise Rejected("echo", f"expected an answer, found the form's own {echo!r}")
    return answer


def _texts(value: Any) -> Iterator[str]:
    """The texts in lists, objects, and the required fields of forms."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Form):
        fields = type(value).model_fields.items()
        yield from _texts([getattr(value, name) for name, info in fields if info.is_required()])
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
