"""Load YAML files as plain data with the location of every value, and resolve `extends`.

ruamel.yaml composes the nodes. Its round-trip loader has the locations of keys too (`.lc`), but converts 0123 and 1.50
to numbers and takes 1.5 times as long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from harness.config import resources
from harness.config.document import Document, KeyPath, Location, cache_source, quote_line, raise_problems
from harness.protocol.errors import CONTROL, UsageError, shorten

# Limits of a file: its bytes, values and levels of nesting, and the bits of an integer.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_BITS = 150_000, 100_000, 40, 63
# The maximum number of files that extend one another.
MAX_EXTENDS = 10
MERGE_KEY = "<<"
NULLS = ("", "~", "null", "Null", "NULL")
CONSTANTS = {
    **dict.fromkeys(NULLS),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
DECIMAL_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
PREFIXED_INT = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
# YAML 1.1 reads a number with leading zeros as octal, YAML 1.2 as decimal, and most people who write one mean text.
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# A number as Python prints it.
PRINTED_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.(?:0|[0-9]*[1-9]))?")

ScalarReader = Callable[[ScalarNode, KeyPath], Any]


class YamlNodeError(Exception):
    """A node of a YAML file is not allowed; the message is the reason, and `mark` is the position."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.mark = mark


def load_with_bases(path: Path, kind: str, visited: tuple[Path, ...] = ()) -> Document:
    """Load a suite or system and overlay it on the file that it extends, if any.

    Args:
        path: The file to load.
        kind: suites or systems.
        visited: The files that extend this one, directly or not.

    Raises:
        UsageError: a file cannot be read, is not valid YAML, or extends itself.
    """
    document = load_yaml(path)
    if "extends" not in document.data:
        return document
    name = document.data["extends"]
    if not isinstance(name, str):
        raise document.make_error(("extends",), f"extends: expected the name or file of a base, got {shorten(name)}")
    visited = (*visited, path.resolve())
    try:
        base = resolve_base(path, kind, name)
    except UsageError as error:
        raise document.make_error(("extends",), f"extends: {error}") from None
    except OSError as error:
        raise document.make_error(("extends",), f"extends: {shorten(name)}: {error.strerror}") from None
    if base.resolve() in visited:
        raise document.make_error(("extends",), f"extends: {name!r} leads back to this file")
    if len(visited) > MAX_EXTENDS:
        raise document.make_error(("extends",), f"extends: more than {MAX_EXTENDS} files extend one another")
    overlay, base_document = document.drop("extends"), load_with_bases(base, kind, visited)
    # a file may remove a key of its base by `key: null`
    raise_problems(overlay.find_invalid_removals(base_document))
    return overlay.overlay_on(base_document)


def resolve_base(path: Path, kind: str, name: str) -> Path:
    """Return the file that `extends: name` in the file `path` refers to.

    A name with .yaml or .yml is a path relative to that file; any other name is a file next to it or a shipped one.
    """
    if name.endswith((".yaml", ".yml")):
        return resources.find_resource(kind, str(path.parent / name))
    neighbour = path.parent / f"{name}.yaml"
    if neighbour.is_file() and neighbour.resolve() != path.resolve():
        return neighbour
    return resources.find_resource(kind, name)


def read_value(node: ScalarNode, key_path: KeyPath) -> Any:
    """Return the value of a scalar in a suite or a system.

    Jobs read a setting as text. Its default is therefore a number only if Python prints that number with the same
    characters; 0123 and 1.50 are text.
    """
    is_default = len(key_path) == 3 and key_path[0] == "settings" and key_path[-1] == "default"
    if is_default and not node.style and node.value not in NULLS and not PRINTED_NUMBER.fullmatch(node.value):
        return _read_printable(node)
    return _read_scalar(node)


def read_text(node: ScalarNode, key_path: KeyPath) -> Any:
    """Return a scalar as text, even if YAML would read it as another type; None if it is empty."""
    return _read_printable(node) if node.style or node.value else None


