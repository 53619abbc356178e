"""Checks of a BP folder that need no ADIOS2, which hangs or crashes if files are damaged.

A seal, harness.json, lists sizes and checksums. It is inside the folder of a store that this program wrote, but next to
the folder of a store that HydraGNN wrote, which is never changed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.host.files import write_bytes
from harness.reference.errors import InputError

SEAL = "harness.json"
SUMS = "harness.crc32"
PART = ".part"
HEADER_BYTES = 64  # size of the header of md.idx
VERSION_BYTE = 37  # position of the BP version in that header
MAX_SEAL_BYTES = 16 << 20
BLOCK_BYTES = 16 << 10  # size of the blocks that have a checksum each
Table = NDArray[np.uint32]


@dataclass(frozen=True)
class Seal:
    """The content of a seal whose own checksum is correct.

    Attributes:
        path: The file of the seal.
        sums: The file with the checksums of all arrays, one table after the other.
        sizes: The size of each file of the store in bytes.
        crc32: The checksum of each metadata file (m*), which ADIOS2 reads without checks of its own.
        arrays: The checksum of each array's table of checksums, in the order of the tables in `sums`.
        facts: Facts of the store that are not among its attributes.
    """

    path: Path
    sums: Path
    sizes: Mapping[str, int]
    crc32: Mapping[str, int]
    arrays: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)


def get_inner_seal_paths(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the seal and the checksums of a store that this program wrote."""
    return folder / SEAL, folder / SUMS


