"""Checks of physics on the pages of experiments: the verdict on the checks of a model, and the table of the checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd

from harness.document.blocks import EN_DASH, TableBlock, list_rows
from harness.protocol.events import Event
from harness.results.runs import RunRecord
from harness.results.tables import Row

CHECK_COLUMNS = "check structure value tolerance unit passed reason"
Verdict = Literal["ok", "incorrect", "not checked"]


def list_checks(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row with CHECK_COLUMNS and the folder of the run for each check of physics in a run."""
    for event in record.events("physics_check"):
        yield {name: event.get(name) for name in CHECK_COLUMNS.split()} | {"folder": record.location}


def judge_checks(checks: Sequence[Event]) -> tuple[Verdict, str]:
    """Return the verdict on some checks with its reason: the worst violation, or that checks were not measured."""
    if violated := list_violated(checks):
        worst = max(violated, key=lambda check: check["value"] / check["tolerance"])
        reason = f"{worst['check']} of {worst['structure']}: {worst['value']:.2g} {worst['unit']}"
        return "incorrect", f"{reason}, tolerance {worst['tolerance']:.1g}"
    reasons = [check.get("reason") or "no reason is known" for check in checks if check["passed"] is None]
    unmeasured = f"{len(reasons)} of {len(checks)} checks could not be measured: {reasons[0]}" if reasons else ""
    return ("not checked" if len(reasons) == len(checks) else "ok"), unmeasured


def list_violated(checks: Sequence[Event]) -> list[Event]:
    """Return the checks whose value exceeds the tolerance."""
    return [check for check in checks if check["passed"] is False]


def name_violated(checks: Sequence[Event]) -> str:
    """Return the names of the violated checks with their structures, in the order of the checks."""
    return ", ".join(dict.fromkeys(f"{c['check']} ({c['structure']})" for c in list_violated(checks)))


def build_physics_block(title: str, physics: pd.DataFrame, key: str) -> TableBlock:
    """Return a table with a row per check and a column per value of `key`, such as a column per model.

    Args:
        title: The title of the table.
        physics: The checks, with CHECK_COLUMNS and the column `key`.
        key: The column whose values become the columns of the table.
    """
    names = list(dict.fromkeys(physics[key]))
    pairs = list(dict.fromkeys(zip(physics["check"], physics["structure"], strict=True)))
    cells = {(r[key], r["check"], r["structure"]): format_check(r) for r in list_rows(physics)}
    order = {check: k for k, check in enumerate(dict.fromkeys(check for check, _ in pairs))}
    body = [
        [check, structure, *(cells.get((name, check, structure), EN_DASH) for name in names)]
        for check, structure in sorted(pairs, key=lambda pair: order[pair[0]])
    ]
    note = (
        "Each cell has the largest violation and, in brackets, the tolerance for rounding errors in the model's"
        " floating-point type; FAILS marks a larger violation. Energies are in eV/atom; forces are relative to the"
        " largest force."
    )
    return TableBlock(title, ["check", "structure", *map(str, names)], body, note)


def format_check(row: Row) -> str:
    """Return the result of a check, such as `ok, 1e-15 (1e-08)`, `FAILS, 0.2 (1e-08)` or `not measured: REASON`."""
    if row["passed"] is None:
        return f"not measured: {row['reason']}"
    word = "ok" if row["passed"] else "FAILS"
    return f"{word}, {row['value']:.1g} ({row['tolerance']:.1g})"
