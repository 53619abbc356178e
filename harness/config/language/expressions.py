"""The `{{ ... }}` of suites and systems: arithmetic, comparison and choice over named values, and nothing else.

Jinja2 parses an expression, and runs nothing of it: a tree may hold only the kinds of node in ALLOWED, the filters in
FILTERS, and an attribute only of a namespace (`system.nodes`), and harness.config.language.evaluation evaluates it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from harness.config.language.evaluation import (
    ARGUMENTS,
    FILTERS,
    ExpressionError,
    Function,
    NotYetKnown,
    Placeholder,
    Values,
    build_function,
)
from harness.protocol.errors import CONTROL, VALUE_SHOWN, did_you_mean, shortened

ALLOWED = (
    nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.BinExpr, nodes.UnaryExpr,
    nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Filter, nodes.Getitem, nodes.Getattr, nodes.Concat,
    nodes.TemplateData, nodes.Output, nodes.Template, nodes.Keyword,
)  # fmt: skip
MAX_LENGTH = 2000
DEEPEST = 1000
# What comes of values of the wrong kind.
WRONG = (ExpressionError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
WHOLE = re.compile(r"^\s*\{\{((?:(?!\{\{|\}\}).)*)\}\}\s*$", re.DOTALL)
SAID_PLAINLY = (
    (re.compile("unexpected 'end of|Expected an expression"), "it ends before its end"),
    (re.compile("expected token 'end of"), "two values with no operator between them"),
)


PARSER = Environment(autoescape=False, keep_trailing_newline=True)


@dataclass(frozen=True)
class Expression:
    """Text with `{{ }}`, ready to be evaluated.

    names: what it reads. attributes: (namespace, attribute) pairs that it reads. bare: names read as values.
    """

    text: str
    names: frozenset[str]
    attributes: frozenset[tuple[str, str]]
    bare: frozenset[str]
    function: Function

    def __call__(self, values: Values) -> Any:
        """Its value: of any plain type if the text is one `{{ }}` and no more, else text; raises ExpressionError."""
        try:
            return self.function(values)
        except NotYetKnown as error:
            raise NotYetKnown(f"{error} in {_quoted(self.text)}") from None
        except (
            ExpressionError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ExpressionError(f"{error} in {_quoted(self.text)}") from None

    def unknown(self, known: Collection[str], namespaces: Mapping[str, Collection[str] | None]) -> str | None:
        """What is wrong with the names it reads, if anything is; a namespace of None may hold any attribute."""
        said = _quoted(self.text)
        for name in sorted(self.names):
            if name not in known and name not in namespaces:
                return f"unknown name {name!r}{did_you_mean(name, [*known, *namespaces])} in {said}"
        for name in sorted(self.bare & set(namespaces)):
            there = namespaces[name]
            return f"{name} is no value, but {name}.{sorted(there)[0] if there else 'NAME'} is one, in {said}"
        for space, attribute in sorted(self.attributes):
            if space not in namespaces:
                return f"attributes are for {', '.join(namespaces)}, got {space}.{attribute} in {said}"
            there = namespaces[space]
            if there is not None and attribute not in there:
                return f"{space} has no {attribute!r}{did_you_mean(attribute, there)} in {said}"
        return None


def is_expression(value: Any) -> bool:
    """Whether it is text that holds an expression."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


@cache
def parse(text: str) -> Expression:
    """Check and compile text that holds `{{ }}`; raises ExpressionError."""
    return _compiled(text, text)


@cache
def condition(text: str) -> Expression:
    """Check and compile a bare expression, as `where` has it; raises ExpressionError."""
    inner = WHOLE.match(text.strip())
    bare = inner[1] if inner else text
    if is_expression(bare) or "}}" in bare:
        raise ExpressionError(f"expected one expression without {{{{ }}}}, got {_quoted(text)}")
    return _compiled("{{ " + bare + " }}", text)


