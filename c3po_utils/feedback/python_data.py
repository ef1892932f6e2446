"""Data written as Python: read from the syntax tree, never run.

Texts, numbers, lists, mappings, names of such constants, `+` of texts and lists, f-strings of constants, patterns in
`re.compile`, and members of enums (`Metric.length`) are data. Everything else is code, and is refused where it stands.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.foreign import read_bytes

SOURCE_BYTES = 4 * 2**20  # the syntax tree takes a hundred times as much
DEPTH = 50  # of a value: lists in lists, names of names
SIZE = 2**20  # of a value: characters and items
PARENTS = 4  # folders above a module in which `a.b.c` is looked for
FLAGS = {"IGNORECASE": "i", "I": "i", "MULTILINE": "m", "M": "m", "DOTALL": "s", "S": "s", "VERBOSE": "x", "X": "x"}


@dataclass(frozen=True)
class Member:
    """A member of an enum, known by its names alone: `Metric.length`."""

    enum: str
    name: str


class NotData(ValueError):
    """A part of the source that is no data: its line, and what it is."""

    def __init__(self, node: ast.AST, found: str):
        self.line = getattr(node, "lineno", 1)
        super().__init__(f"expected constants, found {found}")


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises FeedbackError for what is no Python, too large, or nested too deeply."""
    source = read_bytes(path, SOURCE_BYTES)
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in texts, which are none of our business
            return ast.parse(source)
    except SyntaxError as error:
        raise FeedbackError([f"{path}, line {error.lineno or 1}: expected Python ({error.msg})"]) from error
    except (RecursionError, MemoryError) as error:  # the parser's stack, not the machine's memory
        raise FeedbackError([f"{path}: expected less deep nesting"]) from error
    except ValueError as error:
        raise FeedbackError([f"{path}: expected Python ({error})"]) from error


def assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement gives a value to, and the value."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) and statement.value is not None:
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value


def called(node: ast.Call) -> str:
    """The name of what is called, as in `Feedback` and `re.compile`."""
    match node.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return f"{module}.{name}"
    return "something without a name"


@dataclass
class Limits:
    """What may still be read of one value, in however many modules: characters and items, and how deep it is."""

    left: int = SIZE
    depth: int = 0


