"""Errors that a user can cause, and the words that help to correct them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from harness.protocol.text import sanitize

SHOWN = 12
VALUE_SHOWN = 60
WORDS = {"None": "null", "True": "true", "False": "false"}
# Longer words and more names are not typing errors, and comparing them takes long.
COMPARED_LETTERS, COMPARED_NAMES = 80, 1000
# Characters that a terminal would obey or hide: control characters but tab and newline, half characters, unusual
# line ends, direction marks, spaces without width.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class UsageError(Exception):
    """What is wrong, one line for each problem (indented lines belong to the one above); the exit code is 2."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitize(message))


class Interrupted(UsageError):
    """The scheduler could not be reached: nothing is lost, the same command continues, and the exit code is 3."""


def shortened(value: object) -> str:
    """Return the value as Python writes it (but null, true and false as YAML does), or its beginning."""
    text = WORDS.get(repr(value)) or repr(value)
    return text if len(text) <= VALUE_SHOWN else text[: VALUE_SHOWN - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` or, where no name is close, ` (there are: a, b, c)`."""
    names = sorted(known)
    near = [name for name in names[:COMPARED_NAMES] if len(name) <= COMPARED_LETTERS]
    close = difflib.get_close_matches(word[:COMPARED_LETTERS], near, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" (there are: {', '.join(shortened(n)[1:-1] for n in names[:SHOWN])}{more})"
