"""The keys of a suite (a YAML file in suites/), and the checks of its names, axes, values and files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from harness.config import expressions, resources
from harness.config.document import ONE_LINE, Document, KeyPath, Problem, format_key_path
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.registry import load_programs
from harness.protocol.types import Identifier, Minutes, Name, NonNegativeInt, PositiveFloat, PositiveInt, StrictModel


def check_number(value: str | int | float) -> str | int | float:
    """Return the value unchanged; raise ValueError for text that is not an expression."""
    if isinstance(value, str) and not expressions.is_expression(value):
        raise ValueError(f"expected a number, got {shorten(value)}")
    return value


def check_program(value: str) -> str:
    """Return the name unchanged; raise ValueError if no program has this name."""
    programs = load_programs()
    if value not in programs:
        raise ValueError(f"unknown {shorten(value)}{did_you_mean(value, programs)}")
    return value


Scalar = bool | int | float | str
Number = Annotated[str | int | float, AfterValidator(check_number)]
Axis = Annotated[list[Any], Field(min_length=1)]
# No machine has more nodes or ranks: larger numbers are typos.
NodeCount = Annotated[int, Field(ge=1, le=1_000_000)]


class Resources(StrictModel):
    """The evaluated resources of one case."""

    nodes: NodeCount = 1
    """The number of nodes of one case."""
    ranks_per_node: NodeCount = 1
    """The number of processes on each node."""
    walltime_minutes: Minutes = 60.0
    """Wall time after which the case is stopped."""
    expected_minutes: Minutes | None = None
    """Wall time that the case should take, for cost estimates."""


class DependencyRule(StrictModel):
    """A rule about the order of cases.

    Each case that matches `cases` waits for the cases that match `required_cases` and have the same values on all other
    axes.
    """

    cases: dict[Identifier, Scalar] = Field(default_factory=dict)
    """Values of axes of the dependent cases; if empty, all cases except the required ones are dependent."""
    required_cases: Annotated[dict[Identifier, Scalar], Field(min_length=1)]
    """Values of axes of the cases that must complete successfully first."""
    ignored_axes: list[Identifier] = Field(default_factory=list)
    """Axes on which a dependent case and the cases that it needs may differ."""


class EventSelector(StrictModel):
    """A selection of events of a case, and of one of their fields."""

    event: str
    """The kind of event, such as `sample`, whose fields are checked."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Fields that must have these values."""
    field: str | None = None
    """The field to read; dots lead into mappings."""


class Check(EventSelector):
    """A condition on the events of a case with exit code 0; a case that does not meet it counts as failed."""

    min_events: NonNegativeInt = 1
    """The minimum number of matching events."""
    max_events: NonNegativeInt | None = None
    """The maximum number of matching events."""
    equals: Any = None
    """The value that the field must have."""
    at_least: Number | None = None
    """The smallest value that the field may have."""
    at_most: Number | None = None
    """The largest value that the field may have."""

    @model_validator(mode="after")
    def _check_field(self) -> Check:
        if self.field is None and (self.equals, self.at_least, self.at_most) != (None, None, None):
            raise ValueError(
                "equals, at_least and at_most need `field`, the name of the field to compare;"
                " min_events and max_events bound the number of events"
            )
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} is below min_events {self.min_events}")
        return self


class FigureOfMeritDefinition(EventSelector):
    """A figure of merit: a statistic of a field, which should be within a relative tolerance of a reference value."""

    name: Name
    """Name of the figure in tables."""
    field: str
    """The field to read; dots lead into mappings."""
    reference: Number
    """The expected value."""
    tolerance: PositiveFloat
    """The accepted relative difference."""
    direction: Literal["higher_is_better", "lower_is_better", "equal"]
    """The direction of improvement."""
    unit: str
    """Unit of the figure."""
    statistic: Literal["median", "mean", "min", "max"] = "median"
    """The statistic that summarizes the values of all selected events."""


