"""YAML's events to values: PyYAML's kinds, each key once, and never more than the bounds allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import yaml
from yaml import events
from yaml.nodes import Node, ScalarNode

LONGEST = 100_000  # characters of one text: more than a prompt or an answer has
LONGEST_NUMBER = 100  # characters: what a long one takes grows with the square of its digits
DEEPEST = 64  # lists and mappings inside each other
MOST_VALUES = 1_000_000  # keys and values, aliases written out
MOST_BY_ALIASES = 10  # times as many values as are written: aliases for what holds aliases multiply

QUOTES = "texts with : # & * or quotes go in quotes"
TAG = "tag:yaml.org,2002:"
STRING, MERGE = f"{TAG}str", f"{TAG}merge"


class DocumentError(ValueError):
    """What makes a document unreadable, and the line where."""

    def __init__(self, problem: str, line: int = 1):
        self.line = line
        super().__init__(problem)


def line_of(found: Node | events.Event) -> int:
    return found.start_mark.line + 1


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's kinds of values (YAML 1.1: `no` is false, but `y` a text), dates aside: they stay text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regex) for tag, regex in kinds if tag != f"{TAG}timestamp"]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    start: events.CollectionStartEvent
    before: int  # values in the document before it
    value: list | dict
    height: int = 1  # lists and mappings inside each other, itself too
    lines: dict[Any, int] = field(default_factory=dict)  # of the keys
    merged: list[Any] = field(default_factory=list)  # what `<<` adds
    key: Any = None
    has_key: bool = False


class Reader:
    """Values from PyYAML's events: its own constructor keeps the last of two equal keys without a word, and its tree
    of nodes takes longer to collect as garbage than to read. Nothing here calls itself, however deep a file is."""

    def __init__(self, content: str):
        self.loader = Loader(content)
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int] | None] = {}  # value, values in it, height; None: still open
        self.documents = 0
        self.written = self.values = 0  # as they are written, and with aliases written out
        self.root: Any = None
        self.problems: list[tuple[int, str]] = []
        plain, quoted = True, False
        self.plain_tag = lru_cache(4096)(lambda text: self.loader.resolve(ScalarNode, text, (plain, quoted)))
        kinds = ("int", "float", "bool", "null")
        self.scalars = {TAG + kind: getattr(self.loader, f"construct_yaml_{kind}") for kind in kinds}

    def read(self) -> Any:
        kinds = {
            events.ScalarEvent: self._scalar,
            events.MappingStartEvent: self._start,
            events.SequenceStartEvent: self._start,
            events.MappingEndEvent: self._end,
            events.SequenceEndEvent: self._end,
            events.AliasEvent: self._alias,
            events.DocumentStartEvent: self._document,
        }
        while event := self.loader.get_event():
            if handle := kinds.get(type(event)):
                handle(event)
        return self.root

    def _document(self, event: events.DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            raise DocumentError(f"expected YAML (one document, not several; {QUOTES})", line_of(event))

    def _count(self, event: events.NodeEvent, values: int = 1, height: int = 0) -> None:
        """Raise where the document grows past its bounds, before it does."""
        self.written += 1
        self.values += values
        if self.values > MOST_VALUES:
            raise DocumentError(f"expected at most {MOST_VALUES:,} values", line_of(event))
        if height and len(self.open) + height > DEEPEST:
            raise DocumentError(f"expected at most {DEEPEST} lists and mappings inside each other", line_of(event))
        if values > 1 and self.values > 1000 + MOST_BY_ALIASES * self.written:
            problem = f"expected aliases (*) for a few values, found some for {values:,} at once"
            raise DocumentError(problem, line_of(event))

    def _anchor(self, event: events.NodeEvent, found: tuple[Any, int, int] | None) -> None:
        if self.anchors.get(event.anchor):
            raise DocumentError(f"expected each anchor once, found &{event.anchor} again", line_of(event))
        self.anchors[event.anchor] = found

    def _scalar(self, event: events.ScalarEvent) -> None:
        self._count(event)
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.plain_tag(event.value) if event.implicit[0] else STRING
        inside = self.open[-1] if self.open else None
        if tag == MERGE and inside and isinstance(inside.value, dict) and not inside.has_key:
            self._key(inside, MERGE, event)
        else:
            self._add(self._scalar_value(event, tag), event)

    def _scalar_value(self, event: events.ScalarEvent, tag: str) -> Any:
        limit = LONGEST if tag == STRING else LONGEST_NUMBER
        if len(event.value) > limit:
            kind = "text" if tag == STRING else "number"
            problem = f"expected a {kind} of at most {limit:,} characters, found {len(event.value):,}"
            raise DocumentError(problem, line_of(event))
        if tag == STRING:
            return event.value
        if tag not in self.scalars:
            raise _unknown(tag, event)
        try:
            return self.scalars[tag](ScalarNode(tag, event.value))
        except (ValueError, LookupError, OverflowError) as error:
            found = f"{event.value!r} is no {tag.removeprefix(TAG)}"
            raise DocumentError(f"expected YAML ({found}; {QUOTES})", line_of(event)) from error

    def _start(self, event: events.CollectionStartEvent) -> None:
        self._count(event, height=1)
        value, tag = ({}, "map") if isinstance(event, events.MappingStartEvent) else ([], "seq")
        if event.tag not in (None, "!", TAG + tag):
            raise _unknown(event.tag, event)
        if event.anchor:
            self._anchor(event, None)
        self.open.append(_Open(event, self.values - 1, value))

    def _end(self, event: events.CollectionEndEvent) -> None:
        done = self.open.pop()
        for merged in done.merged:
            done.value = self._mappings(merged, done.start) | done.value
        self._add(done.value, done.start, self.values - done.before, done.height)

    def _alias(self, event: events.AliasEvent) -> None:
        if event.anchor not in self.anchors:
            raise DocumentError(f"expected YAML (no anchor &{event.anchor} before; {QUOTES})", line_of(event))
        found = self.anchors[event.anchor]
        if found is None:
            self.problems.append((line_of(event), f"found *{event.anchor} inside of what it stands for"))
        value, values, height = found or (None, 1, 0)
        self._count(event, values, height)
        self._put(value, event, height)

    def _add(self, value: Any, event: events.NodeEvent, values: int = 1, height: int = 0) -> None:
        if event.anchor:
            self._anchor(event, (value, values, height))
        self._put(value, event, height)

    def _put(self, value: Any, event: events.NodeEvent, height: int) -> None:
        """A value goes where it belongs: into what is open, as a key, or as the document."""
        if not self.open:
            self.root = value
            return
        inside = self.open[-1]
        if height >= inside.height:
            inside.height = height + 1
        if isinstance(inside.value, list):
            inside.value.append(value)
        elif not inside.has_key:
            self._key(inside, value, event)
        else:
            inside.has_key = False
            if inside.key == MERGE:
                inside.merged.append(value)
            else:
                inside.value[inside.key] = value

    def _key(self, inside: _Open, key: Any, event: events.NodeEvent) -> None:
        if isinstance(key, dict | list):
            raise DocumentError(f"expected YAML (found unhashable key; {QUOTES})", line_of(event))
        if key in inside.lines:
            problem = f"{str(key)[:80]}: expected each key once, found it on line {inside.lines[key]} too"
            self.problems.append((line_of(event), problem))
        inside.lines[key] = line_of(event)
        inside.key, inside.has_key = key, True

    def _mappings(self, merged: Any, event: events.Event) -> dict:
        """What `<<` adds: a mapping, or several, of which the first that has a key counts."""
        mappings = merged if isinstance(merged, list) else [merged]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise DocumentError(f"expected YAML (<< takes a mapping or a list of them; {QUOTES})", line_of(event))
        return {key: value for mapping in reversed(mappings) for key, value in mapping.items()}


def _unknown(tag: str, event: events.Event) -> DocumentError:
    return DocumentError(f"expected YAML (unknown tag {tag.replace(TAG, '!!')!r}; {QUOTES})", line_of(event))
