"""Where a pickle ends and what it asks for, seen without running it."""

from __future__ import annotations

import pickletools

from harness.reference.datasets.parsing.base import MOST_BYTES
from harness.reference.datasets.parsing.structure_builder import Unfit

MOST_OPERATIONS = 200_000  # of a pickle; a graph has a few hundred
LINES = pickletools.UP_TO_NEWLINE
# bytes that say how long an argument is
PREFIX = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
ARGUMENTS = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
TWO_LINES = frozenset(ord(op.code) for op in pickletools.opcodes if op.name in ("GLOBAL", "INST"))
PUT, LONG_BINPUT, STOP = ord("p"), ord("r"), ord(".")


def end_of_pickle(data: bytes, start: int = 0) -> int:
    """Return where the pickle that begins at `start` ends.

    Raises Unfit for one that is cut, or that asks for more memory than its own size explains: too many operations,
    arguments beyond its end, places in the memo beyond the number of its operations.
    """
    if len(data) > MOST_BYTES:
        raise Unfit("too large", f"a pickle of {len(data)} bytes, more than {MOST_BYTES}")
    position, size = start, len(data)
    for count in range(MOST_OPERATIONS):
        if position >= size:
            break
        code = data[position]
        position += 1
        if code == STOP:
            return position
        length = ARGUMENTS.get(code)
        if length is None:
            raise Unfit("corrupt", f"cannot be unpickled (no operation {code:#x})")
        if length > 0:
            if code == LONG_BINPUT:
                _check_memo(int.from_bytes(data[position : position + 4], "little"), count)
            position += length
        elif length == LINES:
            position = _after_lines(data, position, code, count)
        elif length < 0:
            prefix = PREFIX[length]
            position += prefix + int.from_bytes(data[position : position + prefix], "little")
    else:
        raise Unfit("too large", f"a pickle of more than {MOST_OPERATIONS} operations")
    raise Unfit("corrupt", "cannot be unpickled (truncated)")


def _after_lines(data: bytes, position: int, code: int, count: int) -> int:
    stop = data.find(b"\n", position)
    if stop < 0:
        raise Unfit("corrupt", "cannot be unpickled (truncated)")
    if code == PUT:
        text = data[position:stop]
        _check_memo(int(text) if text.isdigit() and len(text) < 10 else -1, count)
    return _after_lines(data, stop + 1, 0, count) if code in TWO_LINES else stop + 1


def _check_memo(place: int, count: int) -> None:
    if not 0 <= place <= count:
        raise Unfit("corrupt", f"cannot be unpickled (place {place} in a memo of {count})")
