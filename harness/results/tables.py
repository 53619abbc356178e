"""Records -> tidy tables: a row a raw sample, a row a figure of merit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.protocol import checks, events
from harness.results.runs import Record


def samples_table(records: list[Record]) -> pd.DataFrame:
    """One row per raw sample, beside the suite, case, id and folder it comes from."""
    return pd.DataFrame([{**_origin(r), **{k: v for k, v in s.items() if k != "event"}} for r, s in _samples(records)])


def merits_table(records: list[Record]) -> pd.DataFrame:
    """One row per figure of merit, with its reference and verdict."""
    columns = ["suite", "case", "id", "folder", *checks.Merit.__dataclass_fields__]
    rows = [{**_origin(r), **{k: getattr(m, k) for k in columns[4:]}} for r in records for m in r.merits]
    return pd.DataFrame(rows, columns=columns)


def _samples(records: list[Record]) -> Iterator[tuple[Record, events.Event]]:
    return ((record, sample) for record in records for sample in record.samples)


def _origin(record: Record) -> dict[str, Any]:
    case = record.case
    return {
        "suite": case.get("suite"),
        "case": case.get("name"),
        "id": case.get("id"),
        "folder": str(record.folder),
    }
