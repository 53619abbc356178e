"""Checksums of a store's arrays, block by block, so that each read can be verified at the cost of a block."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 16 << 10
Table = NDArray[np.uint32]


def rows_per_block(row_bytes: int) -> int:
    """Return how many rows of an array one checksum covers."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def count_blocks(rows: int, row_bytes: int) -> int:
    """Return how many checksums an array of so many rows has."""
    return math.ceil(rows / rows_per_block(row_bytes))


class BlockSums:
    """The checksums of one array while its rows arrive, in any division."""

    def __init__(self, row_bytes: int) -> None:
        self._block_bytes = rows_per_block(row_bytes) * row_bytes
        self._sums: list[int] = []
        self._running = 0
        self._filled = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows, which are contiguous with the samples' axis first."""
        data = rows.reshape(-1).data.cast("B") if rows.size else memoryview(b"")
        start = 0
        while start < len(data):
            stop = min(len(data), start + self._block_bytes - self._filled)
            self._running = zlib.crc32(data[start:stop], self._running)
            self._filled += stop - start
            start = stop
            if self._filled == self._block_bytes:
                self._close_block()

    def _close_block(self) -> None:
        self._sums.append(self._running)
        self._running = self._filled = 0

    def table(self) -> Table:
        """Return the checksums, one a block; the array is complete."""
        if self._filled:
            self._close_block()
        return np.array(self._sums, dtype="<u4")


class Verifier:
    """Compares blocks of one array with their checksums, each once."""

    def __init__(self, table: Table, rows: int, row_bytes: int) -> None:
        self._table = table
        self._rows = rows
        self._each = rows_per_block(row_bytes)
        self._done = bytearray(len(table))

    def widen(self, first: int, rows: int) -> tuple[int, int] | None:
        """Return the rows (first, stop) of whole blocks to read in place of these, or None where all are verified."""
        low, high = first // self._each, -(-(first + rows) // self._each)
        if 0 not in self._done[low:high]:
            return None
        return low * self._each, min(self._rows, high * self._each)

    def find_damage(self, first: int, values: NDArray[Any]) -> int | None:
        """Return the first block that differs, of contiguous rows that begin with a block at row `first`, or None."""
        data = values.reshape(-1).data.cast("B")
        step = len(data) // len(values) * self._each
        for number, start in enumerate(range(0, len(data), step), start=first // self._each):
            if not self._done[number]:
                if zlib.crc32(data[start : start + step]) != self._table[number]:
                    return number
                self._done[number] = 1
        return None

    def block_rows(self, number: int) -> tuple[int, int]:
        """Return the first and the last row of a block."""
        return number * self._each, min(self._rows, (number + 1) * self._each) - 1


def join_tables(tables: Sequence[Table]) -> bytes:
    """Return the tables as they stand in the file, one after the other."""
    return b"".join(table.astype("<u4").tobytes() for table in tables)
