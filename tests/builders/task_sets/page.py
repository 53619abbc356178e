"""The page next to the files, written from the table."""

from __future__ import annotations

from collections.abc import Mapping

from harness.reference.tasks.catalog import TASKS

Row = Mapping[str, object]

PAGE = """# Small labelled sets for the downstream tasks

What a task falls back on where its official files are not given. An *official sample* is drawn from the task's own
data; a *stand-in* is other data in its place, at a level of theory of its own: its errors are no results on the
benchmark. Every value comes from quantum chemistry, first-principles or semi-empirical; none from a machine-learned
model. No structure of these is in the sets for pretraining. [`tasks.yaml`](tasks.yaml) holds the whole table.

| task | role | structures | value | level of theory | chemistry |
| --- | --- | --- | --- | --- | --- |
{rows}

Without data here, and so not run unless the official file is given: {absent}.

A file is HDF5 with one column per quantity, fixed-point integers whose attribute `decimals` says where the point is.
`group` names what a split parts never, `subset` the parts of a task that are trained and tested each by itself.

`python -m tests.builders.task_sets` remakes the files and this page (extra `labels`).
"""


def format_page(table: Mapping[str, Row]) -> str:
    """Return the page of the sets, in the order of the table, as Markdown."""
    columns = ("role", "count", "target", "level", "chemistry")
    rows = [f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |" for name, row in table.items()]
    absent = ", ".join(t.name for t in TASKS if t.name not in table)
    return PAGE.format(rows="\n".join(rows), absent=absent)