def get_outer_seal_paths(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the seal and the checksums of a store that HydraGNN wrote."""
    path = folder if folder.name not in ("", "..") else folder.resolve()
    return path.with_name(f"{path.name}.{SEAL}"), path.with_name(f"{path.name}.{SUMS}")


def write_seal(
    folder: Path, paths: tuple[Path, Path], tables: Mapping[str, Table], facts: Mapping[str, Any] | None = None
) -> None:
    """Write the seal of a finished folder.

    Args:
        folder: The folder of the store.
        paths: The paths of the seal and of the file of checksums.
        tables: The checksums of the blocks of each array.
        facts: Facts of the store that are not among its attributes.
    """
    seal, sums = paths
    _write_synced(sums, join_tables(list(tables.values())))
    files = sorted(f for f in folder.iterdir() if f.is_file() and f != seal)
    content = {
        "bytes": {f.name: f.stat().st_size for f in files},
        "crc32": {f.name: zlib.crc32(f.read_bytes()) for f in files if f.name.startswith("m")},
        "arrays": {name: zlib.crc32(table.tobytes()) for name, table in tables.items()},
        "facts": dict(facts or {}),
    }
    text = json.dumps({"content": content, "crc32": _compute_checksum(content)})
    _write_synced(seal, text.encode())
    _sync_file(seal.parent)


def sync_files(folder: Path) -> None:
    """Wait until the files of a finished folder are on disk."""
    for path in (*folder.iterdir(), folder):
        _sync_file(path)


def check_folder(path: Path, *, unfinished: bool = False) -> Seal | None:
    """Check that a BP folder is complete and has exactly one step, and return its seal, or None if it has none.

    Args:
        path: The folder.
        unfinished: Whether the store is not sealed yet, so that an existing seal is ignored.

    Raises:
        InputError: The folder is missing, incomplete or damaged; the message names the file.
    """
    if not path.is_dir():
        raise InputError(f"{path}: {'not a BP folder' if path.exists() else 'no such BP folder'}")
    for name in ("md.idx", "md.0", "data.0"):
        if not (path / name).is_file():
            raise InputError(f"{path}: {name} is missing; not a BP folder, or a damaged one")
    seal = None if unfinished else find_seal(path)
    if seal is not None:
        check_files(path, seal)
    _check_index(path)
    return seal


def find_seal(path: Path) -> Seal | None:
    """Return the seal of a store, or None if it has none; raises InputError if the seal is damaged."""
    for seal, sums in (get_inner_seal_paths(path), get_outer_seal_paths(path)):
        if seal.exists() or seal.is_symlink():
            return _read_seal(seal, sums)
    return None


def check_payload(path: Path, expected: int) -> None:
    """Raise InputError if the data files have fewer bytes than expected; ADIOS2 hangs when it reads past their end."""
    size = sum(f.stat().st_size for f in path.glob("data.*"))
    if size < expected:
        raise InputError(f"{path}: truncated, {size} bytes of data for arrays of {expected} bytes")


def _read_seal(path: Path, sums: Path) -> Seal:
    damaged = InputError(f"{path}: damaged, not as it was written; restore it, or convert the dataset again")
    if not path.is_file() or path.stat().st_size > MAX_SEAL_BYTES:
        raise damaged
    try:
        whole = json.loads(path.read_bytes())
        content = whole["content"]
        intact = whole["crc32"] == _compute_checksum(content)
        tables = [content[name] for name in ("bytes", "crc32", "arrays")]
        counts = [n for numbers in tables for n in numbers.values()]
        intact &= all(type(n) is int and 0 <= n < 2**63 for n in counts) and isinstance(content["facts"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if read_older_seal(path.parent):
            raise InputError(
                f"{path.parent}: written by an older version, without checksums of its blocks;"
                f" `harness data convert DATASET {path.parent}` adds them without a copy"
            ) from None
        raise damaged from None
    if not intact:
        raise damaged
    return Seal(path, sums, tables[0], crc32=tables[1], arrays=tables[2], facts=content["facts"])


def read_older_seal(path: Path) -> Seal | None:
    """Return the seal of a store that an earlier version wrote, without checksums of blocks, or None."""
    seal, sums = get_inner_seal_paths(path)
    try:
        content = json.loads(seal.read_bytes())
        sizes, crc32 = content["bytes"], content["crc32"]
        is_older = set(content) == {"bytes", "crc32"} and all(
            type(n) is int for n in (*sizes.values(), *crc32.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Seal(seal, sums, sizes, crc32, {}) if is_older else None


def _compute_checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_files(path: Path, seal: Seal) -> None:
    """Compare the files in the folder with their sizes and checksums in the seal; raises InputError."""
    folder = path.resolve()
    files = {entry.name: (folder / entry.name).resolve() for entry in os.scandir(folder)}
    for name in (*seal.sizes, *seal.crc32):
        if "/" in name or name in ("", ".", "..") or (name in files and files[name].parent != folder):
            raise InputError(f"{seal.path}: {name[:80]!r} is not a file in the store's folder")
    for name, size in seal.sizes.items():
        present_size = files[name].stat().st_size if name in files and files[name].is_file() else None
        if present_size != size:
            problem = "is missing" if present_size is None else f"has {present_size} bytes"
            raise InputError(f"{path}: damaged, {name[:80]!r} {problem} and was written with {size}")
    for name, checksum in seal.crc32.items():
        if name not in seal.sizes or zlib.crc32((path / name).read_bytes()) != checksum:
            raise InputError(f"{path}: damaged, {name} is not as it was written")


def _check_index(path: Path) -> None:
    """Check the steps that md.idx lists and, for the version BP5, that the metadata of each step exist."""
    index = (path / "md.idx").read_bytes()
    if len(index) <= HEADER_BYTES:
        raise InputError(f"{path}: incomplete: it has no finished step")
    if index[VERSION_BYTE] != 5:
        return
    if not (path / "mmd.0").is_file():
        raise InputError(f"{path}: mmd.0 is missing; a damaged BP folder")
    steps, offset = 0, HEADER_BYTES
    while offset < len(index):
        kind, length = struct.unpack_from("<cQ", index, offset) if offset + 9 <= len(index) else (b"?", 0)
        body = offset + 9
        offset = body + length
        if kind not in (b"s", b"w", b"m") or offset > len(index) or (kind == b"s" and length < 16):
            raise InputError(f"{path}: md.idx is damaged or cut off")
        if kind == b"s":
            steps += 1
            start, size = struct.unpack_from("<QQ", index, body)
            if start + size > (path / "md.0").stat().st_size:
                raise InputError(f"{path}: truncated, md.0 ends before what md.idx lists")
    if steps != 1:
        raise InputError(f"{path}: has {steps} steps, expected one")


def _write_synced(path: Path, content: bytes) -> None:
    """Write a file atomically and wait until it is on the disk."""
    write_bytes(path, content)
    _sync_file(path)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def count_rows_per_block(row_bytes: int) -> int:
    """Return the number of rows of an array in one block, that is per checksum."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def count_blocks(rows: int, row_bytes: int) -> int:
    """Return the number of blocks, and so of checksums, of an array with this number of rows."""
    return math.ceil(rows / count_rows_per_block(row_bytes))


class BlockSums:
    """The checksums of one array, computed while its rows arrive in pieces of any size."""

    def __init__(self, row_bytes: int) -> None:
        self._block_bytes = count_rows_per_block(row_bytes) * row_bytes
        self._sums: list[int] = []
        self._running = 0
        self._filled = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows to the array.

        Args:
            rows: A contiguous array, with the axis along which samples are concatenated first.
        """
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
        """Return the checksum of each block, [blocks]; all rows must have been added."""
        if self._filled:
            self._close_block()
        return np.array(self._sums, dtype="<u4")


class Verifier:
    """The comparison of the blocks of one array with their checksums; each block is compared once."""

    def __init__(self, table: Table, rows: int, row_bytes: int) -> None:
        self._table = table
        self._rows = rows
        self._block_rows = count_rows_per_block(row_bytes)
        self._verified = bytearray(len(table))

    def widen(self, first: int, rows: int) -> tuple[int, int] | None:
        """Return the rows (first, stop) of the blocks that contain `rows` rows from `first` on.

        Return None if all of these blocks have been verified.
        """
        low, high = first // self._block_rows, -(-(first + rows) // self._block_rows)
        if 0 not in self._verified[low:high]:
            return None
        return low * self._block_rows, min(self._rows, high * self._block_rows)

    def find_damage(self, first: int, values: NDArray[Any]) -> int | None:
        """Compare whole blocks that start at row `first`; return the index of the first damaged block, or None."""
        data = values.reshape(-1).data.cast("B")
        step = len(data) // len(values) * self._block_rows
        for number, start in enumerate(range(0, len(data), step), start=first // self._block_rows):
            if not self._verified[number]:
                if zlib.crc32(data[start : start + step]) != self._table[number]:
                    return number
                self._verified[number] = 1
        return None

    def block_rows(self, number: int) -> tuple[int, int]:
        """Return the first and the last row of a block."""
        return number * self._block_rows, min(self._rows, (number + 1) * self._block_rows) - 1


def join_tables(tables: Sequence[Table]) -> bytes:
    """Return the tables as bytes, one after the other, as in the file of checksums."""
    return b"".join(table.astype("<u4").tobytes() for table in tables)
