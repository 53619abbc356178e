"""Reader of QCML: qcml/dft_force_field, a TensorFlow dataset (TFDS) of TFRecord files, in atomic units.

Source: Ganscha et al., Sci. Data 12, 406 (2025).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orjson

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import BOHR_ANGSTROM, HARTREE_EV, format_formula
from harness.reference.datasets.parsing.paths import list_files, list_folder, open_file
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    describe_missing_key,
    require_key,
    tabulate_rows,
)
from harness.reference.errors import InputError

SHARD = re.compile(r"\.tfrecord(-\d+-of-\d+)?$")
FEATURES = ("atomic_numbers", "positions", "pbe0_energy", "pbe0_forces")
_MASK_DELTA = 0xA282EAD8
_HEAD = struct.Struct("<QI")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return one chunk for each shard."""
    shards: list[Path] = []
    for path in paths:
        below = [p for p in list_folder(path) if SHARD.search(p.name)] if path.is_dir() else [path]
        if not below:
            raise InputError(f"{path}: no TFRecord shards in this folder (looked for *.tfrecord-<k>-of-<n>)")
        shards += below
    listed = list_files(shards, (), "TFRecord shards")
    for folder in sorted({path.parent for path, _ in listed}):
        _check_features(folder)
    next(iter_records(listed[0][0]), None)
    return [FileChunk(path, label) for path, label in listed]


def _check_features(folder: Path) -> None:
    """Raise InputError if features.json, next to the shards, lacks a feature that the reader needs."""
    path = folder / "features.json"
    if not path.is_file():
        return
    try:
        named = orjson.loads(path.read_bytes())["featuresDict"]["features"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: not the description of a TFDS dataset") from None
    for feature in FEATURES:
        if feature not in named:
            raise InputError(f"{path}: not qcml/dft_force_field, {describe_missing_key(feature, named)}")


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield molecules in the order of the shard; molecules that the authors flag as outliers are rejected."""
    yield from tabulate_rows(build_each(_iter_samples(chunk), _build_row))


def _iter_samples(chunk: FileChunk) -> Iterator[tuple[str, Any]]:
    for k, data in enumerate(iter_records(chunk.path)):
        where = f"{chunk.key}/{k}"
        yield where, RejectedStructure(where, "corrupt", "the record's checksum is wrong") if data is None else data


def _build_row(where: str, data: bytes) -> StructureRow:
    features = decode_example(data)
    if any(features.get("is_outlier", ())):
        raise InvalidStructure("outlier", "flagged by the dataset's authors")
    numbers = require_key(features, "atomic_numbers")
    return build_row(
        where,
        format_formula(numbers),
        numbers,
        _read_reals(features, "positions") * BOHR_ANGSTROM,
        energy=_read_reals(features, "pbe0_energy")[0] * HARTREE_EV,
        forces=_read_reals(features, "pbe0_forces") * (HARTREE_EV / BOHR_ANGSTROM),
        charge=_read_integer(features, "charge"),
        multiplicity=_read_integer(features, "multiplicity"),
    )


def _read_reals(features: dict[str, Any], name: str) -> Array:
    values = require_key(features, name)
    if not isinstance(values, np.ndarray) or not len(values):
        raise InvalidStructure("malformed", f"{name!r} holds no floats")
    return values.astype(np.float64)


def _read_integer(features: dict[str, Any], name: str) -> int:
    values = features.get(name, ())
    return int(values[0]) if len(values) else 0


FORMAT = DatasetFormat("qcml", "tfds/qcml/dft_force_field/1.0.0 (TFRecord shards)", list_chunks, read_chunk)


def iter_records(path: Path) -> Iterator[bytes | None]:
    """Yield the records of a file, or None for one with a wrong checksum; raises InputError for a damaged length."""
    with open_file(path, 1 << 20) as file:
        offset = 0
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                raise InputError(f"{path}: truncated at byte {offset}, inside the length of a record")
            length, checksum = _HEAD.unpack(head)
            if _mask_checksum(head[:8]) != checksum or length > MAX_STRUCTURE_BYTES:
                problem = "not a TFRecord file" if not offset else f"corrupt at byte {offset}, the rest is lost"
                raise InputError(f"{path}: {problem} (the checksum of a record's length is wrong)")
            data, tail = file.read(length), file.read(4)
            if len(tail) < 4:
                raise InputError(f"{path}: truncated at byte {offset}, inside a record of {length} bytes")
            yield data if _mask_checksum(data) == int.from_bytes(tail, "little") else None
            offset += _HEAD.size + length + 4


def _mask_checksum(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def decode_example(data: bytes) -> dict[str, Any]:
    """Decode a tf.train.Example: each feature is a list of bytes or int, or an array of float32.

    Raises:
        InvalidStructure: The record is not a tf.train.Example.
    """
    try:
        result: dict[str, Any] = {}
        for _, features in _iter_fields(data, 1):
            for _, entry in _iter_fields(features, 1):
                parts = dict(_iter_fields(entry))
                result[bytes(parts[1]).decode()] = _decode_feature(parts[2])
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise InvalidStructure("corrupt", "not a tf.train.Example") from None
    return result


def _decode_feature(data: bytes) -> Any:
    for kind, content in _iter_fields(data):
        if kind == 1:
            return [value for _, value in _iter_fields(content, 1)]
        runs = [value for _, value in _iter_fields(content, 1)]
        if kind == 2:
            return np.frombuffer(b"".join(runs), dtype="<f4")
        if kind == 3:
            return [n for run in runs for n in ([run] if isinstance(run, int) else _decode_integers(run))]
    return []


def _iter_fields(data: bytes, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a protobuf message; a value is an int, or bytes for other types."""
    position, stop = 0, len(data)
    while position < stop:
        key, position = _decode_varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value: Any
            value, position = _decode_varint(data, position)
            value = _convert_to_signed(value)
        else:
            if wire == _BYTES:
                length, position = _decode_varint(data, position)
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


def _decode_varint(data: bytes, position: int) -> tuple[int, int]:
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


def _convert_to_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _decode_integers(data: bytes) -> list[int]:
    if not data or max(data) < 0x80:
        return list(data)
    result, position = [], 0
    while position < len(data):
        value, position = _decode_varint(data, position)
        result.append(_convert_to_signed(value))
    return result
