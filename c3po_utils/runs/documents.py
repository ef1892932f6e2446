"""YAML documents, read within bounds: fast, with the line of every part, and an error where a file is made to hurt."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from c3po_utils.runs.document_reader import QUOTES, DocumentError, Loader, Reader, line_of

Loc = tuple[int | str, ...]  # where a value is, as keys and list places: ("feedbacks", 0, "metric", "name")
LARGEST = 32 * 2**20  # bytes of a file: 10,000 records take about 8 MiB


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """No search for garbage while there is none: it goes through all that is read, again and again.

    Of threads that overlap here, the one that found the collector on puts it on again, whoever is last.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Document:
    """A document's `value`; `problems` are (line, problem) of keys given twice and of aliases without an end."""

    content: str
    value: Any
    problems: list[tuple[int, str]]
    pairs: dict[int, dict[str, tuple[Node, Node]]] = field(default_factory=dict, repr=False)  # of mappings, by id

    @cached_property
    def _root(self) -> Node | None:
        """The parts with their lines; twice the work of reading, and only wanted where something is wrong."""
        loader = Loader(self.content)
        with no_collector():
            root = loader.get_single_node()
        loader.dispose()
        return root

    def line(self, loc: Loc) -> int:
        """The line, from 1, of the deepest part of `loc` that the document has."""
        node = self._root
        line = line_of(node) if node else 1
        for part in loc:
            if isinstance(node, MappingNode) and part in self._pairs(node):
                key, node = self._pairs(node)[part]
                line = line_of(key)
            elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = line_of(node)
            else:
                break
        return line

    def _pairs(self, node: MappingNode) -> dict[str, tuple[Node, Node]]:
        """Keys and values by key; of a key given twice, the last."""
        if id(node) not in self.pairs:
            self.pairs[id(node)] = {key.value: (key, value) for key, value in node.value if isinstance(key, ScalarNode)}
        return self.pairs[id(node)]


def load(content: str) -> Document:
    """The document in a YAML text. Raises DocumentError, with the line, for no YAML and for more than bounds allow."""
    reader = Reader(content)
    try:
        with no_collector():
            return Document(content, reader.read(), reader.problems)
    except yaml.reader.ReaderError as error:
        before = content.encode()[: error.position]
        raise DocumentError(f"expected YAML ({error.reason})", before.count(b"\n") + 1) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DocumentError(f"expected YAML ({error.problem}; {QUOTES})", line) from error
    finally:
        reader.loader.dispose()


def load_file(path: Path) -> Document:
    """The document in a file. Raises OSError, and DocumentError."""
    size = path.stat().st_size
    if size > LARGEST:
        raise DocumentError(f"expected a file of at most {LARGEST // 2**20} MiB, found {size // 2**20} MiB")
    try:
        return load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DocumentError(f"expected text in UTF-8 ({error.reason})", line) from error


def read_document(path: Path) -> Document:
    """The document in a file without problems. Raises OSError, and ValueError with file and line."""
    try:
        document = load_file(path)
    except DocumentError as error:
        raise ValueError(f"{path}, line {error.line}: {error}") from error
    if document.problems:
        raise ValueError("\n".join(f"{path}, line {line}: {problem}" for line, problem in sorted(document.problems)))
    return document


def read(path: Path) -> Any:
    """Its value. Raises as `read_document`."""
    return read_document(path).value
