"""A YAML file as plain data in which every value still knows its file, line and column."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from harness.config.language.document import Document, Loc, Mark, offending_line, remember
from harness.config.language.yaml_nodes import NULLS, Node, NodeError, compose, quoted, scalar
from harness.protocol.errors import CONTROL, UsageError, shortened

MAX_BYTES = 150_000
MAX_VALUES = 100_000
MERGE = "<<"
NUMBER_OF_PYTHON = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.(?:0|[0-9]*[1-9]))?")


Reading = Callable[[Node, Loc], Any]


def read_value(node: Node, loc: Loc) -> Any:
    """Return what a scalar means in a suite or a system.

    The default of a setting, which jobs hold as text, is a number only as Python writes it: 0123 and 1.50 are text.
    """
    is_default = len(loc) == 3 and loc[0] == "settings" and loc[-1] == "default"
    if is_default and node.plain and node.text not in NULLS and not NUMBER_OF_PYTHON.fullmatch(node.text):
        return quoted(node)
    return scalar(node)


def read_text(node: Node, loc: Loc) -> Any:
    """Return a scalar as it stands, whatever YAML takes it for; None where nothing stands."""
    return None if node.plain and not node.text else quoted(node)


def parse(path: Path, may_be_empty: bool = False, read: Reading = read_value) -> Document:
    """The file's top-level mapping as plain data; raises UsageError with file:line:column."""
    text = _read(path)
    remember(path, text)
    bad = CONTROL.search(text)
    if bad:
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise _wrong(path, line, column, f"expected plain text, got the invisible character {bad[0]!r}")
    try:
        tree = compose(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        raise _not_yaml(path, text, error) from None
    except NodeError as error:
        raise _wrong(path, error.line, error.column, str(error)) from None
    # A YAML library answers what is no YAML with exceptions of every kind.
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as YAML ({shortened(str(error))})") from None
    if tree is None and may_be_empty:
        return Document(path, {}, {})
    if tree is None or tree.kind != "mapping":
        raise _wrong(path, 1, 1, "expected a mapping of keys at the top of the file")
    try:
        return _Reader(path, read).document(tree)
    except NodeError as error:
        raise _wrong(path, error.line, error.column, str(error)) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES // 1000} kB, which no suite or system needs")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        said = f"expected UTF-8 text, got the byte 0x{data[error.start]:02x}"
        raise UsageError(f"{path}:{line}:{column}: {said}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wrong(path: Path, line: int, column: int, message: str) -> UsageError:
    return UsageError(f"{path}:{line}:{column}: {message}{offending_line(path, line)}")


def _not_yaml(path: Path, text: str, error: MarkedYAMLError) -> UsageError:
    """What is wrong at the place where it can be mended: for what never ends, where it begins."""
    said = (error.problem or error.context or "not YAML").splitlines()[0]
    mark = error.problem_mark or error.context_mark
    endless = mark is not None and mark.index >= len(text.rstrip())
    if error.context_mark and (endless or "could not find expected ':'" in said):
        mark = error.context_mark
        said = f"{error.context}: {said}"
    said = said.replace("'<stream end>'", "the end of the file").replace("end of stream", "end of the file")
    if "'\\t'" in said:
        said += " (indent with spaces, not with tabs)"
    elif mark is not None and "{{" in text[mark.index - 1 : mark.index + 2]:
        said += " (quote text that holds {{ }})"
    return _wrong(path, mark.line + 1, mark.column + 1, said) if mark else UsageError(f"{path}: {said}")


class _Reader:
    """Nodes -> plain data and marks, refusing what has no place in plain data."""

    def __init__(self, path: Path, read: Reading) -> None:
        self.path, self.read = path, read
        self.marks: dict[Loc, Mark] = {}
        self.values = 0

    def document(self, tree: Node) -> Document:
        data = self.plain(tree, ())
        return Document(self.path, data, self.marks)

    def plain(self, node: Node, loc: Loc) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise NodeError(f"more than {MAX_VALUES} values, aliases written out", node.line, node.column)
        if node.kind == "scalar":
            return self.read(node, loc)
        if node.kind == "mapping":
            return self.mapping(node, loc)
        found = []
        for index, item in enumerate(node.items):
            self.marks[(*loc, index)] = Mark(self.path, item.line, item.column)
            found.append(self.plain(item, (*loc, index)))
        return found

    def mapping(self, node: Node, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Node] = []
        for key, value in zip(node.items[::2], node.items[1::2], strict=True):
            if key.plain and key.text == MERGE:
                merged += value.items if value.kind == "sequence" else [value]
                continue
            name = self.read(key, ()) if key.kind == "scalar" else None
            if not isinstance(name, str) or not name.isprintable():
                got = shortened(key.text) if key.kind == "scalar" else f"a {key.kind} (quote text that holds {{{{ }}}})"
                raise NodeError(f"keys are words (or in quotes), got {got}", key.line, key.column)
            if name in found:
                raise NodeError(f"key {shortened(name)} stands in it twice", key.line, key.column)
            self.marks[(*loc, name)] = Mark(self.path, key.line, key.column)
            found[name] = self.plain(value, (*loc, name))
        for other in merged:
            self.merge(found, other, loc)
        return found

    def merge(self, found: dict[str, Any], other: Node, loc: Loc) -> None:
        """Add what `<<` brings in, below the mapping's own keys."""
        if other.kind != "mapping":
            raise NodeError(f"{MERGE} takes mappings", other.line, other.column)
        marks, self.marks = self.marks, {}
        for name, value in self.mapping(other, ()).items():
            if name not in found:
                found[name] = value
                marks.update({(*loc, *at): mark for at, mark in self.marks.items() if at[0] == name})
        self.marks = marks
