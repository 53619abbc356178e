"""Expressions `{{ ... }}` in suites and systems: only arithmetic, comparisons and conditionals over named values.

Jinja2 parses an expression but executes nothing. A syntax tree may contain only the kinds of node in ALLOWED, the
filters in FILTERS, and attributes of namespaces (`system.nodes`); harness.config.evaluation evaluates it within bounds.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from harness.config.evaluation import (
    FILTER_ARGUMENTS,
    FILTERS,
    ExpressionError,
    Function,
    Placeholder,
    Values,
    ValueUnavailable,
    build_function,
)
from harness.protocol.errors import CONTROL, MAX_VALUE_LENGTH, did_you_mean, shorten
from harness.protocol.upgrade import find_new_name

ALLOWED = (
    nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.BinExpr, nodes.UnaryExpr,
    nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Filter, nodes.Getitem, nodes.Getattr, nodes.Concat,
    nodes.TemplateData, nodes.Output, nodes.Template, nodes.Keyword,
)  # fmt: skip
# The maximum number of characters of an expression, and of nested calls of Python while it is parsed.
MAX_LENGTH = 2000
MAX_RECURSION = 1000
# Exceptions that an evaluation may raise because of its values: wrong types, a division by zero, a missing item.
EVALUATION_ERRORS = (
    ExpressionError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip
SINGLE_EXPRESSION = re.compile(r"^\s*\{\{((?:(?!\{\{|\}\}).)*)\}\}\s*$", re.DOTALL)
# The beginnings of messages of Jinja2, and the messages that replace them.
FRIENDLY_MESSAGES = (
    (re.compile("unexpected 'end of|Expected an expression"), "unexpected end of expression"),
    (re.compile("expected token 'end of"), "two values with no operator between them"),
)
PARSER = Environment(autoescape=False, keep_trailing_newline=True)


@dataclass(frozen=True)
class Expression:
    """Compiled text with `{{ }}`, or a compiled condition, which may lack the braces."""

    text: str
    """The text as the user wrote it."""
    names: frozenset[str]
    """All names that the expression reads."""
    attributes: frozenset[tuple[str, str]]
    """The (namespace, attribute) pairs that the expression reads."""
    value_names: frozenset[str]
    """Names that the expression reads as values, not as namespaces."""
    function: Function
    """The function that computes the value from the values of names."""

    def __call__(self, values: Values) -> Any:
        """Evaluate the expression.

        Returns:
            A value of any plain type for a condition or a single `{{ }}`, otherwise text.

        Raises:
            ExpressionError: the expression cannot be evaluated for these values.
        """
        try:
            return self.function(values)
        except EVALUATION_ERRORS as error:
            kind = ValueUnavailable if isinstance(error, ValueUnavailable) else ExpressionError
            message = error.args[-1] if isinstance(error, OverflowError) else error
            raise kind(f"{message} in {_quote(self.text)}") from None

    def describe_name_error(
        self, known: Collection[str], namespaces: Mapping[str, Collection[str] | None]
    ) -> str | None:
        """Return a message about the first name or attribute that is unknown or misused, or None if all are valid.

        Args:
            known: The names that have a value.
            namespaces: The attributes of each namespace; None if it may have any.
        """
        text = _quote(self.text)
        for name in sorted(self.names):
            if name not in known and name not in namespaces:
                return f"unknown name {name!r}{_hint(name, [*known, *namespaces])} in {text}"
        for name in sorted(self.value_names & set(namespaces)):
            example = min(namespaces[name] or (), default="NAME")
            return f"{name!r} is a namespace; use an attribute such as {name}.{example} in {text}"
        for namespace, attribute in sorted(self.attributes):
            if namespace not in namespaces:
                return f"only {', '.join(namespaces)} have attributes, got {namespace}.{attribute} in {text}"
            attributes = namespaces[namespace]
            if attributes is not None and attribute not in attributes:
                return f"{namespace} has no {attribute!r}{_hint(attribute, attributes)} in {text}"
        return None


def _hint(name: str, known: Collection[str]) -> str:
    """Return a hint about an unknown name: its new name if it was renamed, otherwise the nearest known names."""
    new = find_new_name(name, known)
    return did_you_mean(name, known) if new is None else f" (it is now called {new!r})"


def is_expression(value: Any) -> bool:
    """Return whether a value is text that contains an expression."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


@cache
def parse(text: str) -> Expression:
    """Check and compile text that contains `{{ }}`; raise ExpressionError if it is invalid."""
    return _compile(text, text)


