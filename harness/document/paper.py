"""Printed tables of a paper, as pages quote them."""

from __future__ import annotations

from pydantic import Field

from harness.protocol.types import StrictModel


class Table(StrictModel):
    """A printed table: a list of values per row, in the order of the columns, and the speed-ups if they are printed."""

    title: str
    source: str
    columns: list[str]
    rows: dict[str, list[float]]
    printed_speedup: list[float] = Field(default=[])


class Paper(StrictModel):
    """The paper with which the page on the inference ladder compares."""

    source: str
    table_xv: Table
