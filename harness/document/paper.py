"""What pages quote of a paper: its printed tables."""

from __future__ import annotations

from pydantic import Field

from harness.protocol.types import StrictModel


class Table(StrictModel):
    """A printed table: one list of values per row, in the order of columns, and the speed-ups if it prints them."""

    title: str
    source: str
    columns: list[str]
    rows: dict[str, list[float]]
    printed_speedup: list[float] = Field(default=[])


class Paper(StrictModel):
    """The paper beside which the inference ladder is shown."""

    source: str
    table_xv: Table
