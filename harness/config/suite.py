"""Load suites, the YAML files that say what to measure, and check them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from harness.config import expressions, resources
from harness.config.document import (
    MAX_PROBLEMS,
    Document,
    KeyPath,
    Problem,
    check_model,
    describe_errors,
    format_key_path,
    iter_strings,
    raise_problems,
)
from harness.config.evaluation import ExpressionError
from harness.config.expressions import Expression
from harness.config.model_files import resolve_models
from harness.config.suite_file import NAMESPACES, RESERVED, Resources, Suite, check_consistency, resolve_files
from harness.config.yaml_loader import load_with_bases
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.registry import load_programs
from harness.protocol.upgrade import describe_renamed, list_old_names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Suite", "load_suite"]

# The sections that may contain expressions.
EXPRESSION_SECTIONS = ("variables", "parameters", "resources", "sanity", "performance")
# Keys that an overlay may not change.
FIXED_KEYS = ("name", "overlays", "extends", "program")


def load_suite(path: Path, system: str | None = None) -> Suite:
    """Load and check a suite, with the overlay that its section `overlays` has for a system, if there is one.

    All overlays are checked, whichever is selected.

    Raises:
        UsageError: the file has problems; the message has all of them.
    """
    document = load_with_bases(path, "suites")
    renamed = {key: message for key in document.data if (message := describe_renamed(key, ("overlays",)))}
    base = document.drop("overlays", *renamed)
    suite, problems = check_suite(base)
    problems += [document.make_problem((key,), message) for key, message in renamed.items()]
    base_messages = {problem.message for problem in problems}
    overlays, overlay_problems = _find_overlays(document)
    problems += overlay_problems
    overlaid: dict[str, Suite | None] = {}
    for name, part in overlays.items():
        fixed = [key for key in FIXED_KEYS if key in part.data]
        problems += [
            part.make_problem((key,), f"overlays.{name}: {key!r} must be the same on all systems") for key in fixed
        ]
        overlay = part.drop(*FIXED_KEYS)
        overlaid[name], new_problems = check_suite(overlay.overlay_on(base))
        problems += [
            Problem(p.location, f"{p.message} (overlays.{name})")
            for p in (*overlay.find_invalid_removals(base), *new_problems)
            if p.message not in base_messages
        ]
    raise_problems(problems)
    selected = overlaid.get(system or "") or suite
    assert selected is not None, "a suite without problems is valid"
    return selected


def _find_overlays(document: Document) -> tuple[dict[str, Document], list[Problem]]:
    """Return the overlays by system, and the problems of invalid overlays."""
    by_system, systems = document.data.get("overlays", {}), resources.list_resources("systems")
    if not isinstance(by_system, dict):
        return {}, [document.make_problem(("overlays",), "overlays: expected a mapping from systems to overlays")]
    overlays, problems = {}, []
    for name, value in by_system.items():
        key_path = ("overlays", name)
        if name not in systems:
            message = f"overlays: unknown system {shorten(name)}{did_you_mean(name, systems)}"
            problems.append(document.make_problem(key_path, message))
        elif not isinstance(value, dict):
            problems.append(
                document.make_problem(key_path, f"overlays.{name}: expected a mapping of the keys that differ")
            )
        else:
            overlays[name] = document.subdocument(key_path)
    return overlays, problems


def check_suite(document: Document) -> tuple[Suite | None, list[Problem]]:
    """Return (suite, problems): the document as a suite with absolute file names, or None if there are problems."""
    by_path, invalid = _find_expressions(document)
    used = {name for expression in by_path.values() for name in expression.names}
    problems = [*invalid.values(), *_check_names(document, by_path, used)]
    suite, errors = check_model(document, Suite)
    errors += _check_program_values(document, {*by_path, *invalid}, used)
    invalid_locations = {problem.location for problem in invalid.values()}
    problems += [error for error in errors if error.location not in invalid_locations]
    if suite is None or errors or invalid:
        return None, problems
    suite.set_document(document)
    problems += islice(check_consistency(suite), MAX_PROBLEMS + 1)
    problems += [*resolve_files(suite), *resolve_models(suite)]
    return None if problems else suite, problems


def _find_expressions(document: Document) -> tuple[dict[KeyPath, Expression], dict[KeyPath, Problem]]:
    """Return the compiled expressions, and the problems of invalid or misplaced ones, both by key path."""
    by_path: dict[KeyPath, Expression] = {}
    problems = {}
    for key_path, text in iter_strings(document.data):
        is_condition = key_path[0] == "where" and len(key_path) == 2
        if not is_condition and not expressions.is_expression(text):
            continue
        if not is_condition and key_path[0] not in EXPRESSION_SECTIONS:
            message = f"expressions are not supported in {key_path[0]!r}, only in {', '.join(EXPRESSION_SECTIONS)}"
            problems[key_path] = document.make_problem(key_path, message)
            continue
        try:
            by_path[key_path] = expressions.parse_condition(text) if is_condition else expressions.parse(text)
        except ExpressionError as error:
            problems[key_path] = document.make_problem(key_path, f"{format_key_path(key_path)}: {error}")
    return by_path, problems


def _check_names(document: Document, by_path: Mapping[KeyPath, Expression], used: Collection[str]) -> Iterator[Problem]:
    """Yield a problem for each name that an expression uses but nothing defines, and for each unused variable."""
    defined = {*_get_section(document.data, "variables"), *_get_section(document.data, "parameters"), "repeat"}
    defined.update(
        name for key_path in _list_axis_sections(document.data) for name in _get_section(document.data, *key_path)
    )
    for key_path, expression in by_path.items():
        if message := expression.describe_name_error(defined, NAMESPACES):
            yield document.make_problem(key_path, f"{format_key_path(key_path)}: {message}")
    for name in _get_section(document.data, "variables"):
        if name not in used and name not in RESERVED:
            message = describe_renamed(name, used) or f"no expression uses the variable {name!r}"
            yield document.make_problem(("variables", name), message)


def _get_section(data: Any, *key_path: str) -> dict[str, Any]:
    """Return the mapping at a key path, or an empty mapping if there is none."""
    for key in key_path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _list_axis_sections(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the key paths of the sections whose keys are axes: the matrix and each of the zips.

    The axes of the matrix are combined in all ways; those of a zip take their values in parallel.
    """
    return [("matrix",), *(("zips", name) for name in _get_section(data, "zips"))]


