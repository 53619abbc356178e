"""What can be told of a BP folder without ADIOS2, which hangs or crashes on a damaged one.

A seal, harness.json, lists sizes and checksums. It lies in the folder of a store that this program wrote, and beside
the folder of one that HydraGNN wrote, which stays as it is.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.reference.errors import InputError
from harness.reference.storage.adios.checksums import Table, join_tables

SEAL = "harness.json"
SUMS = "harness.crc32"
PART = ".part"
HEADER_BYTES = 64
VERSION_BYTE = 37
LARGEST_SEAL = 16 << 20


@dataclass(frozen=True)
class Seal:
    """What a seal says, its own checksum having been compared.

    path, sums: the files. sizes: bytes of each file. crc32: of the files that ADIOS2 trusts. arrays: of each array's
    table of checksums, in the order in which the tables stand in `sums`. facts: what the store's own attributes lack.
    """

    path: Path
    sums: Path
    sizes: Mapping[str, int]
    crc32: Mapping[str, int]
    arrays: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)


def inner_seal_paths(folder: Path) -> tuple[Path, Path]:
    """Return where the seal and the checksums of a store of this program are."""
    return folder / SEAL, folder / SUMS


def outer_seal_paths(folder: Path) -> tuple[Path, Path]:
    """Return where the seal and the checksums of a store of HydraGNN are."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}.{SEAL}"), named.with_name(f"{named.name}.{SUMS}")


def write_seal(
    folder: Path, places: tuple[Path, Path], tables: Mapping[str, Table], facts: Mapping[str, Any] | None = None
) -> None:
    """Write the sizes and checksums of a finished folder; tables: of each array."""
    seal, sums = places
    _write_whole(sums, join_tables(list(tables.values())))
    files = sorted(f for f in folder.iterdir() if f.is_file() and f != seal)
    content = {
        "bytes": {f.name: f.stat().st_size for f in files},
        "crc32": {f.name: zlib.crc32(f.read_bytes()) for f in files if f.name.startswith("m")},
        "arrays": {name: zlib.crc32(table.tobytes()) for name, table in tables.items()},
        "facts": dict(facts or {}),
    }
    text = json.dumps({"content": content, "crc32": _checksum(content)})
    _write_whole(seal, text.encode())
    _sync(seal.parent)


def sync_files(folder: Path) -> None:
    """Have the files of a finished folder reach the disk."""
    for found in (*folder.iterdir(), folder):
        _sync(found)


def check_whole(path: Path, *, unfinished: bool = False) -> Seal | None:
    """Return the seal, if there is one, of a BP folder with one finished step and nothing missing.

    unfinished: the store is not sealed yet, and a seal that is there does not count.
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
    """Return what the seal of a store says, or None where it has none; raises InputError for a damaged one."""
    for seal, sums in (inner_seal_paths(path), outer_seal_paths(path)):
        if seal.exists() or seal.is_symlink():
            return _read_seal(seal, sums)
    return None


def check_payload(path: Path, expected: int) -> None:
    """Raise InputError if the data files cannot hold so many bytes: reading past their end never returns."""
    there = sum(f.stat().st_size for f in path.glob("data.*"))
    if there < expected:
        raise InputError(f"{path}: truncated, {there} bytes of data for arrays of {expected} bytes")


def _read_seal(path: Path, sums: Path) -> Seal:
    damaged = InputError(f"{path}: damaged, not as it was written; restore it, or convert the dataset anew")
    if not path.is_file() or path.stat().st_size > LARGEST_SEAL:
        raise damaged
    try:
        whole = json.loads(path.read_bytes())
        content = whole["content"]
        intact = whole["crc32"] == _checksum(content)
        named = [content[name] for name in ("bytes", "crc32", "arrays")]
        counts = [n for numbers in named for n in numbers.values()]
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
    return Seal(path, sums, named[0], named[1], named[2], content["facts"])


def read_older_seal(path: Path) -> Seal | None:
    """Return the seal of a store as it was written before blocks had checksums, or None where there is none."""
    seal, sums = inner_seal_paths(path)
    try:
        content = json.loads(seal.read_bytes())
        sizes, crc32 = content["bytes"], content["crc32"]
        is_older = set(content) == {"bytes", "crc32"} and all(
            type(n) is int for n in (*sizes.values(), *crc32.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Seal(seal, sums, sizes, crc32, {}) if is_older else None


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_files(path: Path, seal: Seal) -> None:
    """Compare the files that the seal lists, which are in the folder itself, with it."""
    folder = path.resolve()
    files = {entry.name: (folder / entry.name).resolve() for entry in os.scandir(folder)}
    for name in (*seal.sizes, *seal.crc32):
        if "/" in name or name in ("", ".", "..") or (name in files and files[name].parent != folder):
            raise InputError(f"{seal.path}: {name[:80]!r} is not a file in the store's folder")
    for name, size in seal.sizes.items():
        found = files[name].stat().st_size if name in files and files[name].is_file() else None
        if found != size:
            was = "is missing" if found is None else f"has {found} bytes"
            raise InputError(f"{path}: damaged, {name[:80]!r} {was} and was written with {size}")
    for name, checksum in seal.crc32.items():
        if name not in seal.sizes or zlib.crc32((path / name).read_bytes()) != checksum:
            raise InputError(f"{path}: damaged, {name} is not as it was written")


def _check_index(path: Path) -> None:
    """The steps as md.idx lists them; of BP5 also whether the metadata that they point to is there."""
    index = (path / "md.idx").read_bytes()
    if len(index) <= HEADER_BYTES:
        raise InputError(f"{path}: half-written, it holds no finished step")
    if index[VERSION_BYTE] != 5:
        return
    if not (path / "mmd.0").is_file():
        raise InputError(f"{path}: mmd.0 is missing; a damaged BP folder")
    steps, at = 0, HEADER_BYTES
    while at < len(index):
        kind, length = struct.unpack_from("<cQ", index, at) if at + 9 <= len(index) else (b"?", 0)
        body = at + 9
        at = body + length
        if kind not in (b"s", b"w", b"m") or at > len(index) or (kind == b"s" and length < 16):
            raise InputError(f"{path}: md.idx is damaged or cut off")
        if kind == b"s":
            steps += 1
            start, size = struct.unpack_from("<QQ", index, body)
            if start + size > (path / "md.0").stat().st_size:
                raise InputError(f"{path}: truncated, md.0 ends before what md.idx lists")
    if steps != 1:
        raise InputError(f"{path}: holds {steps} steps, a store has one")


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