class Suite(StrictModel):
    """What to measure: a program, the parameters that all cases share, and the axes along which cases differ."""

    name: Name
    """Name of the suite, with which the names of its cases begin."""
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]
    """The quantity that the suite measures, in one line."""
    description: str = ""
    """A description of several lines."""
    program: Annotated[str, AfterValidator(check_program)]
    """The program that the cases run."""
    variables: dict[Identifier, Any] = Field(default_factory=dict)
    """Named values and expressions, which other expressions can read."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the program in every case; a value may be an expression."""
    matrix: dict[str, Axis] = Field(default_factory=dict)
    """Axes and their values; every combination is a case."""
    zips: dict[Identifier, dict[str, Axis]] = Field(default_factory=dict)
    """Groups of axes of equal length whose values advance together, by name of the group."""
    exclude: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    """Values of axes, or lists of values; the combinations that have them are left out."""
    where: list[str] = Field(default_factory=list)
    """Conditions that a combination must meet to become a case."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of runs of every case."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """The resources that one case needs; the values may be expressions."""
    pack: PositiveInt = 1
    """The maximum number of cases in one allocation."""
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    """Number of times that a lost case (because of a dead node or a vanished job) is submitted again."""
    depends_on: list[DependencyRule] = Field(default_factory=list)
    """Rules about cases that start only after other cases are done."""
    sanity: list[Check] = Field(default_factory=list)
    """Conditions on the events of a case."""
    performance: list[FigureOfMeritDefinition] = Field(default_factory=list)
    """Figures of merit and their references."""
    tags: list[Name] = Field(default_factory=list)
    """Words with which the user can select cases."""

    _document: Document | None = PrivateAttr(default=None)

    @property
    def document(self) -> Document:
        """The suite's file, with the locations of its parts."""
        return self._document or Document(Path(f"{self.name}.yaml"), {}, {})

    def set_document(self, document: Document) -> None:
        """Set the file that the suite was read from."""
        self._document = document

    @property
    def axes(self) -> dict[str, tuple[tuple[str, ...], list[Any]]]:
        """The key path and the values of every axis of matrix and zips."""
        axes: dict[str, tuple[tuple[str, ...], list[Any]]] = {n: (("matrix", n), v) for n, v in self.matrix.items()}
        for name, zipped in self.zips.items():
            axes |= {axis: (("zips", name, axis), values) for axis, values in zipped.items()}
        return axes


# Namespaces that expressions may read in addition to axes, variables and parameters, with their attributes; None means
# that the system defines the attributes.
SYSTEM_ATTRIBUTES = ("name", "nodes", "ranks_per_node", "cores_per_node", "accelerators_per_node", "backend", "device")
NAMESPACES: Mapping[str, Collection[str] | None] = {"system": SYSTEM_ATTRIBUTES, "settings": None}
# Words that Jinja2 does not read as names, and `repeat`, the number of the repeat, which the harness defines.
RESERVED = ("and", "else", "false", "if", "in", "is", "none", "not", "or", "true", "repeat")
MAX_CASES = 1_000_000
# Parameters that hold the path of a file, or the name of a shipped checkpoint.
FILE_PARAMETERS = ("checkpoint", "structure_file", "reference_phases")


def check_consistency(suite: Suite) -> Iterator[Problem]:
    """Yield the inconsistencies of a suite whose keys are all valid."""
    yield from _check_names(suite)
    yield from _check_axes(suite)
    yield from _check_required(suite)
    yield from _check_choices(suite)


def _check_names(suite: Suite) -> Iterator[Problem]:
    """Yield a problem for each name that is defined twice or has a predefined meaning."""
    names: list[KeyPath] = [("parameters", name) for name in suite.parameters]
    names += [("variables", name) for name in suite.variables]
    names += [("matrix", name) for name in suite.matrix]
    names += [("zips", zipped, name) for zipped, axes in suite.zips.items() for name in axes]
    first: dict[str, KeyPath] = {}
    for key_path in names:
        name = str(key_path[-1])
        if name in first:
            yield suite.document.make_problem(
                key_path, f"{name!r} is defined in both {first[name][0]} and {key_path[0]}"
            )
        elif name in NAMESPACES or name in RESERVED:
            yield suite.document.make_problem(key_path, f"{name!r} has a predefined meaning in expressions")
        first.setdefault(name, key_path)