def load_yaml(path: Path, may_be_empty: bool = False, read: ScalarReader = read_value) -> Document:
    """Load the file's top-level mapping as plain data.

    Args:
        path: The file.
        may_be_empty: Whether an empty file counts as an empty mapping.
        read: The function that converts scalars; read_text keeps all of them as text.

    Raises:
        UsageError: the file cannot be read or is not valid; the message begins with the file and the position.
    """
    text = _read(path)
    cache_source(path, text)
    if bad := CONTROL.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise _make_error(path, line, column, _describe_invisible(bad[0]))
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _Composer
        root = yaml.compose(text)
        if root is None or (isinstance(root, ScalarNode) and not root.style and not root.value):
            if may_be_empty:
                return Document(path, {}, {})
            root = None
        if not isinstance(root, MappingNode):
            raise _make_error(path, 1, 1, "expected a mapping of keys at the top of the file")
        builder = _DataBuilder(path, read)
        return Document(path, builder.build(root, ()), builder.locations)
    except YamlNodeError as error:
        raise _make_error(path, error.mark.line + 1, error.mark.column + 1, str(error)) from None
    except MarkedYAMLError as error:
        raise _make_syntax_error(path, text, error) from None
    except UsageError:
        raise
    # ruamel.yaml raises exceptions of every kind for text that is not YAML
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as YAML ({shorten(str(error))})") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES // 1000} kB, the limit for YAML files")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"expected UTF-8 text, got the byte 0x{data[error.start]:02x}"
        raise UsageError(f"{path}:{line}:{column}: {message}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _make_error(path: Path, line: int, column: int, message: str) -> UsageError:
    return UsageError(f"{path}:{line}:{column}: {message}{quote_line(path, line)}")


def _make_syntax_error(path: Path, text: str, error: MarkedYAMLError) -> UsageError:
    """Return the error at the location where the user can correct it: for an unclosed quote or bracket, its start."""
    message = (error.problem or error.context or "not YAML").splitlines()[0]
    mark = error.problem_mark or error.context_mark
    if message == "but found another document":
        return _make_error(
            path, mark.line + 1, mark.column + 1, "a second document begins, but a file contains only one"
        )
    is_unclosed = mark is not None and mark.index >= len(text.rstrip())
    if error.context_mark and (is_unclosed or "could not find expected ':'" in message):
        mark = error.context_mark
        message = f"{error.context}: {message}"
    message = message.replace("'<stream end>'", "the end of the file").replace("end of stream", "end of the file")
    if "'\\t'" in message:
        message += " (indent with spaces, not with tabs)"
    elif mark is not None and "{{" in text[mark.index - 1 : mark.index + 2]:
        message += " (put text that contains {{ }} in quotes)"
    return _make_error(path, mark.line + 1, mark.column + 1, message) if mark else UsageError(f"{path}: {message}")


def _describe_invisible(character: str) -> str:
    return f"expected plain text, got the invisible character {character!r}"


class _Composer(Composer):
    """ruamel's composer of nodes, which here refuses tags, deep nesting and recursive aliases."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self.warn_double_anchors = False
        self.ancestors: list[Any] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next node."""
        event = self.parser.peek_event()
        self.ancestors.append(parent)
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise YamlNodeError(f"no anchor &{event.anchor} is defined before this alias", event.start_mark)
            if any(self.anchors[event.anchor] is node for node in self.ancestors):
                raise YamlNodeError(f"*{event.anchor} refers to a node that contains it", event.start_mark)
        elif event.tag is not None:
            raise YamlNodeError(f"tags are not supported, got {shorten(event.tag)}", event.start_mark)
        elif isinstance(event, CollectionStartEvent) and len(self.ancestors) > MAX_DEPTH:
            raise YamlNodeError(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.ancestors.pop()
        return node


class _DataBuilder:
    """A builder that converts nodes to plain data and records the location of every key and item."""

    def __init__(self, path: Path, read: ScalarReader) -> None:
        self.path, self.read = path, read
        self.locations: dict[KeyPath, Location] = {}
        self.n_values = 0

    def build(self, node: Any, key_path: KeyPath) -> Any:
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            raise YamlNodeError(f"more than {MAX_VALUES} values with aliases expanded", node.start_mark)
        if isinstance(node, ScalarNode):
            return self.read(node, key_path)
        if isinstance(node, MappingNode):
            return self.build_mapping(node, key_path)
        values = []
        for index, item in enumerate(node.value):
            self._locate((*key_path, index), item)
            values.append(self.build(item, (*key_path, index)))
        return values

    def build_mapping(self, node: MappingNode, key_path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[Any] = []
        for key, value in node.value:
            if isinstance(key, ScalarNode) and not key.style and key.value == MERGE_KEY:
                merged += value.value if isinstance(value, SequenceNode) else [value]
                continue
            name = self.read(key, ()) if isinstance(key, ScalarNode) else None
            if not isinstance(name, str) or not name.isprintable():
                is_scalar = isinstance(key, ScalarNode)
                got = shorten(key.value) if is_scalar else f"a {key.id} (put text that contains {{{{ }}}} in quotes)"
                raise YamlNodeError(f"expected text as a key (numbers in quotes), got {got}", key.start_mark)
            if name in values:
                raise YamlNodeError(f"duplicate key {shorten(name)}", key.start_mark)
            self._locate((*key_path, name), key)
            values[name] = self.build(value, (*key_path, name))
        for other in merged:
            self._merge(values, other, key_path)
        return values

    def _merge(self, values: dict[str, Any], other: Any, key_path: KeyPath) -> None:
        """Add the keys of the mapping `other` after `<<` that the mapping itself does not have."""
        if not isinstance(other, MappingNode):
            raise YamlNodeError(f"expected a mapping or a list of mappings after {MERGE_KEY}", other.start_mark)
        locations, self.locations = self.locations, {}
        for name, value in self.build_mapping(other, ()).items():
            if name not in values:
                values[name] = value
                locations |= {
                    (*key_path, *inner): location for inner, location in self.locations.items() if inner[0] == name
                }
        self.locations = locations

    def _locate(self, key_path: KeyPath, node: Any) -> None:
        self.locations[key_path] = Location(self.path, node.start_mark.line + 1, node.start_mark.column + 1)


def _read_scalar(node: ScalarNode) -> Any:
    """Return the value of a scalar; raise YamlNodeError for non-finite numbers and invisible characters."""
    text = node.value
    if node.style:
        return _read_printable(node)
    if text in CONSTANTS:
        return CONSTANTS[text]
    if LEADING_ZERO.fullmatch(text):
        raise YamlNodeError(f"expected a number without leading zeros, or text in quotes, got {text}", node.start_mark)
    if DECIMAL_INT.fullmatch(text) or PREFIXED_INT.fullmatch(text):
        # Python refuses decimal numbers of more than 4300 digits
        value = int(text, 10 if DECIMAL_INT.fullmatch(text) else 0) if len(text) <= 100 else 1 << MAX_BITS
        if value.bit_length() > MAX_BITS:
            message = f"expected a number of at most {MAX_BITS} bits, got {shorten(text)}"
            raise YamlNodeError(message, node.start_mark)
        return value
    if FLOAT.fullmatch(text) or NOT_FINITE.fullmatch(text):
        number = float(text) if FLOAT.fullmatch(text) else math.inf
        if not math.isfinite(number):
            raise YamlNodeError(f"expected a finite number, got {shorten(text)}", node.start_mark)
        return number
    return _read_printable(node)


def _read_printable(node: ScalarNode) -> str:
    if bad := CONTROL.search(node.value):
        raise YamlNodeError(_describe_invisible(bad[0]), node.start_mark)
    text: str = node.value
    return text
