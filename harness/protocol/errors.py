"""Errors that a user can cause, and the hints that help to correct them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from harness.protocol.text import sanitize

MAX_NAMES = 12
MAX_VALUE_LENGTH = 60
YAML_WORDS = {"None": "null", "True": "true", "False": "false"}
# Longer words and longer lists of names are not compared, since that would take long.
MAX_COMPARED_LENGTH, MAX_COMPARED_NAMES = 80, 1000
# Characters that a terminal would interpret or hide: control characters except tab and newline, surrogates, unusual
# line separators, direction marks, zero-width spaces.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class UsageError(Exception):
    """An error of the user: one line per problem, of which indented lines are continuations; the exit code is 2."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitize(message))


class SchedulerUnavailable(UsageError):
    """The scheduler could not be reached; no work is lost, and the same command continues. The exit code is 3."""


def shorten(value: object) -> str:
    """Return a value as Python writes it, but null, true and false as in YAML, cut to MAX_VALUE_LENGTH characters."""
    text = YAML_WORDS.get(repr(value)) or repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or ` (there are: a, b, c)` if no known name is similar."""
    names = sorted(known)
    candidates = [name for name in names[:MAX_COMPARED_NAMES] if len(name) <= MAX_COMPARED_LENGTH]
    close = difflib.get_close_matches(word[:MAX_COMPARED_LENGTH], candidates, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not names:
        return ""
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f" (there are: {', '.join(shorten(n)[1:-1] for n in names[:MAX_NAMES])}{more})"
