"""YAML's events as a small tree, and its plain words as values: nothing that plain data cannot hold gets in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ruamel.yaml import events

from harness.protocol.errors import CONTROL, shortened

MAX_DEPTH = 40
NULLS = ("", "~", "null", "Null", "NULL")
KNOWN = {
    **dict.fromkeys(NULLS),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
WHOLE = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
# YAML's versions disagree on it: octal in one, decimal in the other; and who writes it often means text.
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
REAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class NodeError(Exception):
    """What has no place in plain data; line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(slots=True)
class Node:
    """A scalar with its text, a sequence with its items, or a mapping with key, value, key, value, ...

    plain: without quotes, so that it may stand for a number, true, false or null.
    """

    kind: Literal["scalar", "sequence", "mapping"]
    line: int
    column: int
    text: str = ""
    plain: bool = False
    items: list[Node] = field(default_factory=list)


def compose(stream: Iterable[Any]) -> Node | None:
    """The one document of a stream of events, None if it has none; raises NodeError."""
    top: Node | None = None
    open_nodes: list[Node] = []
    anchors: dict[str, Node] = {}
    documents = 0
    for event in stream:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, events.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise NodeError("a second document begins, where a file holds one", line, column)
        elif isinstance(event, (events.SequenceEndEvent, events.MappingEndEvent)):
            open_nodes.pop()
        elif isinstance(event, events.NodeEvent):
            node = _node(event, anchors, open_nodes, line, column)
            if open_nodes:
                open_nodes[-1].items.append(node)
            else:
                top = node
            if isinstance(event, (events.SequenceStartEvent, events.MappingStartEvent)):
                open_nodes.append(node)
                if len(open_nodes) > MAX_DEPTH:
                    raise NodeError(f"deeper than {MAX_DEPTH} levels", line, column)
    return None if top is not None and top.plain and not top.text else top


def _node(event: Any, anchors: dict[str, Node], inside: list[Node], line: int, column: int) -> Node:
    if isinstance(event, events.AliasEvent):
        if event.anchor not in anchors:
            raise NodeError(f"no anchor &{event.anchor} stands before it", line, column)
        if any(anchors[event.anchor] is node for node in inside):
            raise NodeError(f"*{event.anchor} stands inside what it names", line, column)
        return anchors[event.anchor]
    # The tag `!` alone says no more than quotes do.
    tag = event.tag or "!"
    if tag != "!":
        raise NodeError(f"tags have no meaning here, got {shortened(tag)}", line, column)
    if isinstance(event, events.ScalarEvent):
        node = Node("scalar", line, column, event.value, bool(event.implicit[0]) and not event.style)
    else:
        node = Node("sequence" if isinstance(event, events.SequenceStartEvent) else "mapping", line, column)
    if event.anchor is not None:
        anchors[event.anchor] = node
    return node


def scalar(node: Node) -> Any:
    """What a scalar stands for; raises NodeError for what is no finite number or text that can be shown."""
    text = node.text
    if not node.plain:
        return quoted(node)
    if text in KNOWN:
        return KNOWN[text]
    if LEADING_ZERO.fullmatch(text):
        said = f"expected a number without leading zeros, or text in quotes, got {text}"
        raise NodeError(said, node.line, node.column)
    if WHOLE.fullmatch(text) or BASED.fullmatch(text):
        return _whole(node, 10 if WHOLE.fullmatch(text) else 0)
    if REAL.fullmatch(text) or NOT_FINITE.fullmatch(text):
        value = float(text.replace(".inf", "inf").replace(".nan", "nan")) if REAL.fullmatch(text) else math.inf
        if not math.isfinite(value):
            raise NodeError(f"expected a finite number, got {shortened(text)}", node.line, node.column)
        return value
    return quoted(node)


def _whole(node: Node, base: int) -> int:
    # Python reads no decimal number of more than 4300 digits.
    value = int(node.text, base) if len(node.text) <= 100 else 1 << 63
    if value.bit_length() > 63:
        raise NodeError(f"expected a number of at most 63 bits, got {shortened(node.text)}", node.line, node.column)
    return value


def quoted(node: Node) -> str:
    """Return a scalar's text; raises NodeError for text that cannot be shown."""
    bad = CONTROL.search(node.text)
    if bad:
        raise NodeError(f"expected plain text, got the invisible character {bad[0]!r}", node.line, node.column)
    return node.text
