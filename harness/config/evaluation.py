"""Evaluation of checked expressions, with limits on the size of every intermediate result."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

from harness.protocol.errors import did_you_mean, shorten

Values = Mapping[str, Any]
Function = Callable[[Values], Any]
# The maximum number of characters and items in a value.
MAX_SIZE = 10_000
# The maximum depth of nested lists and mappings.
MAX_DEPTH = 40
# The maximum number of bits of an integer.
MAX_BITS = 2048
# The maximum number of decimal places for `round`.
MAX_PLACES = 20


class ExpressionError(Exception):
    """An expression is invalid or cannot be evaluated; the message is one line."""


class ValueUnavailable(ExpressionError):
    """The expression computes with a value that is known only in the job."""


@dataclass(frozen=True)
class Placeholder:
    """Shell text for a value that is known only in the job; expressions may only insert it into text."""

    text: str


def build_function(node: nodes.Node) -> Function:  # noqa: PLR0911 - one return for each kind of node
    """Return the function that evaluates a checked node.

    The function raises ExpressionError, or an exception of Python's operators such as TypeError or ZeroDivisionError.
    """
    match node:
        case nodes.Const(value=value):
            return lambda _: value
        case nodes.TemplateData(data=text):
            return lambda _: text
        case nodes.Name(name=name):
            return lambda values: _look_up(values, name)
        case nodes.Getattr(node=nodes.Name(name=namespace), attr=name):
            return lambda values: _look_up(values[namespace], name, namespace)
        case nodes.Concat(nodes=parts) | nodes.Output(nodes=parts):
            return _build_text([build_function(part) for part in parts])
        case nodes.CondExpr(test=test, expr1=first, expr2=nodes.Expr() as second):
            condition, if_true, if_false = _build_operand(test), build_function(first), build_function(second)
            return lambda values: if_true(values) if condition(values) else if_false(values)
        case nodes.And(left=left, right=right):
            evaluate_left, evaluate_right = _build_operand(left), _build_operand(right)
            return lambda values: evaluate_left(values) and evaluate_right(values)
        case nodes.Or(left=left, right=right):
            evaluate_left, evaluate_right = _build_operand(left), _build_operand(right)
            return lambda values: evaluate_left(values) or evaluate_right(values)
        case nodes.Compare(expr=first, ops=operands):
            return _build_comparison(_build_operand(first), [(o.op, _build_operand(o.expr)) for o in operands])
    return _build_operation(node)


def _build_operation(node: nodes.Node) -> Function:
    """Return the function of a node whose operands are all evaluated, unlike those of `and`, `or` and `if`."""
    operands: list[Any]
    match node:
        case nodes.List(items=operands) | nodes.Tuple(items=operands):
            operation: Callable[..., Any] = _make_list
        case nodes.Dict(items=pairs):
            operands, operation = [part for pair in pairs for part in (pair.key, pair.value)], _make_dict
        case nodes.BinExpr(left=left, right=right):
            operands, operation = [left, right], BINARY[node.operator]
        case nodes.UnaryExpr(node=inner):
            operands, operation = [inner], UNARY[node.operator]
        case nodes.Getitem(node=inner, arg=item):
            operands, operation = [inner, item], _get_item
        case nodes.Filter(node=nodes.Expr() as inner, name=name, args=arguments, kwargs=keywords):
            operands, operation = [inner, *arguments, *(pair.value for pair in keywords)], FILTERS[name]
            operation = _bind_keywords(operation, [str(pair.key) for pair in keywords])
        case _:
            raise ExpressionError(f"{type(node).__name__.lower()} is not allowed")
    functions = list(map(_build_operand, operands))
    return lambda values: check_size(operation(*[function(values) for function in functions]))


def _build_operand(node: nodes.Node) -> Function:
    """Return the function of an operand; it raises ValueUnavailable if the value is a placeholder."""
    if isinstance(node, nodes.Const):
        return build_function(node)
    inner = build_function(node)

    def evaluate(values: Values) -> Any:
        value = inner(values)
        if isinstance(value, Placeholder):
            raise ValueUnavailable(f"cannot compute with {value.text}, which only the job knows")
        return value

    return evaluate


def _build_text(parts: list[Function]) -> Function:
    """Return a function that joins the parts as text; the text is a placeholder if any part is one."""

    def evaluate(values: Values) -> str | Placeholder:
        result = [part(values) for part in parts]
        text = check_size("".join(part.text if isinstance(part, Placeholder) else str(part) for part in result))
        return Placeholder(text) if any(isinstance(part, Placeholder) for part in result) else text

    return evaluate


def _build_comparison(first: Function, others: list[tuple[str, Function]]) -> Function:
    """Return the function of a comparison such as `1 < n <= 8`; `others` are pairs of operator and operand."""

    def evaluate(values: Values) -> bool:
        left = first(values)
        for name, function in others:
            right = function(values)
            if not COMPARISONS[name](left, right):
                return False
            left = right
        return True

    return evaluate


def _look_up(values: Values, name: str, namespace: str = "") -> Any:
    if name not in values:
        if namespace == "settings":
            raise ExpressionError(f"the setting {name!r} has no value (give -S {name}=...)")
        raise ExpressionError(f"unknown name {name!r}{did_you_mean(name, values)}")
    return values[name]


def check_size(value: Any) -> Any:
    """Return the value unchanged; raise ExpressionError if it is too large."""
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ExpressionError(f"the result has more than {MAX_BITS} bits")
    elif isinstance(value, (str, list, dict)):
        _add_size(value, 0, 0)
    return value


def _add_size(value: Any, size: int, depth: int) -> int:
    """Return `size` plus the items and characters of a value without keys; raise ExpressionError above a limit."""
    if depth > MAX_DEPTH:
        raise ExpressionError(f"the result has more than {MAX_DEPTH} levels of nesting")
    if isinstance(value, str):
        size += len(value)
    elif isinstance(value, (list, dict)):
        for part in value if isinstance(value, list) else value.values():
            size = _add_size(part, size + 1, depth + 1)
    if size > MAX_SIZE:
        raise ExpressionError(f"the result has more than {MAX_SIZE} characters and items")
    return size


def _make_list(*values: Any) -> list[Any]:
    return list(values)


def _make_dict(*values: Any) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _get_item(container: Any, item: Any) -> Any:
    try:
        return container[item]
    except (LookupError, TypeError):
        raise ExpressionError(f"{shorten(container)} has no item {shorten(item)}") from None


def _restrict_to_numbers(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Restrict an operator to numbers; otherwise `*` would repeat strings and lists, and `%` would format strings."""

    def operate(left: Any, right: Any) -> Any:
        for value in (left, right):
            if not isinstance(value, (int, float, complex)):
                raise ExpressionError(f"{name} takes numbers, got {shorten(value)}")
        return function(left, right)

    return operate


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and left.bit_length() * right > MAX_BITS:
        raise ExpressionError(f"the power has more than {MAX_BITS} bits")
    return left**right


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if isinstance(precision, bool) or not isinstance(precision, int) or abs(precision) > MAX_PLACES:
        raise ExpressionError(f"round takes at most {MAX_PLACES} places, got {shorten(precision)}")
    if method == "common":
        return round(value, precision)
    if method not in ("ceil", "floor"):
        raise ExpressionError(f"round takes 'common', 'ceil' or 'floor', got {shorten(method)}")
    return getattr(math, method)(value * 10**precision) / 10**precision


