"""Consistency checks of a suite beyond the type of each key: names, axes and their values, files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from harness.config import expressions, resources
from harness.config.document import KeyPath, Problem, format_key_path
from harness.config.suite_file import Suite
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.registry import load_programs

# Namespaces that expressions may read in addition to axes, variables and parameters.
SYSTEM_ATTRIBUTES = ("name", "nodes", "ranks_per_node", "cores_per_node", "accelerators_per_node", "backend", "device")
NAMESPACES: Mapping[str, Collection[str] | None] = {"system": SYSTEM_ATTRIBUTES, "settings": None}
# Words that Jinja2 does not read as names, and a name that the language defines.
RESERVED = ("and", "else", "false", "if", "in", "is", "none", "not", "or", "true", "repeat")
MAX_CASES = 1_000_000
# Parameters that hold the path of a file, or the name of a shipped checkpoint.
FILE_PARAMETERS = ("checkpoint", "structures")


def check_consistency(suite: Suite) -> Iterator[Problem]:
    """Yield the inconsistencies of a suite whose keys are all valid."""
    yield from _check_names(suite)
    yield from _check_axes(suite)
    yield from _check_required(suite)
    yield from _check_choices(suite)


def _check_names(suite: Suite) -> Iterator[Problem]:
    """Yield names that have two meanings."""
    names: list[KeyPath] = [("parameters", name) for name in suite.parameters]
    names += [("variables", name) for name in suite.variables]
    names += [("matrix", name) for name in suite.matrix]
    names += [("zips", zipped, name) for zipped, axes in suite.zips.items() for name in axes]
    first: dict[str, KeyPath] = {}
    for at in names:
        name = str(at[-1])
        if name in first:
            yield suite.document.problem(at, f"{name!r} is defined in both {first[name][0]} and {at[0]}")
        elif name in NAMESPACES or name in RESERVED:
            yield suite.document.problem(at, f"{name!r} has a predefined meaning in expressions")
        first.setdefault(name, at)


def _check_axes(suite: Suite) -> Iterator[Problem]:
    """Yield values that no axis may have, duplicate values, zips of unequal length, and too many cases."""
    document, n_cases = suite.document, suite.repeats
    parameters = load_programs()[suite.program].parameters.model_fields
    for name, (at, values) in suite.axes.items():
        for k, value in enumerate(values):
            if name not in parameters and isinstance(value, (dict, list)):
                yield document.problem((*at, k), f"{name}: expected a number or text, got {shorten(value)}")
    for name, values in suite.matrix.items():
        for k, value in _duplicates(values):
            yield document.problem(("matrix", name, k), f"matrix.{name}: duplicate value {shorten(value)}")
        n_cases *= len(values)
    for zipped, axes in suite.zips.items():
        lengths = {axis: len(values) for axis, values in axes.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{axis} has {n}" for axis, n in lengths.items())
            yield document.problem(("zips", zipped), f"zips.{zipped}: expected axes of equal length: {counts}")
        elif not axes:
            yield document.problem(("zips", zipped), f"zips.{zipped}: expected at least one axis")
        elif any(_duplicates(list(zip(*axes.values(), strict=True)))):
            yield document.problem(("zips", zipped), f"zips.{zipped}: duplicate row")
        n_cases *= max(lengths.values(), default=1)
    if n_cases > MAX_CASES:
        yield document.problem(("matrix",), f"{n_cases} cases, but the limit is {MAX_CASES}")


def _duplicates(values: list[Any]) -> Iterator[tuple[int, Any]]:
    """Yield index and value of each duplicate of an earlier value."""
    earlier: set[str] = set()
    for k, value in enumerate(values):
        text = json.dumps(value)
        if text in earlier:
            yield k, value
        earlier.add(text)


def _check_required(suite: Suite) -> Iterator[Problem]:
    """Yield the required parameters of the program that are missing."""
    for name, field in load_programs()[suite.program].parameters.model_fields.items():
        if field.is_required() and name not in suite.parameters and name not in suite.axes:
            message = f"program {suite.program!r} requires {name!r} in parameters or matrix"
            yield suite.document.problem(("parameters", name), message)


def _check_choices(suite: Suite) -> Iterator[Problem]:
    """Yield names in `exclude` and `after` that are not axes, and values that their axes do not have."""
    axes = {name: values for name, (_, values) in suite.axes.items()}
    known = {name: {json.dumps(value) for value in values} for name, values in axes.items()}
    choices: list[tuple[KeyPath, Mapping[str, Any]]] = [(("exclude", k), row) for k, row in enumerate(suite.exclude)]
    for k, rule in enumerate(suite.after):
        choices += [(("after", k, "cases"), rule.cases), (("after", k, "needs"), rule.needs)]
        choices += [(("after", k, "across", j), {name: []}) for j, name in enumerate(rule.across)]
    for at, row in choices:
        for name, value in row.items():
            if name not in axes:
                where = at if "across" in at else (*at, name)
                message = f"{at[0]}: {name!r} is not an axis of matrix or zips{did_you_mean(name, axes)}"
                yield suite.document.problem(where, message)
                continue
            for one in value if isinstance(value, list) else [value]:
                if json.dumps(one) not in known[name] and one not in axes[name]:
                    near = did_you_mean(str(one), map(str, axes[name]))
                    message = f"{at[0]}: axis {name!r} has no value {shorten(one)}{near}"
                    yield suite.document.problem((*at, name), message)


def resolve_files(suite: Suite) -> Iterator[Problem]:
    """Replace the names of files in the suite by absolute paths; yield a problem for each that does not exist."""
    checkpoints = resources.list_checkpoints()
    sections: list[tuple[KeyPath, Any]] = [(("parameters",), suite.parameters)]
    sections += [(at, values) for name, (at, values) in suite.axes.items() if name in FILE_PARAMETERS]
    for section, container in sections:
        keys = FILE_PARAMETERS if isinstance(container, dict) else range(len(container))
        for key in keys:
            value = container.get(key) if isinstance(container, dict) else container[key]
            if value is None or value in checkpoints or expressions.is_expression(value):
                continue
            # links are not resolved: their targets may not exist on the machine that runs the case
            path = os.path.abspath(suite.document.locate((*section, key)).path.parent / str(value))
            if _is_file(path):
                container[key] = path
            else:
                message = f"no file {shorten(value)}{did_you_mean(str(value), checkpoints)}"
                yield suite.document.problem((*section, key), f"{format_key_path((*section, key))}: {message}")


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False
