"""The `{{ ... }}` of suites and systems: arithmetic, comparison and choice over named values, and nothing else.

An expression is checked before it is ever evaluated: it may hold only the kinds of node in ALLOWED, the filters in
FILTERS, and an attribute only of a namespace (`system.nodes`). It runs in Jinja2's sandbox all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harness.errors import did_you_mean

Values = Mapping[str, Any]
ALLOWED = (
    nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.BinExpr, nodes.UnaryExpr,
    nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Filter, nodes.Getitem, nodes.Getattr, nodes.Concat,
    nodes.TemplateData, nodes.Output, nodes.Template, nodes.Keyword,
)  # fmt: skip
FILTERS = ("abs", "float", "int", "length", "lower", "max", "min", "round", "sum", "upper")
MAX_LENGTH = 2000
MAX_EXPONENT = 64
WHOLE = re.compile(r"^\s*\{\{((?:(?!\{\{|\}\}).)*)\}\}\s*$", re.DOTALL)
SAID = re.compile(r"^'?(?P<name>[\w.]+)'? is undefined$")


class ExpressionError(Exception):
    """What is wrong with an expression, in one line."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Operators that could fill the memory take numbers only."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse repeated text and powers without end."""
        for value in (left, right):
            if isinstance(value, StrictUndefined):
                str(value)
            if not isinstance(value, (int, float)):
                raise SecurityError(f"{operator} is for numbers, got {value!r}")
        if operator == "**" and (abs(right) > MAX_EXPONENT or abs(left) > 2**32):
            raise SecurityError(f"power {left} ** {right} is too large")
        return super().call_binop(context, operator, left, right)


SANDBOX = Sandbox(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
SANDBOX.globals.clear()


@dataclass(frozen=True)
class Expression:
    """Text with `{{ }}`, ready to be evaluated.

    names: what it reads. attributes: (namespace, attribute) pairs that it reads.
    """

    text: str
    names: frozenset[str]
    attributes: frozenset[tuple[str, str]]
    function: Callable[[Values], Any]

    def __call__(self, values: Values) -> Any:
        """Its value: of any plain type if the text is one `{{ }}` and no more, else text; raises ExpressionError."""
        try:
            return self.function(values)
        except TemplateError as error:
            said = SAID.match(error.message or "")
            what = f"unknown name {said['name']!r}{did_you_mean(said['name'], values)}" if said else error.message
            raise ExpressionError(f"{what} in {self.text!r}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise ExpressionError(f"{error} in {self.text!r}") from None

    def unknown(self, known: Collection[str], namespaces: Mapping[str, Collection[str] | None]) -> str | None:
        """What is wrong with the names it reads, if anything is; a namespace of None may hold any attribute."""
        for name in sorted(self.names):
            if name not in known and name not in namespaces:
                return f"unknown name {name!r}{did_you_mean(name, [*known, *namespaces])} in {self.text!r}"
        for space, attribute in sorted(self.attributes):
            if space not in namespaces:
                return f"attributes are for {', '.join(namespaces)}, got {space}.{attribute} in {self.text!r}"
            there = namespaces[space]
            if there is not None and attribute not in there:
                return f"{space} has no {attribute!r}{did_you_mean(attribute, there)} in {self.text!r}"
        return None


def is_expression(value: Any) -> bool:
    """Whether it is text that holds an expression."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


@cache
def parse(text: str) -> Expression:
    """Check and compile text that holds `{{ }}`; raises ExpressionError."""
    names, attributes = _checked(text)
    whole = WHOLE.match(text)
    if whole:
        compiled = SANDBOX.compile_expression(whole[1].strip(), undefined_to_none=False)
        return Expression(text, names, attributes, lambda values: _plain(compiled(**values)))
    template = SANDBOX.from_string(text)
    return Expression(text, names, attributes, template.render)


@cache
def condition(text: str) -> Expression:
    """Check and compile a bare expression, as `where` has it; raises ExpressionError."""
    bare = text.strip()
    inner = WHOLE.match(bare)
    expression = parse("{{ " + (inner[1] if inner else bare) + " }}")
    return Expression(text, expression.names, expression.attributes, expression.function)


def _checked(text: str) -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression of more than {MAX_LENGTH} letters")
    try:
        tree = SANDBOX.parse(text)
    except TemplateError as error:
        raise ExpressionError(f"{error.message} in {text!r}") from None
    except RecursionError:
        raise ExpressionError("an expression nested too deep") from None
    names, attributes = set(), set()
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, ALLOWED):
            raise ExpressionError(f"{type(node).__name__.lower()} is not allowed in {text!r}")
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise ExpressionError(f"unknown filter {node.name!r}{did_you_mean(node.name, FILTERS)} in {text!r}")
        if isinstance(node, nodes.Getattr):
            if not isinstance(node.node, nodes.Name) or node.attr.startswith("_"):
                raise ExpressionError(f"attribute {node.attr!r} is not allowed in {text!r}")
            attributes.add((node.node.name, node.attr))
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, (nodes.Const, nodes.Name)):
            raise ExpressionError(f"only a single item may be taken by [...] in {text!r}")
        if isinstance(node, nodes.Name):
            names.add(node.name)
    return frozenset(names), frozenset(attributes)


def _plain(value: Any) -> Any:
    if isinstance(value, StrictUndefined):
        str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a number of more than 63 bits")
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