def _make_extreme_filter(function: Callable[..., Any]) -> Callable[[Iterable[Any]], Any]:
    """Return a filter that applies min or max to a list and compares text without regard to case."""

    def choose(values: Iterable[Any]) -> Any:
        items = list(values)
        if not items:
            raise ExpressionError(f"{function.__name__} needs at least one item, got an empty list")
        return function(items, key=lambda value: value.lower() if isinstance(value, str) else value)

    return choose


def _bind_keywords(operation: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return a function of positional values that passes the last ones to the operation by name."""
    if not names:
        return operation
    return lambda *values: operation(*values[: -len(names)], **dict(zip(names, values[-len(names) :], strict=True)))


# The functions of operators and filters, by the names that Jinja2 gives them.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "/": operator.truediv, "//": operator.floordiv,
    "*": _restrict_to_numbers("*", operator.mul), "%": _restrict_to_numbers("%", operator.mod),
    "**": _restrict_to_numbers("**", _power),
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "+": operator.pos, "not": operator.not_}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda a, b: a in b, "notin": lambda a, b: a not in b,
}  # fmt: skip
FILTERS: dict[str, Callable[..., Any]] = {
    "abs": abs, "float": float, "int": int, "length": len, "lower": lambda value: str(value).lower(),
    "max": _make_extreme_filter(max), "min": _make_extreme_filter(min),
    "round": _round, "sum": sum, "upper": lambda value: str(value).upper(),
}  # fmt: skip
# The optional arguments of filters, in order; filters that are not listed have none.
FILTER_ARGUMENTS = {"round": ("precision", "method"), "int": ("base",)}
