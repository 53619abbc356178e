"""The paper's printed values, from reports/paper.yaml."""

from __future__ import annotations

from typing import Literal

from harness import shipped
from harness.language import validation, yamlfile
from harness.programs import Strict


class Table(Strict):
    """A printed table: one list of values per row, in the order of columns."""

    title: str
    source: str
    columns: list[str]
    rows: dict[str, list[float]]
    printed_speedup: list[float]


class Claim(Strict):
    """A claim; paper_low is the smallest of the paper's values for it.

    precision: of a claim on the ladder's whole speed-up. counts: what is counted, of a claim on joint training.
    """

    id: str
    statement: str
    source: str
    unit: str
    paper_value: float
    paper_low: float
    precision: str | None = None
    counts: Literal["sets", "elements"] | None = None


class Paper(Strict):
    """All that the report quotes."""

    source: str
    table_xv: Table
    claims: list[Claim]


def load() -> Paper:
    """Read the shipped file."""
    path = shipped.folder("reports") / "paper.yaml"
    return validation.validate(yamlfile.parse(path), Paper)
