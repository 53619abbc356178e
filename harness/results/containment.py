"""Cases whose records do not fit together are set aside, so that one of them never keeps the others from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.results.runs import Record, readable, set_aside

# What code raises that meets a record without a field that the analysis needs, or with one that makes no sense to it.
MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError)


def set_misfits_aside(records: Sequence[Record], analyse: Callable[[list[Record]], object]) -> list[Record]:
    """Return the records, unreadable where the analysis of a record by itself fails.

    Raises what the analysis raises where it fails on records none of which is to blame alone.
    """
    result = _misfits(readable(records), analyse)
    if result:
        records = [set_aside(r, result[id(r)]) if id(r) in result else r for r in records]
        analyse(readable(records))
    return list(records)


def _misfits(records: list[Record], analyse: Callable[[list[Record]], object]) -> dict[int, str]:
    """Identity of each record to blame -> why, by halving the records again and again."""
    if not records:
        return {}
    try:
        analyse(records)
    except MISFITS as error:
        if len(records) == 1:
            return {id(records[0]): describe_misfit(error)}
        half = len(records) // 2
        return _misfits(records[:half], analyse) | _misfits(records[half:], analyse)
    return {}


def describe_misfit(error: Exception) -> str:
    """Return in words what the analysis missed."""
    if isinstance(error, KeyError):
        return f"its events do not hold what the analysis needs: {error}"
    return f"its events do not fit together: {type(error).__name__}: {error}"
