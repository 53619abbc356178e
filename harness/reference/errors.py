"""The errors that a user of the reference implementation can cause."""

from __future__ import annotations

from harness.protocol.text import sanitize_line


class InputError(ValueError):
    """Bad input; the message is one line that names the structure, file or value at fault."""

    def __init__(self, message: object) -> None:
        super().__init__(sanitize_line(str(message)))


class NotFinite(InputError):
    """Training came to numbers that are none, told with the batch that did it."""