@cache
def parse_condition(text: str) -> Expression:
    """Check and compile one expression, with or without braces, as in `where`; raise ExpressionError if invalid."""
    single = SINGLE_EXPRESSION.match(text.strip())
    inner = single[1] if single else text
    if is_expression(inner) or "}}" in inner:
        raise ExpressionError(f"expected a single expression, got {_quote(text)}")
    return _compile("{{ " + inner + " }}", text)


def _compile(code: str, text: str) -> Expression:
    """Compile code with `{{ }}`; messages quote `text`, which the user wrote."""
    if len(code) > MAX_LENGTH:
        raise ExpressionError(f"the expression has more than {MAX_LENGTH} characters")
    if "{%" in code or "{#" in code:
        raise ExpressionError(f"only {{{{ }}}} is supported, not {{% %}} or {{# #}}, in {_quote(text)}")
    # another library may have raised the limit, and Jinja2's parser would overflow the C stack
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, MAX_RECURSION))
    try:
        return _build_expression(PARSER.parse(code), text)
    except TemplateError as error:
        message = error.message or "not an expression"
        message = next((friendly for pattern, friendly in FRIENDLY_MESSAGES if pattern.match(message)), message)
        raise ExpressionError(f"{message.rstrip('.')} in {_quote(text)}") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise ExpressionError(f"nested too deep: {_quote(text)}") from None
    finally:
        sys.setrecursionlimit(limit)


def _build_expression(tree: nodes.Template, text: str) -> Expression:
    for node in tree.find_all(nodes.Node):
        if message := _explain_refusal(node):
            raise ExpressionError(f"{message} in {_quote(text)}")
    names = list(tree.find_all(nodes.Name))
    attributes = [(node.node, node.attr) for node in tree.find_all(nodes.Getattr) if isinstance(node.node, nodes.Name)]
    namespace_ids = {id(name) for name, _ in attributes}
    parts = [node for output in tree.find_all(nodes.Output) for node in output.nodes]
    # white space around a single `{{ }}` does not turn its value into text
    visible = [node for node in parts if not (isinstance(node, nodes.TemplateData) and node.data.isspace())]
    function = build_function(visible[0] if len(visible) == 1 else nodes.Output(parts))
    return Expression(
        text=text,
        names=frozenset(node.name for node in names),
        attributes=frozenset((name.name, attribute) for name, attribute in attributes),
        value_names=frozenset(node.name for node in names if id(node) not in namespace_ids),
        function=lambda values: _to_plain_data(function(values)),
    )


def _quote(text: str) -> str:
    """Return the user's text in quotes, shortened if it is long."""
    return shorten(text) if len(text) > 2 * MAX_VALUE_LENGTH else repr(text)


def _explain_refusal(node: nodes.Node) -> str | None:  # noqa: PLR0911 - one return for each kind of node
    """Return why a node is not allowed, or None."""
    if not isinstance(node, ALLOWED):
        return f"{type(node).__name__.lower()} is not allowed"
    match node:
        case nodes.Filter():
            return _explain_filter_refusal(node)
        case nodes.Getattr(node=inner, attr=name) if not isinstance(inner, nodes.Name) or name.startswith("_"):
            return f"attribute {name!r} is not allowed"
        case nodes.Getitem(arg=item) if not isinstance(item, (nodes.Const, nodes.Name)):
            return "[...] takes a name or a constant"
        case nodes.CondExpr(expr2=None):
            return "an if needs an else"
        case nodes.Const(value=float() as value) if not math.isfinite(value):
            return f"{value} is not a finite number"
    return None


def _explain_filter_refusal(node: nodes.Filter) -> str | None:
    if node.name not in FILTERS:
        return f"unknown filter {node.name!r}{did_you_mean(node.name, FILTERS)}"
    known = FILTER_ARGUMENTS.get(node.name, ())
    unknown = [pair.key for pair in node.kwargs if pair.key not in known[len(node.args) :]]
    if unknown or len(node.args) > len(known) or node.dyn_args or node.dyn_kwargs:
        return f"filter {node.name!r} takes " + (
            f"only the arguments {' and '.join(known)}" if known else "no arguments"
        )
    return None


def _to_plain_data(value: Any) -> Any:
    """Return the value as plain data.

    Raises:
        ValueError: it contains another type, a number that is not finite, an integer of more than 63 bits, or text with
            control characters.
    """
    if isinstance(value, Placeholder):
        return value.text
    if isinstance(value, (list, tuple)):
        return [_to_plain_data(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_plain_data(item) for key, item in value.items()}
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"expected a number, text, a list or a mapping, got {shorten(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("the result has more than 63 bits")
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError("the text contains control characters")
    return value
