"""Checks of a BP folder without ADIOS2, which hangs or crashes on a damaged one.

A seal, harness.json, lists sizes and checksums. It is in the folder of a store that this program wrote, and next to
the folder of one that HydraGNN wrote, which stays as it is.
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
HEADER_BYTES = 64
VERSION_BYTE = 37
LARGEST_SEAL = 16 << 20
BLOCK_BYTES = 16 << 10
Table = NDArray[np.uint32]


@dataclass(frozen=True)
class Seal:
    """The content of a seal whose own checksum is correct.

    path, sums: the files. sizes: bytes of each file. crc32: of the files that ADIOS2 trusts. arrays: of each array's
    table of checksums, in the order of the tables in `sums`. facts: those that the store's own attributes lack.
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
    """Write the sizes and checksums of a finished folder; tables: the checksums of each array."""
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
    """Write the files of a finished folder through to the disk."""
    for path in (*folder.iterdir(), folder):
        _sync_file(path)


def check_folder(path: Path, *, unfinished: bool = False) -> Seal | None:
    """Check that a BP folder is complete and has one finished step, and return its seal, if there is one.

    unfinished: the store is not sealed yet, so that an existing seal is ignored.
    Raises InputError, naming the file, for any other folder.
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
    """Return the seal of a store, or None if it has none; raises InputError for a damaged one."""
    for seal, sums in (get_inner_seal_paths(path), get_outer_seal_paths(path)):
        if seal.exists() or seal.is_symlink():
            return _read_seal(seal, sums)
    return None


def check_payload(path: Path, expected: int) -> None:
    """Raise InputError if the data files cannot hold this many bytes: reading past their end never returns."""
    size = sum(f.stat().st_size for f in path.glob("data.*"))
    if size < expected:
        raise InputError(f"{path}: truncated, {size} bytes of data for arrays of {expected} bytes")


def _read_seal(path: Path, sums: Path) -> Seal:
    damaged = InputError(f"{path}: damaged, not as it was written; restore it, or convert the dataset again")
    if not path.is_file() or path.stat().st_size > LARGEST_SEAL:
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
    """Return the seal of a store as it was written before blocks had checksums, or None where there is none."""
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
    """Compare the files that the seal lists, which are in the folder itself, with it."""
    folder = path.resolve()
    files = {entry.name: (folder / entry.name).resolve() for entry in os.scandir(folder)}
    for name in (*seal.sizes, *seal.crc32):
        if "/" in name or name in ("", ".", "..") or (name in files and files[name].parent != folder):
            raise InputError(f"{seal.path}: {name[:80]!r} is not a file in the store's folder")
    for name, size in seal.sizes.items():
        size_found = files[name].stat().st_size if name in files and files[name].is_file() else None
        if size_found != size:
            was = "is missing" if size_found is None else f"has {size_found} bytes"
            raise InputError(f"{path}: damaged, {name[:80]!r} {was} and was written with {size}")
    for name, checksum in seal.crc32.items():
        if name not in seal.sizes or zlib.crc32((path / name).read_bytes()) != checksum:
            raise InputError(f"{path}: damaged, {name} is not as it was written")


def _check_index(path: Path) -> None:
    """Check the steps that md.idx lists, and for BP5 that the metadata they point to exist."""
    index = (path / "md.idx").read_bytes()
    if len(index) <= HEADER_BYTES:
        raise InputError(f"{path}: incomplete: it holds no finished step")
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
        raise InputError(f"{path}: holds {steps} steps, a store has one")


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
    """Return how many rows of an array one checksum covers."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def count_blocks(rows: int, row_bytes: int) -> int:
    """Return how many checksums an array with this number of rows has."""
    return math.ceil(rows / count_rows_per_block(row_bytes))


class BlockSums:
    """The checksums of one array while its rows arrive, in any division."""

    def __init__(self, row_bytes: int) -> None:
        self._block_bytes = count_rows_per_block(row_bytes) * row_bytes
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
        """Return the checksum of each block; call it once the array is complete."""
        if self._filled:
            self._close_block()
        return np.array(self._sums, dtype="<u4")


class Verifier:
    """Compares blocks of one array with their checksums, each once."""

    def __init__(self, table: Table, rows: int, row_bytes: int) -> None:
        self._table = table
        self._rows = rows
        self._block_rows = count_rows_per_block(row_bytes)
        self._verified = bytearray(len(table))

    def widen(self, first: int, rows: int) -> tuple[int, int] | None:
        """Return the rows (first, stop) of whole blocks to read in place of these, or None where all are verified."""
        low, high = first // self._block_rows, -(-(first + rows) // self._block_rows)
        if 0 not in self._verified[low:high]:
            return None
        return low * self._block_rows, min(self._rows, high * self._block_rows)

    def find_damage(self, first: int, values: NDArray[Any]) -> int | None:
        """Return the first damaged block among contiguous rows that begin with a block at row `first`, or None."""
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
    """Return the tables as they are in the file, concatenated."""
    return b"".join(table.astype("<u4").tobytes() for table in tables)
