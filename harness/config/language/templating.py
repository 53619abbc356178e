"""Plain data with expressions in it, made ready once and filled in for each point of a suite's axes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from harness.config.language import expressions
from harness.config.language.document import Document, Loc
from harness.config.language.evaluation import ExpressionError
from harness.config.language.expressions import Expression
from harness.protocol.errors import shortened

NAMED: tuple[Loc, ...] = (("variables",), ("parameters",))
Values = Mapping[str, Any]
Fill = Callable[[Values], Any]


@dataclass(frozen=True)
class Template:
    """Named values of which some hold expressions.

    fixed: those that hold none. fills: functions of the known values for the others, none before one that it reads.
    """

    fixed: dict[str, Any]
    fills: tuple[tuple[str, Fill], ...]


class Templates:
    """Makes templates of one document, whose expressions may read what the namespaces hold besides their values."""

    def __init__(self, document: Document, namespaces: Mapping[str, Collection[str] | None]) -> None:
        self.document = document
        self.namespaces = namespaces

    def of(self, data: Mapping[str, Any], at: Loc) -> Template:
        """A mapping that stands at a place of the document; raises UsageError for names that have no value.

        The values of variables and parameters may read each other by name, in any order but a circle.
        """
        fills = {name: self.fill(value, (*at, name)) for name, value in data.items()}
        fixed = {name: data[name] for name, fill in fills.items() if fill is None}
        named = set(data) if at in NAMED else set()
        reads = {name: _names_read(data[name]) & named for name in data}
        try:
            order = list(TopologicalSorter(reads).static_order())
        except CycleError as error:
            circle = " reads ".join(error.args[1])
            raise self.document.error((*at, error.args[1][0]), f"{at[-1]} that read each other: {circle}") from None
        return Template(fixed, tuple((name, fill) for name in order if (fill := fills[name]) is not None))

    def fill(self, value: Any, at: Loc) -> Fill | None:
        """A function of the known values, or None for data without expressions."""
        parts = {loc: self._remembered(expressions.parse(text), (*at, *loc)) for loc, text in _found(value, ())}
        if not parts:
            return None
        return parts[()] if () in parts else lambda values: _filled(value, (), parts, values)

    def condition(self, text: str, at: Loc) -> Fill:
        """A condition as a function of the known values."""
        return self._remembered(expressions.condition(text), at)

    def _remembered(self, expression: Expression, at: Loc) -> Fill:
        """The expression, evaluated once for each set of values that it reads."""
        said = expression.unknown(expression.names - set(self.namespaces), self.namespaces)
        if said:
            raise self.document.error(at, f"{'.'.join(map(str, at))}: {said}")
        names = sorted(expression.names - set(self.namespaces))
        memory: dict[tuple[Any, ...], Any] = {}

        def fill(values: Values) -> Any:
            key = tuple(_key(values.get(name)) for name in names)
            if key not in memory:
                try:
                    memory[key] = expression(values)
                except ExpressionError as error:
                    read = ", ".join(f"{name} = {shortened(values.get(name))}" for name in names)
                    said = f"{'.'.join(map(str, at))}: {error}" + (f" (where {read})" if read else "")
                    raise self.document.error(at, said) from None
            return memory[key]

        return fill


def _key(value: Any) -> Any:
    """Something hashable that tells values apart, 1 from 1.0 and True too."""
    return (type(value), value) if isinstance(value, (bool, int, float, str)) else repr(value)


def _found(node: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _found(value, (*loc, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _found(value, (*loc, index))
    elif expressions.is_expression(node):
        yield loc, node


def _names_read(data: Any) -> set[str]:
    return {name for _, text in _found(data, ()) for name in expressions.parse(text).names}


def _filled(node: Any, loc: Loc, parts: Mapping[Loc, Fill], values: Values) -> Any:
    if loc in parts:
        return parts[loc](values)
    if isinstance(node, dict):
        return {key: _filled(value, (*loc, key), parts, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, (*loc, k), parts, values) for k, value in enumerate(node)]
    return node
