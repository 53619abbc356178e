"""Reader of ASE rows in LMDB files (*.aselmdb): OC25, OMat24, OMol25, OPoly26."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import orjson

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, list_first_keys, list_keys, open_transaction
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, VOIGT, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import format_formula
from harness.reference.datasets.parsing.paths import CHUNK_STRUCTURES, list_files, parse_chunk_bounds
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    describe_missing_key,
    require_key,
    tabulate_rows,
)
from harness.reference.datasets.parsing.unpacking import inflate
from harness.reference.errors import InputError, get_first_line

ENDINGS = (".aselmdb", ".lmdb", DATA_FILE)
RESERVED = frozenset({"nextid", "deleted_ids", "metadata"})
MAX_IDS_PER_ENTRY = 1000  # with more row ids per stored entry, the file is damaged


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of row ids of each file."""
    chunks = []
    for path, label in list_files(paths, ENDINGS, "aselmdb files"):
        with open_transaction(path) as transaction:
            stop = max(
                _read_next_id(path, transaction), *(k + 1 for k in _find_irregular_keys(path, transaction)[0][-1:]), 1
            )
        chunks += [
            FileChunk(path, f"{label} {first}:{min(first + CHUNK_STRUCTURES, stop)}")
            for first in range(1, stop, CHUNK_STRUCTURES)
        ]
    return chunks


def _read_next_id(path: Path, transaction: lmdb.Transaction) -> int:
    value = _read_entry(path, transaction, b"nextid")
    if value is None:
        raise InputError(f"{path}: not an aselmdb file, {describe_missing_key('nextid', list_first_keys(transaction))}")
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: 'nextid' is {str(value)[:40]!r}, expected a whole number from 1")
    entries = int(transaction.stat()["entries"])
    if value > MAX_IDS_PER_ENTRY * (entries + 1):
        raise InputError(f"{path}: 'nextid' is {value}, but there are only {entries} entries; damaged?")
    return value


def _find_irregular_keys(path: Path, transaction: lmdb.Transaction) -> tuple[list[int], list[str]]:
    """Return the row ids and all other keys if the number of rows does not match 'nextid', else two empty lists."""
    reserved = sum(transaction.get(name.encode()) is not None for name in RESERVED)
    rows = int(transaction.stat()["entries"]) - reserved
    if rows == _read_next_id(path, transaction) - 1 - len(set(_read_deleted_ids(path, transaction))):
        return [], []
    numbers, others = list_keys(transaction)
    return numbers, [name for name in others if name not in RESERVED]


def _read_entry(path: Path, transaction: lmdb.Transaction, key: bytes) -> Any:
    """Return the value of a key that is not a row, compressed or not, or None."""
    value = transaction.get(key)
    if value is None:
        return None
    raw = bytes(value)
    try:
        return orjson.loads(inflate(raw, MAX_STRUCTURE_BYTES) if raw[:1] == b"\x78" else raw)
    except (InvalidStructure, orjson.JSONDecodeError):
        raise InputError(f"{path}: {key.decode()!r} is neither JSON nor compressed JSON") from None


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield rows in the order of their ids, without deleted rows; missing rows and unknown entries are rejected."""
    label, first, stop = parse_chunk_bounds(chunk)
    with open_transaction(chunk.path) as transaction:
        deleted = set(_read_deleted_ids(chunk.path, transaction))
        for name in _find_irregular_keys(chunk.path, transaction)[1] if first == 1 else ():
            yield RejectedStructure(
                f"{label}/{name[:40]}", "unknown entry", "its key is not a whole number, as the keys of rows are"
            )
        ids = (k for k in range(first, stop) if k not in deleted)
        yield from tabulate_rows(build_each(_iter_samples(transaction, label, ids), _build_row))


def _read_deleted_ids(path: Path, transaction: lmdb.Transaction) -> list[int]:
    ids = _read_entry(path, transaction, b"deleted_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(k, int) for k in ids)):
        raise InputError(f"{path}: 'deleted_ids' are {str(ids)[:40]!r}, expected a list of whole numbers")
    return ids or []


def _iter_samples(transaction: lmdb.Transaction, label: str, ids: Iterator[int]) -> Iterator[tuple[str, Any]]:
    for k in ids:
        where = f"{label}/{k}"
        value = transaction.get(b"%d" % k)
        yield (
            where,
            RejectedStructure(where, "missing row", "neither stored nor among the deleted ids")
            if value is None
            else value,
        )


def _build_row(name: str, value: memoryview) -> StructureRow:
    stored = _decode_row(value)
    numbers = _decode_array(require_key(stored, "numbers"))
    data = stored.get("data") or {}
    return build_row(
        name,
        str(data["sid"]) if "sid" in data else format_formula(numbers),
        numbers,
        _decode_array(require_key(stored, "positions")),
        energy=stored.get("energy"),
        forces=_decode_array(stored.get("forces")),
        cell=_decode_array(stored.get("cell")),
        periodic=_decode_array(stored.get("pbc")),
        stress=_read_stress(stored.get("stress")),
        charge=data.get("charge"),
        multiplicity=data.get("spin"),
        names=[*stored, *data, *(stored.get("key_value_pairs") or ())],
    )


def _decode_row(value: memoryview) -> Any:
    try:
        return orjson.loads(inflate(value, MAX_STRUCTURE_BYTES))
    except orjson.JSONDecodeError as error:
        raise InvalidStructure("corrupt", f"not compressed JSON ({get_first_line(error)})") from None


def _decode_array(stored: Any) -> Any:
    """Decode an array that is stored as {"__ndarray__": [shape, dtype, flat]} or as a plain list."""
    if not isinstance(stored, dict):
        return stored
    shape, dtype, flat = require_key(stored, "__ndarray__")
    if dtype not in ("float64", "float32", "int64", "int32", "uint8", "bool"):
        raise InvalidStructure("malformed", f"an array of type {dtype!r}")
    array = np.array(flat, dtype=dtype)
    if array.size != np.prod(shape, dtype=np.int64):
        raise InvalidStructure("shape", f"an array of {array.size} numbers, expected shape {tuple(shape)}")
    return array.reshape(shape)


def _read_stress(stored: Any) -> Any:
    stress = _decode_array(stored)
    if stress is None or np.size(stress) != 6:
        return stress
    return np.asarray(stress, dtype=np.float64).reshape(6)[VOIGT]


FORMAT = DatasetFormat("aselmdb", "*.aselmdb files, or folders of them", list_chunks, read_chunk)
