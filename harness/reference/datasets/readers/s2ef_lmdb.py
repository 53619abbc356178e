"""S2EF LMDB files of pickled graphs: OC22, ODAC23."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, keys_there, numbered_keys, reading
from harness.reference.datasets.containers.safe_pickle import graph, loads
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.paths import PART, bounds, files
from harness.reference.datasets.parsing.structure_builder import Row, Unfit, gathered, made, missing, need, row
from harness.reference.errors import InputError

SPARSEST = 1000  # numbers of keys for each entry
RESERVED = frozenset({"length", "metadata"})
ENERGIES = ("raw_y", "energy", "y")  # in newer files, or where there are several, the first is the DFT total


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of keys of each file."""
    found = []
    for path, label in files(paths, (".lmdb", DATA_FILE), "LMDB files"):
        with reading(path) as transaction:
            count = _count(path, transaction)
        found += [Part(path, f"{label} {first}:{min(first + PART, count)}") for first in range(0, count, PART)]
    return found


def _count(path: Path, transaction: lmdb.Transaction) -> int:
    """The keys are 0, 1, ...; how many: one more than the last, and what 'length' says has to agree."""
    if transaction.get(b"0") is None:
        raise InputError(f"{path}: not an S2EF LMDB, {missing('0', keys_there(transaction))}")
    entries = int(transaction.stat()["entries"])
    length = transaction.get(b"length")
    count = entries - (length is not None)
    if transaction.get(b"%d" % (count - 1)) is None or transaction.get(b"%d" % count) is not None:
        numbers, _ = numbered_keys(transaction)
        count = numbers[-1] + 1
    if count > SPARSEST * entries:
        raise InputError(f"{path}: keys up to {count - 1}, but there are only {entries} entries; damaged?")
    if length is None:
        return count
    try:
        told = int(loads(bytes(length)))
    except (Unfit, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: 'length' cannot be read ({error})") from None
    if told < count:
        raise InputError(f"{path}: 'length' is {told}, but there are {count} structures")
    if told > SPARSEST * entries:
        raise InputError(f"{path}: 'length' is {told}, but there are only {entries} entries; damaged?")
    return told


def read(part: Part) -> Iterator[Frames | Fault]:
    """Structures in the order of their keys, with DFT totals: `raw_y`, `energy`, or `y` where there is no other (OC22).

    ODAC23's `y` is the adsorption energy (https://github.com/facebookresearch/fairchem/issues/633).
    """
    label, first, stop = bounds(part)
    with reading(part.path) as transaction:
        yield from _unknown(transaction, label) if first == 0 else ()
        yield from gathered(made(_samples(transaction, label, first, stop), _row))


def _samples(transaction: lmdb.Transaction, label: str, first: int, stop: int) -> Iterator[tuple[str, Any]]:
    for k in range(first, stop):
        where = f"{label}/{k}"
        value = transaction.get(b"%d" % k)
        yield where, Fault(where, "missing row", "no such key") if value is None else value


def _row(where: str, value: memoryview) -> Row:
    found = graph(value)
    numbers = np.asarray(need(found, "atomic_numbers"))
    told = found.get("natoms")
    if told is not None and int(np.asarray(told).reshape(-1)[0]) != numbers.size:
        raise Unfit("shape", f"natoms is {int(np.asarray(told).reshape(-1)[0])}, but there are {numbers.size} numbers")
    energy = next((found[name] for name in ENERGIES if name in found), None)
    if energy is None and "y_relaxed" in found:
        raise Unfit("unlabelled", "an IS2RE graph: y_relaxed is of another geometry and no DFT total; take S2EF files")
    if energy is None:
        raise Unfit("unlabelled", missing("y", found))
    system = found.get("sid")
    return row(
        where,
        formula(numbers) if system is None else str(np.asarray(system).reshape(-1)[0]),
        numbers,
        need(found, "pos"),
        energy=energy,
        forces=next((found[name] for name in ("force", "forces") if name in found), None),
        cell=np.asarray(need(found, "cell")).reshape(-1, 3),
        periodic=np.asarray(found.get("pbc", True)).reshape(-1),
        charge=found.get("charge"),
        multiplicity=found.get("spin"),
        names=found,
    )


def _unknown(transaction: lmdb.Transaction, label: str) -> Iterator[Fault]:
    """Faults for entries that are neither structures nor known."""
    last = int(transaction.stat()["entries"]) - 1
    known = sum(transaction.get(name.encode()) is not None for name in RESERVED)
    if transaction.get(b"%d" % (last - known)) is None:
        for name in numbered_keys(transaction)[1]:
            if name not in RESERVED:
                yield Fault(
                    f"{label}/{name[:40]}", "unknown entry", "its key is not a structure's, which are whole numbers"
                )


FORMAT = Format("s2ef_lmdb", "*.lmdb files, or folders of them", parts, read)
