"""S2EF LMDB files of pickled graphs: OC22, ODAC23."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, list_first_keys, list_keys, open_transaction
from harness.reference.datasets.containers.safe_pickle import load_graph, load_pickle
from harness.reference.datasets.parsing.base import DatasetFormat, FileChunk
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
from harness.reference.errors import InputError

SPARSEST = 1000  # numbers of keys for each entry
RESERVED = frozenset({"length", "metadata"})
ENERGIES = ("raw_y", "energy", "y")  # in newer files, or where there are several, the first is the DFT total


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of keys of each file."""
    chunks = []
    for path, label in list_files(paths, (".lmdb", DATA_FILE), "LMDB files"):
        with open_transaction(path) as transaction:
            count = _count_structures(path, transaction)
        chunks += [
            FileChunk(path, f"{label} {first}:{min(first + CHUNK_STRUCTURES, count)}")
            for first in range(0, count, CHUNK_STRUCTURES)
        ]
    return chunks


def _count_structures(path: Path, transaction: lmdb.Transaction) -> int:
    """Return the number of structures: keys are 0, 1, ..., and 'length' has to agree."""
    if transaction.get(b"0") is None:
        raise InputError(f"{path}: not an S2EF LMDB, {describe_missing_key('0', list_first_keys(transaction))}")
    entries = int(transaction.stat()["entries"])
    length = transaction.get(b"length")
    count = entries - (length is not None)
    if transaction.get(b"%d" % (count - 1)) is None or transaction.get(b"%d" % count) is not None:
        numbers, _ = list_keys(transaction)
        count = numbers[-1] + 1
    if count > SPARSEST * entries:
        raise InputError(f"{path}: keys up to {count - 1}, but there are only {entries} entries; damaged?")
    if length is None:
        return count
    try:
        announced = int(load_pickle(bytes(length)))
    except (InvalidStructure, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: 'length' cannot be read ({error})") from None
    if announced < count:
        raise InputError(f"{path}: 'length' is {announced}, but there are {count} structures")
    if announced > SPARSEST * entries:
        raise InputError(f"{path}: 'length' is {announced}, but there are only {entries} entries; damaged?")
    return announced


def read_chunk(part: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield structures in the order of their keys, with DFT totals: `raw_y`, `energy`, or else `y` (OC22).

    ODAC23's `y` is the adsorption energy (https://github.com/facebookresearch/fairchem/issues/633).
    """
    label, first, stop = parse_chunk_bounds(part)
    with open_transaction(part.path) as transaction:
        yield from _reject_unknown(transaction, label) if first == 0 else ()
        yield from tabulate_rows(build_each(_iter_samples(transaction, label, first, stop), _build_row))


def _iter_samples(transaction: lmdb.Transaction, label: str, first: int, stop: int) -> Iterator[tuple[str, Any]]:
    for k in range(first, stop):
        where = f"{label}/{k}"
        value = transaction.get(b"%d" % k)
        yield where, RejectedStructure(where, "missing row", "no such key") if value is None else value


def _build_row(where: str, value: memoryview) -> StructureRow:
    graph = load_graph(value)
    numbers = np.asarray(require_key(graph, "atomic_numbers"))
    announced = graph.get("natoms")
    if announced is not None and int(np.asarray(announced).reshape(-1)[0]) != numbers.size:
        raise InvalidStructure(
            "shape", f"natoms is {int(np.asarray(announced).reshape(-1)[0])}, but there are {numbers.size} numbers"
        )
    energy = next((graph[name] for name in ENERGIES if name in graph), None)
    if energy is None and "y_relaxed" in graph:
        raise InvalidStructure(
            "unlabelled", "an IS2RE graph: y_relaxed is of another geometry and no DFT total; take S2EF files"
        )
    if energy is None:
        raise InvalidStructure("unlabelled", describe_missing_key("y", graph))
    system = graph.get("sid")
    return build_row(
        where,
        format_formula(numbers) if system is None else str(np.asarray(system).reshape(-1)[0]),
        numbers,
        require_key(graph, "pos"),
        energy=energy,
        forces=next((graph[name] for name in ("force", "forces") if name in graph), None),
        cell=np.asarray(require_key(graph, "cell")).reshape(-1, 3),
        periodic=np.asarray(graph.get("pbc", True)).reshape(-1),
        charge=graph.get("charge"),
        multiplicity=graph.get("spin"),
        names=graph,
    )


def _reject_unknown(transaction: lmdb.Transaction, label: str) -> Iterator[RejectedStructure]:
    """Yield rejections of entries that are neither structures nor known."""
    last = int(transaction.stat()["entries"]) - 1
    known = sum(transaction.get(name.encode()) is not None for name in RESERVED)
    if transaction.get(b"%d" % (last - known)) is None:
        for name in list_keys(transaction)[1]:
            if name not in RESERVED:
                yield RejectedStructure(
                    f"{label}/{name[:40]}", "unknown entry", "its key is not a structure's, which are whole numbers"
                )


FORMAT = DatasetFormat("s2ef_lmdb", "*.lmdb files, or folders of them", list_chunks, read_chunk)
