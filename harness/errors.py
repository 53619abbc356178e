"""What a user can get wrong, told so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 12


class UsageError(Exception):
    """What is wrong, one line a problem (an indented line belongs to the one above); the command ends with code 2."""


class Interrupted(UsageError):
    """The scheduler could not be reached: nothing is lost, and the same command carries on; exit code 3."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` or, where nothing is near, ` (there are: a, b, c)`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" (there are: {', '.join(names[:SHOWN])}{more})"
