"""The types of a file of claims: statements of a paper, the queries that measure them, and conditions on verdicts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.document.blocks import Table
from harness.protocol.types import Name, StrictModel

# inconclusive: measured, but neither confirmed nor refuted; incorrect: fast, but with wrong numbers;
# not applicable: no run can decide a claim of this size or kind
Verdict = Literal["reproduced", "deviates", "inconclusive", "incorrect", "extrapolated", "not applicable", "not run"]
Basis = Literal["measured", "stand-in", "emulated", "extrapolated"]
Statistic = Literal[
    "value", "max", "min", "mean", "median", "sum", "count", "distinct", "fraction", "rank", "ratio", "slope"
]
Scalar = bool | int | float | str
# Column -> the condition on its values: the value, one of the values, or text such as "> 0", "!= mixed", "present",
# "missing" and "stand-in*".
Filter = dict[str, Scalar | list[Scalar]]
Columns = Annotated[list[str], Field(min_length=1)]


class Bound(StrictModel):
    """The bounds that a number must satisfy.

    Attributes:
        within: the largest relative distance from the paper's value.
    """

    at_least: float | None = None
    at_most: float | None = None
    within: Annotated[float, Field(ge=0)] | None = None

    def get_threshold(self, paper_value: float) -> float:
        """Return the threshold to report: `at_least`, else `at_most`, else the paper's value."""
        return next((bound for bound in (self.at_least, self.at_most) if bound is not None), paper_value)

    def is_met(self, value: float, paper_value: float = 0.0) -> bool:
        """Return whether a value satisfies every bound that is given."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.within is None or abs(value - paper_value) <= self.within * abs(paper_value))
        )

    def is_undecided(self, low: float, high: float, paper_value: float) -> bool:
        """Return whether the interval [low, high] contains a value within the bounds, and so refutes nothing."""
        nearest = min(max(self.get_threshold(paper_value), low), high)
        return self.is_met(nearest, paper_value)


class Measure(StrictModel):
    """A number from the selected rows: a statistic of `column`, or of `column` divided by `per` in each row.

    Statistics:
        value: the value of the first matching row.
        max, min, mean, median, sum: the statistic over the matching rows.
        count: the number of rows that match `matching`.
        distinct: the number of different values of the column in the matching rows.
        fraction: the fraction of rows that match `matching`.
        rank: the rank, from 1, of the first matching row among the values of the column, in the order of the rows.
        ratio: the median of the matching rows divided by the median of the rows that match `against`.
        slope: the slope of a straight line fitted to `column` as a function of `over`; with `log`, of both logarithms.

    Attributes:
        matching: the filter of the matching rows; all rows match an empty filter.
        low: the column with the lower ends of intervals.
        high: the column with the upper ends of intervals.
    """

    statistic: Statistic = "value"
    column: str | float | None = None
    per: str | None = None
    matching: Filter = Field(default={})
    against: Filter = Field(default={})
    over: str | None = None
    log: bool = False
    low: str | None = None
    high: str | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.column is None and self.statistic not in ("count", "fraction"):
            raise ValueError(f"statistic {self.statistic!r} needs a column")
        if self.statistic in ("rank", "ratio", "fraction") and not self.matching:
            raise ValueError(f"statistic {self.statistic!r} needs `matching`, the rows that it is about")
        for name, statistic in (("against", "ratio"), ("over", "slope")):
            if bool(getattr(self, name)) != (self.statistic == statistic):
                raise ValueError(f"`{name}` belongs to the statistic {statistic!r}, which needs it")
        if (self.low is None) != (self.high is None):
            raise ValueError("`low` and `high` are given together")
        return self


class Join(StrictModel):
    """Columns of another table, from its first row with equal values in `on`; rows without such a row are left out."""

    table: str
    on: Columns
    columns: list[str] = Field(default=[])


class Pick(StrictModel):
    """The selection of the first row in which a column is largest or smallest, among all rows or in each group.

    Texts are compared by the first number in them.
    """

    largest: str | None = None
    smallest: str | None = None
    of_each: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.largest is None) == (self.smallest is None):
            raise ValueError("expected either `largest` or `smallest`")
        return self


class Groups(Bound):
    """Rows in groups, each with its own measure.

    Attributes:
        take: `largest` and `smallest` select the group with the largest or smallest measure within the bound; `count`
            and `fraction` use the number or the fraction of the groups whose measure is within the bound as the value.
        measure: the measure that is compared with the bound; by default the measure of the query.
        ties: whether all groups with the largest or smallest measure are evidence, and not only the first.
        missing_reason: the reason to report if no group has a measure, or if no group to select is within the bound.
    """

    by: Columns
    take: Literal["largest", "smallest", "count", "fraction"]
    measure: Measure | None = None
    ties: bool = False
    missing_reason: str = "no group has a measure within the bound"


class Incorrect(StrictModel):
    """A filter of rows that show wrong results; if any row passes it, the verdict is "incorrect"."""

    where: Filter
    note: str


class Query(StrictModel):
    """The selection of the rows that are evidence for a claim, and the number that is computed from them.

    Attributes:
        where: the filter of the rows that the claim is about.
        missing_reason: the reason to report if no row passes `where`.
        complete: the filter of the rows that can be evidence.
        incomplete_reason: the reason to report if no row passes `complete`.
        prefer: a filter; if any rows pass it, only they are used.
        descending: the column by which the rows are sorted in descending order.
    """

    table: str
    join: list[Join] = Field(default=[])
    where: Filter = Field(default={})
    missing_reason: str = "no such case has been run"
    incorrect: Incorrect | None = None
    complete: Filter = Field(default={})
    incomplete_reason: str = "no case has finished"
    prefer: Filter = Field(default={})
    descending: str | None = None
    pick: Pick | None = None
    groups: Groups | None = None
    measure: Measure


class Consequence(StrictModel):
    """The consequence of an unmet condition: a verdict, another basis, and text that is added to the note."""

    verdict: Verdict | None = None
    basis: Basis | None = None
    note: str = ""


class Condition(Bound):
    """A condition on the evidence: every row matches `where`, and the measure is within the bound."""

    where: Filter = Field(default={})
    measure: Measure | None = None
    otherwise: Consequence

    @model_validator(mode="after")
    def _check_condition(self) -> Self:
        if not self.where and self.measure is None:
            raise ValueError("expected `where` or `measure`")
        if (self.measure is None) != (self.at_least is None and self.at_most is None and self.within is None):
            raise ValueError("`measure` and a bound are given together")
        return self


class DecisiveRun(StrictModel):
    """The run that would decide a claim: a suite on one or more systems.

    Attributes:
        settings: settings of the run, such as the folder of official data.
    """

    suite: str
    systems: Annotated[list[str], Field(min_length=1)] = Field(default=["local"])
    settings: dict[str, str] = Field(default={})


class Claim(Bound):
    """A statement of a paper, the value that the paper prints, and the query that decides on the statement.

    Attributes:
        source: table, section or page of the paper.
        value: the printed value.
        measurement: the quantity that the harness measures.
        program: the program whose cases are evidence.
        suites: the suites that produce the evidence.
        decided_by: the run that would decide; by default the first of the suites on this machine.
        query: the query for the evidence.
        basis: the kind of evidence if every condition is met.
        conditions: conditions on the evidence; the first unmet one that names a verdict decides.
        otherwise: the consequence of a value out of bounds.
        note: the evidence in one line; fields such as `{column}` and `{claim.name}` are replaced, see notes.py.
        measures: measures of the same rows, by name.
        not_applicable: instead of a query, the reason why no run of the harness can decide.
    """

    id: Name
    statement: str
    source: str
    unit: str
    value: float
    measurement: str
    program: str
    suites: list[str] = Field(default=[])
    decided_by: DecisiveRun | None = None
    query: Query | None = None
    basis: Basis = "measured"
    conditions: list[Condition] = Field(default=[])
    otherwise: Consequence = Consequence(verdict="deviates")
    note: str = ""
    measures: dict[str, Measure] = Field(default={})
    not_applicable: str | None = None

    @model_validator(mode="after")
    def _check_decision(self) -> Self:
        if (self.query is None) == (self.not_applicable is None):
            raise ValueError("expected either `query` or `not_applicable`")
        if [self.at_least, self.at_most, self.within].count(None) != 2:
            raise ValueError("expected one of `at_least`, `at_most` and `within`")
        return self


class Paper(StrictModel):
    """A file of claims.

    Attributes:
        source: the citation of the paper.
        values: tables that the paper prints, by name.
    """

    source: str
    values: dict[str, Table] = Field(default={})
    claims: list[Claim]
