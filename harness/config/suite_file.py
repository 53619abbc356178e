"""The keys of a suite, a file of suites/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from harness.config import expressions, validation
from harness.config.document import Document
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.registry import load_programs
from harness.protocol.types import Identifier, Minutes, Name, NonNegativeInt, PositiveFloat, PositiveInt, StrictModel


def check_number(value: str | int | float) -> str | int | float:
    """Return a number or an expression; raise ValueError for other text."""
    if isinstance(value, str) and not expressions.is_expression(value):
        raise ValueError(f"expected a number, got {shorten(value)}")
    return value


def check_program(value: str) -> str:
    """Return the name of a program; raise ValueError if there is no such program."""
    programs = load_programs()
    if value not in programs:
        raise ValueError(f"unknown {shorten(value)}{did_you_mean(value, programs)}")
    return value


Scalar = bool | int | float | str
Number = Annotated[str | int | float, AfterValidator(check_number)]
Axis = Annotated[list[Any], Field(min_length=1)]
# More nodes or ranks would be a typing error on any machine.
NodeCount = Annotated[int, Field(ge=1, le=1_000_000)]


class Resources(StrictModel):
    """What one case needs; the values may be expressions."""

    nodes: NodeCount = 1
    """Nodes of one case."""
    ranks_per_node: NodeCount = 1
    """Processes on each node."""
    minutes: Minutes = 60.0
    """Wall time after which the case is stopped."""
    expected_minutes: Minutes | None = None
    """Wall time that the case should take, for cost estimates."""


class DependencyRule(StrictModel):
    """Cases that match `cases` start after the cases that match `needs` and agree with them on every other axis."""

    cases: dict[Identifier, Scalar] = Field(default_factory=dict)
    """Values of axes of the dependent cases; if empty, all other cases are dependent."""
    needs: Annotated[dict[Identifier, Scalar], Field(min_length=1)]
    """Values of axes of the cases that must have ended well."""
    across: list[Identifier] = Field(default_factory=list)
    """Axes on which the cases need not agree."""


class EventSelector(StrictModel):
    """Which events of a case to read, and which field of them."""

    event: str
    """The kind of event."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Fields that must have these values."""
    field: str | None = None
    """The field to read; dots lead into mappings."""


class Check(EventSelector):
    """What must be true of the events of a case that ended well; otherwise the case counts as failed."""

    at_least: NonNegativeInt = 1
    """The minimum number of matching events."""
    at_most: NonNegativeInt | None = None
    """The maximum number of matching events."""
    equals: Any = None
    """The value of the field."""
    above: Number | None = None
    """An exclusive lower bound of the field."""
    below: Number | None = None
    """An exclusive upper bound of the field."""

    @model_validator(mode="after")
    def _check_field(self) -> Check:
        if self.field is None and (self.equals, self.above, self.below) != (None, None, None):
            raise ValueError("equals, above and below need `field`, the name of the field to compare")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        return self


class PerformanceReference(EventSelector):
    """A figure of merit: a statistic of a field, within a relative tolerance of a reference."""

    name: Name
    """Name of the figure in tables."""
    field: str
    """The field to read; dots lead into mappings."""
    reference: Number
    """The expected value."""
    tolerance: PositiveFloat
    """The accepted relative difference."""
    direction: Literal["higher_is_better", "lower_is_better", "equal"]
    """Which differences are improvements."""
    unit: str
    """Unit of the figure."""
    statistic: Literal["median", "mean", "min", "max"] = "median"
    """How the values of all events are summarized."""


class Suite(StrictModel):
    """One experiment: a program, the parameters that all its cases share, and the axes along which they differ."""

    name: Name
    """Name by which the suite is run, and with which the names of its cases begin."""
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=validation.ONE_LINE)]
    """What it measures, in one line."""
    description: str = ""
    """What it measures, at length."""
    program: Annotated[str, AfterValidator(check_program)]
    """The program that its cases run."""
    variables: dict[Identifier, Any] = Field(default_factory=dict)
    """Names for values and expressions."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the program in every case; a value may be an expression."""
    matrix: dict[str, Axis] = Field(default_factory=dict)
    """Axes and their values, of which all combinations are cases."""
    zips: dict[Identifier, dict[str, Axis]] = Field(default_factory=dict)
    """Axes that advance together."""
    exclude: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    """Combinations that are left out."""
    where: list[str] = Field(default_factory=list)
    """Conditions that all cases meet."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often every case is run."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """What one case needs; the values may be expressions."""
    pack: PositiveInt = 1
    """The maximum number of cases in one allocation."""
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    """How often a case that was lost (a dead node, a vanished job) is submitted again."""
    after: list[DependencyRule] = Field(default_factory=list)
    """Which cases start only after others have ended well."""
    sanity: list[Check] = Field(default_factory=list)
    """What must be true of the events of a case."""
    performance: list[PerformanceReference] = Field(default_factory=list)
    """Figures of merit and their references."""
    tags: list[Name] = Field(default_factory=list)
    """Words by which cases are selected."""

    _document: Document | None = PrivateAttr(default=None)

    @property
    def document(self) -> Document:
        """The file with the locations of its parts."""
        return self._document or Document(Path(f"{self.name}.yaml"), {}, {})

    @property
    def axes(self) -> dict[str, tuple[tuple[str, ...], list[Any]]]:
        """The key path and the values of every axis of matrix and zips."""
        axes: dict[str, tuple[tuple[str, ...], list[Any]]] = {n: (("matrix", n), v) for n, v in self.matrix.items()}
        for name, zipped in self.zips.items():
            axes |= {axis: (("zips", name, axis), values) for axis, values in zipped.items()}
        return axes
