"""S2EF LMDB files of pickled graphs: OC22, ODAC23."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from harness.reference.datasets.formats.composition import formula
from harness.reference.datasets.formats.gather import Row, Unfit, gathered, made, missing, need, row
from harness.reference.datasets.formats.lmdb_file import keys_there, reading
from harness.reference.datasets.formats.paths import PART, bounds, files
from harness.reference.datasets.formats.reader import Format, Part
from harness.reference.datasets.formats.safe_pickle import graph, loads
from harness.reference.errors import InputError
from harness.reference.frames import Fault, Frames


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of keys of each file."""
    found = []
    for path, label in files(paths, (".lmdb",), "LMDB files"):
        with reading(path) as transaction:
            count = _count(path, transaction)
        found += [Part(path, f"{label} {first}:{min(first + PART, count)}") for first in range(0, count, PART)]
    return found


def _count(path: Path, transaction: lmdb.Transaction) -> int:
    """The keys are 0, 1, ...; how many: under 'length', or else all entries."""
    if transaction.get(b"0") is None:
        raise InputError(f"{path}: not an S2EF LMDB, {missing('0', keys_there(transaction))}")
    entries = int(transaction.stat()["entries"])
    length = transaction.get(b"length")
    if length is None:
        return entries
    try:
        count = int(loads(bytes(length)))
    except (Unfit, TypeError, ValueError) as error:
        raise InputError(f"{path}: 'length' cannot be read ({error})") from None
    if not 0 <= count < entries or transaction.get(b"%d" % count) is not None:
        raise InputError(f"{path}: 'length' is {count}, but there are {entries - 1} structures")
    return count


def read(part: Part) -> Iterator[Frames | Fault]:
    """Structures in the order of their keys, with DFT totals: `raw_y`, or `y` where it is the only one (OC22).

    ODAC23's `y` is the adsorption energy (https://github.com/facebookresearch/fairchem/issues/633).
    """
    label, first, stop = bounds(part)
    with reading(part.path) as transaction:
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
    energy = found.get("raw_y", found.get("y"))
    if energy is None:
        raise Unfit("unlabelled", missing("y", found))
    force = found.get("force")
    system = found.get("sid")
    return row(
        where,
        formula(numbers) if system is None else str(np.asarray(system).reshape(-1)[0]),
        numbers,
        need(found, "pos"),
        energy=float(np.asarray(energy).reshape(-1)[0]),
        forces=found.get("forces") if force is None else force,
        cell=np.asarray(need(found, "cell")).reshape(-1, 3),
        periodic=(True, True, True),
    )


FORMAT = Format("s2ef_lmdb", "*.lmdb files, or folders of them", parts, read)
