"""Isolate misfits, which are runs with inconsistent events, so that the tables of the other runs can be built."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.results.runs import RunRecord, mark_unreadable, select_readable

# The errors of code that processes a record with missing or inconsistent fields.
MISFIT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError)


def isolate_misfits(records: Sequence[RunRecord], analyse: Callable[[list[RunRecord]], object]) -> list[RunRecord]:
    """Return the records; those whose analysis fails are marked as unreadable.

    If the analysis fails on several records together, but on none of them alone, the error is raised.
    """
    misfits = _find_misfits(select_readable(records), analyse)
    if misfits:
        records = [mark_unreadable(r, misfits[id(r)]) if id(r) in misfits else r for r in records]
        analyse(select_readable(records))
    return list(records)


def _find_misfits(records: list[RunRecord], analyse: Callable[[list[RunRecord]], object]) -> dict[int, str]:
    """Find the records on which the analysis fails by bisection; return the reasons by id() of the record."""
    if not records:
        return {}
    try:
        analyse(records)
    except MISFIT_ERRORS as error:
        if len(records) == 1:
            return {id(records[0]): describe_misfit(error)}
        half = len(records) // 2
        return _find_misfits(records[:half], analyse) | _find_misfits(records[half:], analyse)
    return {}


def describe_misfit(error: Exception) -> str:
    """Return the reason why an analysis failed as a clause, with the line of the experiment's code."""
    where = _locate(error)
    if isinstance(error, KeyError):
        return f"its events lack a value that the analysis needs: {error}{where}"
    return f"its events are inconsistent: {type(error).__name__}: {error}{where}"


def _locate(error: Exception) -> str:
    """Return ` (folder/file:line)` for the innermost line of an experiment in the traceback, or an empty string."""
    frames = [(*Path(f.filename).parts[-2:], f.lineno) for f in traceback.extract_tb(error.__traceback__)
              if "experiments" in Path(f.filename).parts]  # fmt: skip
    return f" ({frames[-1][0]}/{frames[-1][1]}:{frames[-1][2]})" if frames else ""
