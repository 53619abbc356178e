"""The page about sorting."""

from __future__ import annotations

from harness.document.blocks import Column, Section, build_block, interval_cell, list_rows, number_cell
from harness.experiments.experiment import PageContext


def build_sections(context: PageContext) -> list[Section]:
    """Return one section, or none if no case has finished."""
    table = context.tables["sorting"]
    if table.empty:
        return []
    columns: list[Column] = [
        ("case", "case"),
        ("numbers", number_cell("size", ",")),
        ("numbers/s [95%]", interval_cell("per_s")),
        ("n", "samples"),
    ]
    block = build_block("Rates", list_rows(table), columns, "Medians over rounds with order-statistic intervals.")
    return [Section("How fast numbers are sorted", "sorting", ["Python's own sort, one core."], tables=[block])]
