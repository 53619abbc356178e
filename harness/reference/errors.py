"""The errors that a user of the reference implementation can cause."""

from __future__ import annotations

from harness.protocol.text import sanitize_line

MAX_LINE = 500  # characters


class InputError(ValueError):
    """Bad input; the message is one line that names the structure, file or value at fault."""

    def __init__(self, message: object) -> None:
        super().__init__(sanitize_line(str(message)))


class NotFinite(InputError):
    """A loss, a gradient or a prediction of a training is not finite; the message says which."""


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message, truncated, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_LINE]
