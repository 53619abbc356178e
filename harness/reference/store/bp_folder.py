"""What can be told of a BP folder without ADIOS2, which hangs or crashes on a damaged one."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

from harness.reference.errors import InputError

SEAL = "harness.json"
PART = ".part"
HEADER_BYTES = 64
VERSION_BYTE = 37


def seal(folder: Path) -> None:
    """Leave in a finished folder the size of each file, and the checksums of those ADIOS2 trusts."""
    sizes = {f.name: f.stat().st_size for f in sorted(folder.iterdir())}
    sums = {f.name: zlib.crc32(f.read_bytes()) for f in sorted(folder.glob("m*"))}
    (folder / SEAL).write_text(json.dumps({"bytes": sizes, "crc32": sums}), encoding="utf-8")
    for found in (*folder.iterdir(), folder):
        handle = os.open(found, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def check_whole(path: Path) -> None:
    """Raise InputError, naming the file, unless this is a BP folder with one finished step and nothing missing."""
    if not path.is_dir():
        raise InputError(f"{path}: {'not a BP folder' if path.exists() else 'no such BP folder'}")
    for name in ("md.idx", "md.0", "data.0"):
        if not (path / name).is_file():
            raise InputError(f"{path}: {name} is missing; not a BP folder, or a damaged one")
    if (path / SEAL).exists():
        _check_seal(path)
    _check_index(path)


def check_payload(path: Path, expected: int) -> None:
    """Raise InputError if the data files cannot hold so many bytes: reading past their end never returns."""
    there = sum(f.stat().st_size for f in path.glob("data.*"))
    if there < expected:
        raise InputError(f"{path}: truncated, {there} bytes of data for arrays of {expected} bytes")


def _check_seal(path: Path) -> None:
    try:
        content = json.loads((path / SEAL).read_text(encoding="utf-8"))
        sizes, sums = dict(content["bytes"]), dict(content["crc32"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: {SEAL} is damaged") from None
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            was = "is missing" if found is None else f"has {found} bytes"
            raise InputError(f"{path}: damaged, {name} {was} and was written with {size}")
    for name, checksum in sums.items():
        if zlib.crc32((path / name).read_bytes()) != checksum:
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
        if kind not in (b"s", b"w", b"m") or at > len(index):
            raise InputError(f"{path}: md.idx is damaged or cut off")
        if kind == b"s":
            steps += 1
            start, size = struct.unpack_from("<QQ", index, body)
            if start + size > (path / "md.0").stat().st_size:
                raise InputError(f"{path}: truncated, md.0 ends before what md.idx lists")
    if steps != 1:
        raise InputError(f"{path}: holds {steps} steps, a store has one")
