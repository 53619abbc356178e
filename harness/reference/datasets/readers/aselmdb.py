"""ASE rows in LMDB files (*.aselmdb): OC25, OMat24, OMol25, OPoly26."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import orjson

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, keys_there, numbered_keys, reading
from harness.reference.datasets.parsing.base import MOST_BYTES, Format, Part
from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.paths import PART, bounds, files
from harness.reference.datasets.parsing.structure_builder import (
    Row,
    Unfit,
    gathered,
    made,
    missing,
    need,
    one_line,
    row,
)
from harness.reference.datasets.parsing.unpacking import inflate
from harness.reference.errors import InputError

ENDINGS = (".aselmdb", ".lmdb", DATA_FILE)
RESERVED = frozenset({"nextid", "deleted_ids", "metadata"})
SPARSEST = 1000  # ids for each entry
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # ASE's order: xx yy zz yz xz xy


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of row ids of each file."""
    found = []
    for path, label in files(paths, ENDINGS, "aselmdb files"):
        with reading(path) as transaction:
            stop = max(_next_id(path, transaction), *(k + 1 for k in _keys(path, transaction)[0][-1:]), 1)
        found += [Part(path, f"{label} {first}:{min(first + PART, stop)}") for first in range(1, stop, PART)]
    return found


def _next_id(path: Path, transaction: lmdb.Transaction) -> int:
    value = _entry(path, transaction, b"nextid")
    if value is None:
        raise InputError(f"{path}: not an aselmdb file, {missing('nextid', keys_there(transaction))}")
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: 'nextid' is {str(value)[:40]!r}, expected a whole number from 1")
    entries = int(transaction.stat()["entries"])
    if value > SPARSEST * (entries + 1):
        raise InputError(f"{path}: 'nextid' is {value}, but there are only {entries} entries; damaged?")
    return value


def _keys(path: Path, transaction: lmdb.Transaction) -> tuple[list[int], list[str]]:
    """Numbers of rows and names of other entries, where they are not as many as 'nextid' says; else nothing."""
    reserved = sum(transaction.get(name.encode()) is not None for name in RESERVED)
    rows = int(transaction.stat()["entries"]) - reserved
    if rows == _next_id(path, transaction) - 1 - len(set(_deleted(path, transaction))):
        return [], []
    numbers, others = numbered_keys(transaction)
    return numbers, [name for name in others if name not in RESERVED]


def _entry(path: Path, transaction: lmdb.Transaction, key: bytes) -> Any:
    """A key that is not a row, which some versions compress and others do not; None where there is none."""
    value = transaction.get(key)
    if value is None:
        return None
    raw = bytes(value)
    try:
        return orjson.loads(inflate(raw, MOST_BYTES) if raw[:1] == b"\x78" else raw)
    except (Unfit, orjson.JSONDecodeError):
        raise InputError(f"{path}: {key.decode()!r} is neither JSON nor compressed JSON") from None


def read(part: Part) -> Iterator[Frames | Fault]:
    """Rows in the order of their ids; deleted ones are passed over, absent ones and unknown entries are faults."""
    label, first, stop = bounds(part)
    with reading(part.path) as transaction:
        deleted = set(_deleted(part.path, transaction))
        for name in _keys(part.path, transaction)[1] if first == 1 else ():
            yield Fault(f"{label}/{name[:40]}", "unknown entry", "its key is not a row's, which are whole numbers")
        ids = (k for k in range(first, stop) if k not in deleted)
        yield from gathered(made(_samples(transaction, label, ids), _row))


def _deleted(path: Path, transaction: lmdb.Transaction) -> list[int]:
    found = _entry(path, transaction, b"deleted_ids")
    if found is not None and not (isinstance(found, list) and all(isinstance(k, int) for k in found)):
        raise InputError(f"{path}: 'deleted_ids' are {str(found)[:40]!r}, expected a list of whole numbers")
    return found or []


def _samples(transaction: lmdb.Transaction, label: str, ids: Iterator[int]) -> Iterator[tuple[str, Any]]:
    for k in ids:
        where = f"{label}/{k}"
        value = transaction.get(b"%d" % k)
        yield where, Fault(where, "missing row", "neither stored nor among the deleted ids") if value is None else value


def _row(name: str, value: memoryview) -> Row:
    stored = _decoded(value)
    numbers = _array(need(stored, "numbers"))
    data = stored.get("data") or {}
    return row(
        name,
        str(data["sid"]) if "sid" in data else formula(numbers),
        numbers,
        _array(need(stored, "positions")),
        energy=stored.get("energy"),
        forces=_array(stored.get("forces")),
        cell=_array(stored.get("cell")),
        periodic=_array(stored.get("pbc")),
        stress=_stress(stored.get("stress")),
        charge=data.get("charge"),
        multiplicity=data.get("spin"),
        names=[*stored, *data, *(stored.get("key_value_pairs") or ())],
    )


def _decoded(value: memoryview) -> Any:
    try:
        return orjson.loads(inflate(value, MOST_BYTES))
    except orjson.JSONDecodeError as error:
        raise Unfit("corrupt", f"not compressed JSON ({one_line(error)})") from None


def _array(stored: Any) -> Any:
    """A stored array: {"__ndarray__": [shape, dtype, flat]}, or a plain list."""
    if not isinstance(stored, dict):
        return stored
    shape, dtype, flat = need(stored, "__ndarray__")
    if dtype not in ("float64", "float32", "int64", "int32", "uint8", "bool"):
        raise Unfit("malformed", f"an array of type {dtype!r}")
    array = np.array(flat, dtype=dtype)
    if array.size != np.prod(shape, dtype=np.int64):
        raise Unfit("shape", f"an array of {array.size} numbers, expected shape {tuple(shape)}")
    return array.reshape(shape)


def _stress(stored: Any) -> Any:
    stress = _array(stored)
    if stress is None or np.size(stress) != 6:
        return stress
    return np.asarray(stress, dtype=np.float64).reshape(6)[VOIGT]


FORMAT = Format("aselmdb", "*.aselmdb files, or folders of them", parts, read)
