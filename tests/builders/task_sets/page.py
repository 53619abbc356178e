"""Format the README of the shipped task sets from their table."""

from __future__ import annotations

from collections.abc import Mapping

from harness.reference.tasks.catalog import TASKS

Row = Mapping[str, object]

PAGE = """# Small labelled sets for the downstream tasks

A task uses the set here if its official files are not given. An *official sample* is drawn from the task's own data. A
*stand-in* is other data at another level of theory, and errors on it are not results on the benchmark. Every value
comes from first-principles or semi-empirical quantum chemistry, and none from a machine-learned model. No structure of
these sets is in the sets for pretraining. [`tasks.yaml`](tasks.yaml) contains the whole table.

| task | role | structures | value | level of theory | chemistry |
| --- | --- | --- | --- | --- | --- |
{rows}

These tasks have no data here and run only if their official files are given: {absent}.

A file is HDF5 with one column per quantity. Numbers are fixed-point integers, and the attribute `decimals` is the
number of their decimal places. Structures with the same `group` are never divided between splits, and each `subset` of
a task is trained and tested separately.

`python -m tests.builders.task_sets` rebuilds the files and this page; it needs the extra `labels`.
"""


def format_page(table: Mapping[str, Row]) -> str:
    """Return the page of the sets, in the order of the table, as Markdown."""
    columns = ("role", "count", "target", "level", "chemistry")
    rows = [f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |" for name, row in table.items()]
    absent = ", ".join(t.name for t in TASKS if t.name not in table)
    return PAGE.format(rows="\n".join(rows), absent=absent)
