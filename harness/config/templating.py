"""Compile plain data with expressions once, and render them for every combination of a suite's axes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from harness.config import expressions
from harness.config.document import Document, KeyPath, format_key_path, iter_strings
from harness.config.evaluation import ExpressionError, check_size
from harness.config.expressions import Expression
from harness.protocol.errors import shorten

# Sections whose values may read each other by name.
NAMED_SECTIONS: tuple[KeyPath, ...] = (("variables",), ("parameters",))
Values = Mapping[str, Any]
Renderer = Callable[[Values], Any]


@dataclass(frozen=True)
class Template:
    """Named values, some of which contain expressions."""

    constants: dict[str, Any]
    renderers: tuple[tuple[str, Renderer], ...]
    """The names of the other values and the functions that compute them.

    The order lets a caller add each result to the values before the next function, which may read it.
    """

    def render(self, values: Values) -> dict[str, Any]:
        """Return the constants and the rendered values, which must not read one another."""
        if not self.renderers:
            return self.constants
        return {**self.constants, **{name: render(values) for name, render in self.renderers}}


class TemplateCompiler:
    """A compiler of parts of a document; expressions may also read the attributes of `namespaces`."""

    def __init__(self, document: Document, namespaces: Mapping[str, Collection[str] | None]) -> None:
        self.document = document
        self.namespaces = namespaces

    def compile(self, data: Mapping[str, Any], key_path: KeyPath) -> Template:
        """Compile the mapping at a key path; raise UsageError for unknown attributes and for circular values."""
        names = set(data) if key_path in NAMED_SECTIONS else set()
        reads = {name: _find_names(value) & names for name, value in data.items()}
        try:
            order = list(TopologicalSorter(reads).static_order())
        except CycleError as error:
            cycle = " reads ".join(error.args[1])
            raise self.document.make_error((*key_path, error.args[1][0]), f"circular {key_path[-1]}: {cycle}") from None
        renderers = {name: self.compile_value(value, (*key_path, name)) for name, value in data.items()}
        constants = {name: value for name, value in data.items() if renderers[name] is None}
        return Template(constants, tuple((name, render) for name in order if (render := renderers[name]) is not None))

    def compile_value(self, value: Any, key_path: KeyPath) -> Renderer | None:
        """Return a function of the known values, or None for data without expressions."""
        parts = {
            path: self._check_and_memoize(expressions.parse(text), (*key_path, *path))
            for path, text in iter_strings(value)
            if expressions.is_expression(text)
        }
        if not parts:
            return None
        if () in parts:
            return parts[()]

        def render(values: Values) -> Any:
            try:
                return check_size(_render(value, (), parts, values))
            except ExpressionError as error:
                raise self.document.make_error(key_path, f"{format_key_path(key_path)}: {error}") from None

        return render

    def compile_condition(self, text: str, key_path: KeyPath) -> Renderer:
        """Return a condition as a function of the known values."""
        return self._check_and_memoize(expressions.parse_condition(text), key_path)

    def _check_and_memoize(self, expression: Expression, key_path: KeyPath) -> Renderer:
        """Check the attributes of namespaces, and return a function that evaluates equal inputs only once.

        The names of axes, variables and parameters have been checked when the suite was loaded.
        """
        names = sorted(expression.names - set(self.namespaces))
        if message := expression.describe_name_error(names, self.namespaces):
            raise self.document.make_error(key_path, f"{format_key_path(key_path)}: {message}")
        results: dict[tuple[Any, ...], Any] = {}

        def render(values: Values) -> Any:
            key = tuple([_make_key(values.get(name)) for name in names])
            if key not in results:
                try:
                    results[key] = expression(values)
                except ExpressionError as error:
                    inputs = ", ".join(f"{name} = {shorten(values.get(name))}" for name in names)
                    message = f"{format_key_path(key_path)}: {error}" + (f" (where {inputs})" if inputs else "")
                    raise self.document.make_error(key_path, message) from None
            return results[key]

        return render


def _make_key(value: Any) -> Any:
    """Return a hashable key that differs for different values, even for 1, 1.0 and True."""
    return (type(value), value) if isinstance(value, (bool, int, float, str)) else repr(value)


def _find_names(data: Any) -> set[str]:
    texts = [text for _, text in iter_strings(data) if expressions.is_expression(text)]
    return {name for text in texts for name in expressions.parse(text).names}


def _render(node: Any, key_path: KeyPath, parts: Mapping[KeyPath, Renderer], values: Values) -> Any:
    if key_path in parts:
        return parts[key_path](values)
    if isinstance(node, dict):
        return {key: _render(value, (*key_path, key), parts, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_render(value, (*key_path, k), parts, values) for k, value in enumerate(node)]
    return node
