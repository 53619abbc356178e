"""The section on the speed tests at the start of jobs."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import Column, Section, build_block, format_number, list_rows, number_cell
from harness.protocol.text import pluralize

GIGA = 1e9


def build_speed_section(speed: pd.DataFrame) -> Section:
    """Return the section on the speed tests: the slow ranks, and the rates in all quantities."""
    rows = list_rows(speed)
    paragraphs = [f"Slow in job {row['job']}: {row['slow']}." for row in rows if row["slow"]]
    jobs = pluralize(speed["job"].nunique(), "job")
    n_slow = speed["job"][speed["slow"] != ""].nunique()
    finding = f"{n_slow} of {jobs} had slow nodes" if n_slow else f"no slow node in the speed test of {jobs}"
    columns: list[Column] = [
        ("job", "job"),
        ("quantity", "quantity"),
        ("nodes", "nodes"),
        ("ranks", "ranks"),
        ("median rate of a rank", lambda r: f"{format_number(r['median'] / GIGA)} G{r['unit']}"),
        ("slowest rank / median", number_cell("lowest", ".0%")),
        ("slow if below", lambda r: format_number(r["limit"], ".0%") if r["limit"] else "reported only"),
        ("slow ranks", lambda r: r["slow"] or "none"),
    ]
    note = (
        "All ranks run the test at the same time. A rank is slow if its rate is below the limit in both halves of the"
        " test and in all of it; the limit follows from the differences between the other ranks and from their number,"
        " for less than one false alarm in 1,000 tests if these differences are normal. Writes show no slow nodes, as"
        " nodes may share a disk. Cases take slow nodes only if too few others are left."
    )
    block = build_block("Speed of ranks", rows, columns, note)
    return Section("Speed of nodes", "speed", paragraphs, tables=[block], finding=finding)