@contextmanager
def _usual_depth() -> Iterator[None]:
    """Let nothing go deeper than Python's own limit, which other libraries raise."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(min(before, DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _compiled(code: str, text: str) -> Expression:
    """text: what the user wrote."""
    try:
        with _usual_depth():
            return _understood(code, text)
    except TemplateError as error:
        said = error.message or "not an expression"
        said = next((plain for jinja, plain in SAID_PLAINLY if jinja.match(said)), said)
        raise ExpressionError(f"{said.rstrip('.')} in {_quoted(text)}") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise ExpressionError(f"nested too deep: {_quoted(text)}") from None


def _understood(code: str, text: str) -> Expression:
    tree = _parsed(code, text)
    names, attributes, bare = _checked(tree, text)
    parts = [node for output in tree.find_all(nodes.Output) for node in output.nodes]
    values = [node for node in parts if not (isinstance(node, nodes.TemplateData) and node.data.isspace())]
    function = build_function(values[0] if len(values) == 1 else nodes.Output(parts))
    return Expression(text, names, attributes, bare, lambda given: _plain(function(given)))


def _quoted(text: str) -> str:
    """As the user wrote it, or its beginning."""
    return shortened(text) if len(text) > 2 * VALUE_SHOWN else repr(text)


def _parsed(code: str, text: str) -> nodes.Template:
    if len(code) > MAX_LENGTH:
        raise ExpressionError(f"an expression of more than {MAX_LENGTH} letters")
    if "{%" in code or "{#" in code:
        raise ExpressionError(f"only {{{{ }}}} has a meaning, not {{% %}} or {{# #}}, in {_quoted(text)}")
    return PARSER.parse(code)


def _checked(tree: nodes.Template, text: str) -> tuple[frozenset[str], frozenset[tuple[str, str]], frozenset[str]]:
    """Return the names and attributes that the tree reads; raises ExpressionError for what has no meaning here."""
    said = _quoted(text)
    names, attributes, spaces = set(), set(), set()
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, ALLOWED):
            raise ExpressionError(f"{type(node).__name__.lower()} is not allowed in {said}")
        if isinstance(node, nodes.Filter):
            _check_filter(node, said)
        if isinstance(node, nodes.Getattr):
            if not isinstance(node.node, nodes.Name) or node.attr.startswith("_"):
                raise ExpressionError(f"attribute {node.attr!r} is not allowed in {said}")
            attributes.add((node.node.name, node.attr))
            spaces.add(node.node)
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, (nodes.Const, nodes.Name)):
            raise ExpressionError(f"only a single item may be taken by [...] in {said}")
        if isinstance(node, nodes.CondExpr) and node.expr2 is None:
            raise ExpressionError(f"an if needs an else in {said}")
        if isinstance(node, nodes.Const) and isinstance(node.value, float) and not math.isfinite(node.value):
            raise ExpressionError(f"{node.value} is no finite number in {said}")
        if isinstance(node, nodes.Name):
            names.add(node)
    bare = {node.name for node in names if not any(node is space for space in spaces)}
    return frozenset(node.name for node in names), frozenset(attributes), frozenset(bare)


def _check_filter(node: nodes.Filter, said: str) -> None:
    if node.name not in FILTERS:
        raise ExpressionError(f"unknown filter {node.name!r}{did_you_mean(node.name, FILTERS)} in {said}")
    takes = ARGUMENTS.get(node.name, ())
    unknown = [pair.key for pair in node.kwargs if pair.key not in takes[len(node.args) :]]
    if unknown or len(node.args) > len(takes) or node.dyn_args or node.dyn_kwargs:
        most = f"at most {', '.join(takes)}" if takes else "no arguments"
        raise ExpressionError(f"filter {node.name!r} takes {most} in {said}")


def _plain(value: Any) -> Any:
    """The value, if plain data can hold it; raises ValueError."""
    if isinstance(value, Placeholder):
        return value.text
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"expected a number, text, a list or a mapping, came to be {shortened(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a number of more than 63 bits")
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError("text with control characters")
    return value
