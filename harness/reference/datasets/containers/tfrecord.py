"""TFRecord files of tf.train.Example, read without TensorFlow.

Framing: length (uint64), its masked CRC32C, data, its masked CRC32C, all little-endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). Example: protocol buffer, features.feature is a map from
names to lists of bytes, floats or integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from harness.reference.datasets.parsing.base import MOST_BYTES
from harness.reference.datasets.parsing.paths import opened
from harness.reference.datasets.parsing.structure_builder import Unfit
from harness.reference.errors import InputError

_MASK_DELTA = 0xA282EAD8
_HEAD = struct.Struct("<QI")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def records(path: Path) -> Iterator[bytes | None]:
    """The records of a file, None for one whose checksum is wrong; raises InputError where the framing is lost."""
    with opened(path, 1 << 20) as file:
        offset = 0
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                raise InputError(f"{path}: truncated at byte {offset}, inside the length of a record")
            length, checksum = _HEAD.unpack(head)
            if _masked(head[:8]) != checksum or length > MOST_BYTES:
                what = "not a TFRecord file" if not offset else f"corrupt at byte {offset}, the rest is lost"
                raise InputError(f"{path}: {what} (the checksum of a record's length is wrong)")
            data, tail = file.read(length), file.read(4)
            if len(tail) < 4:
                raise InputError(f"{path}: truncated at byte {offset}, inside a record of {length} bytes")
            yield data if _masked(data) == int.from_bytes(tail, "little") else None
            offset += _HEAD.size + length + 4


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def example(data: bytes) -> dict[str, Any]:
    """The features of an Example: lists of bytes, arrays of float32, or lists of int; raises Unfit."""
    try:
        found: dict[str, Any] = {}
        for _, features in _fields(data, 1):
            for _, entry in _fields(features, 1):
                parts = dict(_fields(entry))
                found[bytes(parts[1]).decode()] = _feature(parts[2])
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise Unfit("corrupt", "not a tf.train.Example") from None
    return found


def _feature(data: bytes) -> Any:
    for kind, content in _fields(data):
        if kind == 1:
            return [value for _, value in _fields(content, 1)]
        runs = [value for _, value in _fields(content, 1)]
        if kind == 2:
            return np.frombuffer(b"".join(runs), dtype="<f4")
        if kind == 3:
            return [n for run in runs for n in ([run] if isinstance(run, int) else _integers(run))]
    return []


def _fields(data: bytes, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: an int, or the bytes of everything else."""
    position, stop = 0, len(data)
    while position < stop:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value: Any
            value, position = _varint(data, position)
            value = _signed(value)
        else:
            if wire == _BYTES:
                length, position = _varint(data, position)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise ValueError(f"wire type {wire}")
            value = data[position : position + length]
            position += length
            if position > stop:
                raise ValueError("a field beyond the end")
        if only is None or number == only:
            yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integers(data: bytes) -> list[int]:
    if not data or max(data) < 0x80:
        return list(data)
    found, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        found.append(_signed(value))
    return found