def _check_program_values(
    document: Document, expression_paths: Collection[KeyPath], used: Collection[str]
) -> list[Problem]:
    """Return the problems of constant values of parameters, axes and resources; expressions are checked later."""
    problems = _check_section(document, "resources", Resources, expression_paths)
    program = document.data.get("program")
    programs = load_programs()
    if not isinstance(program, str) or program not in programs:
        return problems
    model = programs[program].parameters
    if "implementation" not in model.model_fields:
        sections = [("parameters",), *_list_axis_sections(document.data)]
        paths = [
            (*path, "implementation") for path in sections if "implementation" in _get_section(document.data, *path)
        ]
        if paths:
            several = ", ".join(name for name, other in programs.items() if other.implementations)
            message = f"program {program!r} has only one implementation; these programs have several: {several}"
            return problems + [document.make_problem(path, message) for path in paths]
    problems += [*_check_section(document, "parameters", model, expression_paths), *_check_old_names(document, program)]
    for key_path in _list_axis_sections(document.data):
        for axis, values in _get_section(document.data, *key_path).items():
            if not isinstance(values, list) or not values:
                continue
            if axis in model.model_fields:
                try:
                    _build_list_validator(model, axis).validate_python(values)
                except ValidationError as error:
                    problems += describe_errors(document, error.errors(include_url=False), model, (*key_path, axis))
            elif axis not in used:
                unknown = f"unknown key {shorten(axis)}{did_you_mean(axis, model.model_fields)}"
                message = describe_renamed(axis, {*model.model_fields, *used}) or unknown
                problems.append(document.make_problem((*key_path, axis), message))
    return problems


def _check_old_names(document: Document, program: str) -> Iterator[Problem]:
    """Yield a problem for each old name of an event, field or value in sanity checks and figures of merit."""
    for section in ("sanity", "performance"):
        rows = document.data.get(section)
        for k, row in enumerate(rows) if isinstance(rows, list) else ():
            for key_path, message in list_old_names(program, row) if isinstance(row, dict) else ():
                path = (section, k, *key_path)
                yield document.make_problem(path, f"{format_key_path(path)}: {message}")


@cache
def _build_list_validator(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """Return the validator of a list of values of one field."""
    field = model.model_fields[name]
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(list[annotation])


def _check_section(
    document: Document, section: str, model: type[BaseModel], expression_paths: Collection[KeyPath]
) -> list[Problem]:
    """Return the problems of the fields in a section whose values contain no expressions."""
    values = _strip_expressions(_get_section(document.data, section), (section,), expression_paths)
    try:
        model.model_validate(values)
    except ValidationError as error:
        # a missing field may be an axis, and checks of several fields together run later, when all have values
        errors = [
            e
            for e in error.errors(include_url=False)
            if e["loc"]
            and not (e["type"] == "missing" and (len(e["loc"]) == 1 or (section, *e["loc"]) in expression_paths))
        ]
        return describe_errors(document, errors, model, (section,))
    return []


def _strip_expressions(node: Any, key_path: KeyPath, expression_paths: Collection[KeyPath]) -> Any:
    """Return mappings without the keys whose value is an expression or a list that contains one."""
    if not isinstance(node, dict):
        return node
    constants = {}
    for key, value in node.items():
        inner = (*key_path, key)
        is_list = isinstance(value, list)
        if inner not in expression_paths and not (
            is_list and any(path[: len(inner)] == inner for path in expression_paths)
        ):
            constants[key] = _strip_expressions(value, inner, expression_paths)
    return constants
