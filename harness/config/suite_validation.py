"""What must agree between the parts of a suite, beyond the type of each: names used and given, axes and values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from harness.config.language import expressions
from harness.config.language.document import Document, Loc, Problem
from harness.config.language.evaluation import ExpressionError
from harness.config.language.expressions import Expression
from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.registry import PROGRAMS

# Where expressions may stand, and what they may read besides axes, variables and parameters.
PLACES = ("variables", "parameters", "resources", "sanity", "performance")
SYSTEM_FACTS = ("name", "nodes", "ranks_per_node", "cores_per_node", "accelerators_per_node", "backend", "device")
NAMESPACES: Mapping[str, Collection[str] | None] = {"system": SYSTEM_FACTS, "settings": None}
# Words that Jinja2 reads as something else than a name, and a name of the language's own.
RESERVED = ("and", "else", "false", "if", "in", "is", "none", "not", "or", "true", "repeat")
MAX_CASES = 1_000_000

Found = dict[Loc, Expression]


def expressions_of(document: Document) -> tuple[Found, dict[Loc, Problem]]:
    """The compiled expressions of a suite by place, and what is wrong with the others."""
    found: Found = {}
    wrong = {}
    conditions = document.data.get("where", [])
    leaves = list(_leaves(document.data, ()))
    if isinstance(conditions, list):
        leaves += [(("where", k), text) for k, text in enumerate(conditions) if isinstance(text, str)]
    for loc, text in leaves:
        if loc[0] not in (*PLACES, "where"):
            said = f"expressions have no meaning under {str(loc[0])!r}, but under {', '.join(PLACES)}"
            wrong[loc] = document.problem(loc, said)
            continue
        try:
            found[loc] = expressions.condition(text) if loc[0] == "where" else expressions.parse(text)
        except ExpressionError as error:
            wrong[loc] = document.problem(loc, f"{'.'.join(map(str, loc))}: {error}")
    return found, wrong


def _leaves(node: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if loc or key != "where":
                yield from _leaves(value, (*loc, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, (*loc, index))
    elif expressions.is_expression(node):
        yield loc, node


def names_used(document: Document, found: Found) -> set[str]:
    """Every name that an expression of the suite reads."""
    return {name for expression in found.values() for name in expression.names}


def without_expressions(document: Document, places: Collection[Loc], used: Collection[str]) -> Document:
    """The document as the typed model can check it: without values that hold expressions and axes only they read."""
    data = _pruned(document.data, (), places)
    known = PROGRAMS[data["program"]].model_fields
    for axes in _axis_tables(data):
        for name in [n for n in axes if n in used and n not in known]:
            if isinstance(axes[name], list) and axes[name]:
                del axes[name]
    return Document(document.path, data, document.marks)


def _pruned(node: Any, loc: Loc, places: Collection[Loc]) -> Any:
    if isinstance(node, dict):
        kept = {}
        for key, value in node.items():
            here = (*loc, key)
            in_list = isinstance(value, list) and any(p[: len(here)] == here for p in places)
            if loc[:1] in (("parameters",), ("resources",)) and (here in places or in_list):
                continue
            kept[key] = _pruned(value, here, places)
        return kept
    return [_pruned(v, (*loc, k), places) for k, v in enumerate(node)] if isinstance(node, list) else node


def _axis_tables(data: dict[str, Any]) -> list[dict[str, Any]]:
    zips = data.get("zips", {})
    tables = [data.get("matrix", {}), *(zips.values() if isinstance(zips, dict) else ())]
    return [t for t in tables if isinstance(t, dict)]


def problems(document: Document, program: str) -> Iterator[Problem]:
    """What does not agree in a suite whose parts are each well-formed."""
    yield from _axes_problems(document)
    yield from _missing_parameters(document, program)
    yield from _choice_problems(document)


def axes_of(data: Mapping[str, Any]) -> dict[str, tuple[Loc, list[Any]]]:
    """Axis -> its place and values, of matrix and zips."""
    found: dict[str, tuple[Loc, list[Any]]] = {n: (("matrix", n), v) for n, v in _mapping(data, "matrix").items()}
    for zipped in _mapping(data, "zips"):
        found.update({n: (("zips", zipped, n), v) for n, v in _mapping(data["zips"], zipped).items()})
    return found


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What stands there if it is a mapping: the names in it are known even where other things are wrong."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _axes_problems(document: Document) -> Iterator[Problem]:
    data, count = document.data, 1
    homes: dict[str, Loc] = {}
    for kind in ("parameters", "variables", "matrix"):
        for name in data.get(kind, {}):
            yield from _placed_once(document, homes, name, (kind, name))
    for zipped, axes in data.get("zips", {}).items():
        for name in axes:
            yield from _placed_once(document, homes, name, ("zips", zipped, name))
        yield from _zip_problems(document, zipped, axes)
        count *= max([1, *(len(values) for values in axes.values())])
    parameters = PROGRAMS[data["program"]].model_fields
    for name, (loc, values) in axes_of(data).items():
        for k, value in enumerate(values):
            if name not in parameters and isinstance(value, (dict, list)):
                yield document.problem((*loc, k), f"{name}: expected a number or a word, got {shortened(value)}")
    for name, values in data.get("matrix", {}).items():
        seen: set[str] = set()
        for k, value in enumerate(values):
            if json.dumps(value) in seen:
                yield document.problem(("matrix", name, k), f"matrix.{name}: {shortened(value)} stands in it twice")
            seen.add(json.dumps(value))
        count *= len(values)
    count *= int(data.get("repeats", 1))
    if count > MAX_CASES:
        yield document.problem(("matrix",), f"{count} cases, where at most {MAX_CASES} can be handled")


def _zip_problems(document: Document, zipped: str, axes: Mapping[str, list[Any]]) -> Iterator[Problem]:
    lengths = {name: len(values) for name, values in axes.items()}
    rows = [json.dumps(row) for row in zip(*axes.values(), strict=False)]
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        yield document.problem(("zips", zipped), f"zips.{zipped}: axes of one zip have equally many values: {said}")
    elif not axes:
        yield document.problem(("zips", zipped), f"zips.{zipped}: no axis stands in it")
    elif len(set(rows)) < len(rows):
        yield document.problem(("zips", zipped), f"zips.{zipped}: a row stands in it twice")


def _placed_once(document: Document, homes: dict[str, Loc], name: str, loc: Loc) -> Iterator[Problem]:
    if name in homes:
        both = f"{homes[name][0]} and {loc[0]}"
        yield document.problem(loc, f"{name!r} stands in both {both}")
    elif name in NAMESPACES or name in RESERVED:
        yield document.problem(loc, f"{name!r} already has a meaning in expressions")
    homes.setdefault(name, loc)


def _missing_parameters(document: Document, program: str) -> Iterator[Problem]:
    given = {*document.data.get("parameters", {}), *axes_of(document.data)}
    for name, field in PROGRAMS[program].model_fields.items():
        if field.is_required() and name not in given:
            said = f"program {program!r} needs {name!r} under parameters or matrix"
            yield document.problem(("parameters", name), said)


def name_problems(document: Document, found: Found, used: set[str]) -> Iterator[Problem]:
    """Names that expressions read and nothing gives, and variables that none reads."""
    data = document.data
    given = [*axes_of(data), *_mapping(data, "variables"), *_mapping(data, "parameters"), "repeat"]
    for loc, expression in found.items():
        said = expression.unknown(given, NAMESPACES)
        if said:
            yield document.problem(loc, f"{'.'.join(map(str, loc))}: {said}")
    for name in _mapping(data, "variables"):
        if name not in used and name not in RESERVED:
            yield document.problem(("variables", name), f"variable {name!r} is used by no expression")


def _choice_problems(document: Document) -> Iterator[Problem]:
    axes = {name: values for name, (_, values) in axes_of(document.data).items()}
    choices: list[tuple[Loc, Mapping[str, Any]]] = []
    choices += [(("exclude", k), row) for k, row in enumerate(document.data.get("exclude", []))]
    for k, rule in enumerate(document.data.get("after", [])):
        choices += [(("after", k, part), rule.get(part, {})) for part in ("cases", "needs")]
        for place, name in enumerate(rule.get("across", [])):
            if name not in axes:
                said = f"after: {name!r} is no axis of matrix or zips{did_you_mean(name, axes)}"
                yield document.problem(("after", k, "across", place), said)
    known = {name: {json.dumps(value) for value in values} for name, values in axes.items()}
    for loc, row in choices:
        for name, value in row.items():
            if name not in axes:
                said = f"{name!r} is no axis of matrix or zips{did_you_mean(name, axes)}"
                yield document.problem((*loc, name), f"{loc[0]}: {said}")
                continue
            for one in value if isinstance(value, list) and loc[0] == "exclude" else [value]:
                if json.dumps(one) not in known[name] and one not in axes[name]:
                    near = did_you_mean(str(one), map(str, axes[name]))
                    yield document.problem((*loc, name), f"{loc[0]}: axis {name!r} has no value {shortened(one)}{near}")
