"""The paper's printed values, from reports/paper.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config import resources
from harness.config.language import validation, yaml_loader
from harness.protocol.types import Strict


class Table(Strict):
    """A printed table: one list of values per row, in the order of columns."""

    title: str
    source: str
    columns: list[str]
    rows: dict[str, list[float]]
    printed_speedup: list[float]


JudgeName = Literal[
    "ladder",
    "heads",
    "elements",
    "structures",
    "campaigns",
    "nodes",
    "lead",
    "machines",
    "precisions",
    "tasks",
    "screened",
    "screening_time",
    "screening_rate",
]


class Claim(Strict):
    """A claim; paper_low is the smallest of the paper's values for it, and of these tolerance a share less will do.

    how: what is measured for it. judge: the function of harness.report.judges that decides. precision: of a claim on
    the ladder's whole speed-up.
    """

    id: str
    statement: str
    source: str
    unit: str
    paper_value: float
    paper_low: float | None = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    how: str
    judge: JudgeName
    precision: str | None = None

    @property
    def low(self) -> float:
        """The least value that bears the claim out."""
        return (self.paper_value if self.paper_low is None else self.paper_low) * (1.0 - self.tolerance)


class Paper(Strict):
    """All that the report quotes."""

    source: str
    table_xv: Table
    claims: list[Claim]


def load() -> Paper:
    """Read the shipped file."""
    path = resources.folder("reports") / "paper.yaml"
    return validation.validate(yaml_loader.parse(path), Paper)
