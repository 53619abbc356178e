"""Runs whose events do not fit together are set aside, so that one of them never keeps the others from a table."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.results.runs import RunRecord, mark_unreadable, readable

# What code raises that meets a record without a field that it needs, or with one that makes no sense to it.
MISFIT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError)


def isolate_misfits(records: Sequence[RunRecord], analyse: Callable[[list[RunRecord]], object]) -> list[RunRecord]:
    """Return the records, marked as unreadable where the analysis of a record alone fails.

    Raises what the analysis raises where it fails on records of which none alone is to blame.
    """
    misfits = _find_misfits(readable(records), analyse)
    if misfits:
        records = [mark_unreadable(r, misfits[id(r)]) if id(r) in misfits else r for r in records]
        analyse(readable(records))
    return list(records)


def _find_misfits(records: list[RunRecord], analyse: Callable[[list[RunRecord]], object]) -> dict[int, str]:
    """Return the identity of each record that fails alone, with the reason, by bisection."""
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
    """Return what the analysis missed as a clause, with the place in the experiment's code that needs it."""
    where = _locate(error)
    if isinstance(error, KeyError):
        return f"its events do not hold what the analysis needs: {error}{where}"
    return f"its events do not fit together: {type(error).__name__}: {error}{where}"


def _locate(error: Exception) -> str:
    frames = [(*Path(f.filename).parts[-2:], f.lineno) for f in traceback.extract_tb(error.__traceback__)
              if "experiments" in Path(f.filename).parts]  # fmt: skip
    return f" ({frames[-1][0]}/{frames[-1][1]}:{frames[-1][2]})" if frames else ""