@dataclass
class Reader:
    """Values of one module's expressions. Names are its constants, or those of modules that it imports them from.

    Imported modules are looked for beside it and in the folders above, and read in the same way.
    """

    path: Path
    tree: ast.Module
    enums: frozenset[str]
    limits: Limits = field(default_factory=Limits)
    modules: dict[Path, Reader] = field(default_factory=dict)

    @cached_property
    def known(self) -> dict[str, ast.expr]:
        return {name: value for statement in self.tree.body for name, value in assigned(statement)}

    @cached_property
    def assigned(self) -> list[str]:
        return [name for statement in self.tree.body for name, _ in assigned(statement)]

    def value(self, node: ast.expr) -> Any:
        """Raises NotData where the source says anything else than data, too much or too deep."""
        self.limits.left, self.limits.depth = SIZE, 0
        try:
            return self._value(node)
        except RecursionError as error:
            raise NotData(node, "values nested too deeply") from error

    def _value(self, node: ast.expr) -> Any:
        self._spend(node, 1)
        if self.limits.depth > DEPTH:
            raise NotData(node, f"values nested more than {DEPTH} deep")
        read = READ.get(type(node))
        if read is None:
            raise NotData(node, f"code ({type(node).__name__})")
        self.limits.depth += 1
        try:
            return read(self, node)
        finally:
            self.limits.depth -= 1

    def _spend(self, node: ast.AST, size: int) -> None:
        self.limits.left -= size
        if self.limits.left < 0:
            raise NotData(node, f"a value of more than {SIZE} characters and items")

    def constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, str | int | float | None):
            raise NotData(node, f"a {type(node.value).__name__}")
        self._spend(node, len(node.value) if isinstance(node.value, str) else 0)
        return node.value

    def items(self, node: ast.List | ast.Tuple) -> list:
        found: list = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                found += self._of_kind(item.value, list)
            else:
                found.append(self._value(item))
        return found

    def mapping(self, node: ast.Dict) -> dict:
        found: dict = {}
        for key, each in zip(node.keys, node.values, strict=True):
            if key is None:
                found |= self._of_kind(each, dict)
            else:
                found[self._of_kind(key, str)] = self._value(each)
        return found

    def name(self, node: ast.Name) -> Any:
        if node.id in self.known:
            if self.assigned.count(node.id) > 1:
                raise NotData(node, f"the name {node.id!r}, which is given a value more than once")
            return self._value(self.known[node.id])
        source = self._imported(node.id)
        if source is None:
            raise NotData(node, f"the name {node.id!r}, which no constant here has")
        other, name = source
        try:
            return other._value(other.known[name])
        except NotData as error:
            raise NotData(node, f"{node.id!r}, which in {other.path}, line {error.line}, is no constant") from error

    def joined(self, node: ast.JoinedStr) -> str:
        return "".join(str(self._value(part)) for part in node.values)

    def formatted(self, node: ast.FormattedValue) -> str:
        if node.conversion != -1 or node.format_spec:
            raise NotData(node, "an f-string with a format")
        return str(self._of_kind(node.value, str | int))

    def sum(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        for kind in (str, list):
            if isinstance(node.op, ast.Add) and isinstance(left, kind) and isinstance(right, kind):
                return left + right
        raise NotData(node, f"code ({type(node.op).__name__} of {type(left).__name__} and {type(right).__name__})")

    def negative(self, node: ast.UnaryOp) -> int | float:
        if not isinstance(node.op, ast.USub):
            raise NotData(node, f"code ({type(node.op).__name__})")
        return -self._of_kind(node.operand, int | float)

    def item(self, node: ast.Subscript) -> Any:
        whole, key = self._value(node.value), self._value(node.slice)
        try:
            return whole[key]
        except (TypeError, KeyError, IndexError) as error:
            raise NotData(node, f"a part {key!r} that is not there") from error

    def member(self, node: ast.Attribute) -> Member:
        if isinstance(node.value, ast.Name) and node.value.id in self.enums:
            return Member(node.value.id, node.attr)
        raise NotData(node, f"code (the attribute {node.attr!r})")

    def pattern(self, node: ast.Call) -> str:
        """`re.compile("...", re.I)` as a text, its flags at its beginning."""
        if called(node) != "re.compile" or node.keywords or len(node.args) not in (1, 2):
            raise NotData(node, f"a call of {called(node)}")
        flags = "".join(sorted(self._flags(node.args[1]))) if node.args[1:] else ""
        return (f"(?{flags})" if flags else "") + self._of_kind(node.args[0], str)

    def _flags(self, node: ast.expr) -> set[str]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._flags(node.left) | self._flags(node.right)
        match node:
            case ast.Attribute(value=ast.Name(id="re"), attr=name) if name in FLAGS:
                return {FLAGS[name]}
        raise NotData(node, "other flags than those of re")

    def _of_kind(self, node: ast.expr, kind: Any) -> Any:
        found = self._value(node)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise NotData(node, f"a {type(found).__name__} where none can be")
        return found

    def _imported(self, name: str) -> tuple[Reader, str] | None:
        """The module that a name is imported from, and its name there; None where there is no such module."""
        for statement in self.tree.body:
            for alias in statement.names if isinstance(statement, ast.ImportFrom) else ():
                if (alias.asname or alias.name) == name and (path := self._module(statement)):
                    other = self._reader(path)
                    return (other, alias.name) if alias.name in other.known else None
        return None

    def _reader(self, path: Path) -> Reader:
        if path not in self.modules:
            self.modules[path] = Reader(path, parse(path), self.enums, self.limits, self.modules)
        return self.modules[path]

    def _module(self, statement: ast.ImportFrom) -> Path | None:
        inside = Path(*(statement.module or "__init__").split(".")).with_suffix(".py")
        if statement.level:
            folders = list(self.path.resolve().parents[statement.level - 1 : statement.level])
        else:
            folders = list(self.path.resolve().parents[: PARENTS + 1])
        return next((folder / inside for folder in folders if (folder / inside).is_file()), None)


READ: dict[type[ast.expr], Callable[..., Any]] = {
    ast.Constant: Reader.constant,
    ast.List: Reader.items,
    ast.Tuple: Reader.items,
    ast.Dict: Reader.mapping,
    ast.Name: Reader.name,
    ast.JoinedStr: Reader.joined,
    ast.FormattedValue: Reader.formatted,
    ast.BinOp: Reader.sum,
    ast.UnaryOp: Reader.negative,
    ast.Subscript: Reader.item,
    ast.Attribute: Reader.member,
    ast.Call: Reader.pattern,
}
