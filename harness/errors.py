"""What a user can get wrong, told so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """One or more lines for the user, each complete in itself; the command ends with exit code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` or, where nothing is near, ` (there are: a, b, c)`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (there are: {', '.join(names)})" if names else ""
