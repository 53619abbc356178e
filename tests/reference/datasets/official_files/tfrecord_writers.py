"""Write tiny TFRecord shards in the official layout of QCML, byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.datasets.official_files.writers import BOHR, HARTREE, METHANOL, make_conformations


def compute_crc32c(data: bytes) -> int:
    """Return the CRC-32C checksum, computed bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def encode_record(data: bytes) -> bytes:
    def mask_checksum(part: bytes) -> bytes:
        crc = compute_crc32c(part)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + mask_checksum(length) + data + mask_checksum(data)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    result = b""
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def encode_example(features: dict[str, Any]) -> bytes:
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        elif np.asarray(value).dtype.kind == "f":
            feature = _field(2, _field(1, np.asarray(value, dtype="<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(_varint(int(v)) for v in np.ravel(value))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def make_qcml_features(k: int, **changes: Any) -> dict[str, Any]:
    positions, energy, forces = make_conformations(1, k)
    return {
        "atomic_numbers": METHANOL, "positions": positions[0] / BOHR, "charge": [-1], "multiplicity": [2],
        "pbe0_energy": energy / HARTREE, "pbe0_forces": forces[0] / HARTREE * BOHR, "is_outlier": [0],
        "pbe0_formation_energy": energy / HARTREE, "key_hash": b"%032x" % k,
    } | changes  # fmt: skip


def write_qcml(folder: Path, shards: tuple[int, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for s, count in enumerate(shards):
        records = b"".join(encode_record(encode_example(make_qcml_features(10 * s + k))) for k in range(count))
        (folder / f"qcml-full.tfrecord-{s:05d}-of-{len(shards):05d}").write_bytes(records)
    tensors = {name: {"tensor": {"dtype": "float32"}} for name in make_qcml_features(0)}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": tensors}}))
    (folder / "dataset_info.json").write_text(json.dumps({"name": "qcml", "splits": []}))