def _check_axes(suite: Suite) -> Iterator[Problem]:
    """Yield problems of axes: invalid or duplicate values, zips of unequal length, and too many cases."""
    document, n_cases = suite.document, suite.repeats
    parameters = load_programs()[suite.program].parameters.model_fields
    for name, (key_path, values) in suite.axes.items():
        for k, value in enumerate(values):
            if name not in parameters and isinstance(value, (dict, list)):
                yield document.make_problem((*key_path, k), f"{name}: expected a number or text, got {shorten(value)}")
    for name, values in suite.matrix.items():
        for k, value in _find_duplicates(values):
            yield document.make_problem(("matrix", name, k), f"matrix.{name}: duplicate value {shorten(value)}")
        n_cases *= len(values)
    for zipped, axes in suite.zips.items():
        lengths = {axis: len(values) for axis, values in axes.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{axis} has {n}" for axis, n in lengths.items())
            yield document.make_problem(("zips", zipped), f"zips.{zipped}: expected axes of equal length: {counts}")
        elif not axes:
            yield document.make_problem(("zips", zipped), f"zips.{zipped}: expected at least one axis")
        elif any(_find_duplicates(list(zip(*axes.values(), strict=True)))):
            yield document.make_problem(("zips", zipped), f"zips.{zipped}: duplicate row")
        n_cases *= max(lengths.values(), default=1)
    if n_cases > MAX_CASES:
        yield document.make_problem(("matrix",), describe_excess(n_cases))


def describe_excess(n_combinations: int) -> str:
    """Return the message about a suite with more combinations than MAX_CASES."""
    return f"{n_combinations:,} combinations (before exclude and where), but the limit is {MAX_CASES:,}"


def _find_duplicates(values: list[Any]) -> Iterator[tuple[int, Any]]:
    """Yield index and value of each duplicate of an earlier value."""
    earlier: set[str] = set()
    for k, value in enumerate(values):
        text = json.dumps(value)
        if text in earlier:
            yield k, value
        earlier.add(text)


def _check_required(suite: Suite) -> Iterator[Problem]:
    """Yield a problem for each required parameter of the program that is missing."""
    for name, field in load_programs()[suite.program].parameters.model_fields.items():
        if field.is_required() and name not in suite.parameters and name not in suite.axes:
            message = f"program {suite.program!r} requires {name!r} in parameters or matrix"
            yield suite.document.make_problem(("parameters", name), message)


def _check_choices(suite: Suite) -> Iterator[Problem]:
    """Yield a problem for each axis in `exclude` or `depends_on` that is unknown, or has no such value."""
    axes = {name: values for name, (_, values) in suite.axes.items()}
    known = {name: {json.dumps(value) for value in values} for name, values in axes.items()}
    choices: list[tuple[KeyPath, Mapping[str, Any]]] = [(("exclude", k), row) for k, row in enumerate(suite.exclude)]
    for k, rule in enumerate(suite.depends_on):
        choices += [
            (("depends_on", k, "cases"), rule.cases),
            (("depends_on", k, "required_cases"), rule.required_cases),
        ]
        choices += [(("depends_on", k, "ignored_axes", j), {name: []}) for j, name in enumerate(rule.ignored_axes)]
    for key_path, row in choices:
        for name, value in row.items():
            if name not in axes:
                where = key_path if "ignored_axes" in key_path else (*key_path, name)
                message = f"{key_path[0]}: {name!r} is not an axis of matrix or zips{did_you_mean(name, axes)}"
                yield suite.document.make_problem(where, message)
                continue
            for choice in value if isinstance(value, list) else [value]:
                if json.dumps(choice) not in known[name] and choice not in axes[name]:
                    hint = did_you_mean(str(choice), map(str, axes[name]))
                    message = f"{key_path[0]}: axis {name!r} has no value {shorten(choice)}{hint}"
                    yield suite.document.make_problem((*key_path, name), message)


def resolve_files(suite: Suite) -> Iterator[Problem]:
    """Replace the names of files in the suite by absolute paths; yield a problem for each that does not exist."""
    checkpoints = resources.list_checkpoints()
    sections: list[tuple[KeyPath, Any]] = [(("parameters",), suite.parameters)]
    sections += [(key_path, values) for name, (key_path, values) in suite.axes.items() if name in FILE_PARAMETERS]
    for section, container in [*sections, *_list_holdout_files(suite)]:
        keys: Iterable[Any] = range(len(container)) if isinstance(container, list) else list(container)
        for key in FILE_PARAMETERS if section == ("parameters",) else keys:
            value = container.get(key) if isinstance(container, dict) else container[key]
            if value is None or value in checkpoints or expressions.is_expression(value):
                continue
            # links are not resolved: their targets may not exist on the machine that runs the case
            path = os.path.abspath(suite.document.locate((*section, key)).path.parent / str(value))
            if _is_file(path):
                container[key] = path
            else:
                message = f"no file {shorten(value)}{did_you_mean(str(value), checkpoints)}"
                yield suite.document.make_problem((*section, key), f"{format_key_path((*section, key))}: {message}")


def _list_holdout_files(suite: Suite) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield the files of each holdout of a suite, by head."""
    axis: tuple[KeyPath, list[Any]] = suite.axes.get("holdout", ((), []))
    holdouts: list[tuple[KeyPath, Any]] = [(("parameters", "holdout"), suite.parameters.get("holdout"))]
    holdouts += [((*axis[0], k), value) for k, value in enumerate(axis[1])]
    for key_path, holdout in holdouts:
        if isinstance(holdout, dict) and isinstance(holdout.get("files"), dict):
            yield (*key_path, "files"), holdout["files"]


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False
