"""Export of a store for HydraGNN's multi-branch training: NAME-v2.bp, with edges and residual energies.

The rules are those of HydraGNN's converters with a cutoff of 5 angstrom. Each atom has at most its 20 nearest
neighbours; row 1 of `edge_index` is the atom, row 0 the neighbour. A linear regression of the total energies of all
splits on the composition is subtracted; its 118 coefficients are the attribute energy_linear_regression_coeff.
`energy_per_atom` remains the total energy per atom. Numbers are in double precision, as in the paper's training. The
splits are those of the store. Atoms without neighbours have no edges, whereas HydraGNN's converters connect them to an
arbitrary atom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.data.neighbours import add_neighbours, count_degrees
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.hydragnn.stores import (
    COEFFICIENTS,
    REFERENCED,
    StoreFacts,
    decode_total_energies,
    describe_store,
    read_blocks,
)
from harness.reference.datasets.parsing.base import ProgressCallback
from harness.reference.datasets.reference_energies import References, StreamingLeastSquares
from harness.reference.datasets.splits import SPLITS
from harness.reference.datasets.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import ELEMENTS, Block, Column
from harness.reference.storage.structure_codec import encode_table

CUTOFF_ANGSTROM = 5.0
MAX_NEIGHBOURS = 20


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Attributes:
        samples: Number of structures of each split.
        edges: Number of edges.
        isolated: Number of structures without edges, which HydraGNN can read only if it preloads the store.
        coincident: Number of structures that are left out because atoms coincide.
    """

    samples: Counter[str]
    edges: int
    isolated: int
    coincident: int


def format_store_name(head: str) -> str:
    """Return the file name that HydraGNN's training expects."""
    return f"{head}-v2.bp"


def write_for_hydragnn(origin: Path, target: Path, progress: ProgressCallback) -> ExportResult:
    """Write the structures of a store for HydraGNN.

    Args:
        origin: The store.
        target: The store to write.
        progress: The function that reports progress.

    Raises:
        InputError: The store lacks a split or forces.
    """
    with BPFile(origin) as file:
        facts = describe_store(file)
        _require_keys(file)
        coefficients = _get_coefficients(facts)
        fit = StreamingLeastSquares(per_atom=False)
        for label in SPLITS:
            for table in _iter_tables(file, label, facts, coefficients):
                fit.add(table)
        references = fit.solve()
        with BPWriter(target, _build_attributes(facts, references)) as writer:
            return _write(
                file, facts=facts, coefficients=coefficients, references=references, writer=writer, progress=progress
            )


def _require_keys(file: BPFile) -> None:
    for label in SPLITS:
        if label not in file.splits:
            raise InputError(f"{file.path}: has no {label}; HydraGNN needs {', '.join(SPLITS)}")
        if "forces" not in file.keys(label):
            raise InputError(f"{file.path}: {label} has no forces, which HydraGNN's training needs")


def _get_coefficients(facts: StoreFacts) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    return np.nan_to_num(facts.references.energy_ev[1:]) if facts.energies == REFERENCED else None


def _iter_tables(file: BPFile, label: str, facts: StoreFacts, coefficients: Any) -> Iterator[StructureTable]:
    """Yield the usable structures of a split, with total energies."""
    left_out = np.array(facts.left_out.get(label, []), dtype=np.int64)
    for first, block in read_blocks(file, label):
        table = decode_total_energies(block, where=label, first=first, coefficients=coefficients)
        table = table[~np.isin(np.arange(first, first + len(table)), left_out)]
        if len(table):
            yield table


def _build_attributes(facts: StoreFacts, references: References) -> dict[str, Any]:
    return {
        "dataset": facts.source.slug,
        COEFFICIENTS: np.nan_to_num(references.energy_ev[1 : ELEMENTS + 1]),
        "about": {**facts.about, "written_for": "HydraGNN"},
        "energies": REFERENCED,
        "edges": f"at most {MAX_NEIGHBOURS} nearest neighbours within {CUTOFF_ANGSTROM:g} angstrom",
        "units": "eV, angstrom, eV/angstrom, eV/angstrom^3",
    }


def _write(
    file: BPFile,
    *,
    facts: StoreFacts,
    coefficients: Any,
    references: References,
    writer: BPWriter,
    progress: ProgressCallback,
) -> ExportResult:
    total = sum(file.count_samples(label) for label in SPLITS)
    statistics, degrees, samples = Statistics(), Counter[int](), Counter[str]()
    edges_written = isolated = coincident = 0
    error = np.zeros(2)
    for label in SPLITS:
        for frames in _iter_tables(file, label, facts, coefficients):
            table, rejected = add_neighbours(frames, cutoff=CUTOFF_ANGSTROM, max_neighbours=None)
            coincident += len(rejected)
            if not len(table):
                continue
            table = limit_neighbours(table, MAX_NEIGHBOURS)
            assert table.edge_counts is not None
            writer.split(label).put(_encode(table, references))
            residual = references.residual(table)
            error += np.abs(residual).sum(), residual @ residual
            statistics.add(table, references)
            edges_written += int(table.edge_counts.sum())
            isolated += int((table.edge_counts == 0).sum())
            if label == SPLITS[0]:
                degrees.update(dict(enumerate(count_degrees(table).tolist())))
            samples[label] += len(table)
            progress(samples.total(), total, "structures written")
    absolute, squared = error / max(1, samples.total())
    references = replace(references, mae_ev_per_atom=float(absolute), rmse_ev_per_atom=float(np.sqrt(squared)))
    writer.set_attribute("references", references.to_json())
    writer.set_attribute("statistics", statistics.to_json())
    writer.set_attribute("pna_deg", np.array([degrees[d] for d in range(max(degrees, default=0) + 1)], dtype=np.int64))
    return ExportResult(samples, edges_written, isolated, coincident)


def limit_neighbours(table: StructureTable, limit: int) -> StructureTable:
    """Return a table with at most the `limit` nearest neighbours of each atom, even if that divides a shell."""
    assert table.edge_counts is not None
    assert table.receiver is not None
    owner = np.repeat(np.arange(len(table)), table.edge_counts)
    starts = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(table.receiver, prepend=-1))
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(starts, append=len(owner)))
    return table.select_edges(rank < limit)


def _encode(table: StructureTable, references: References) -> Block:
    """Encode a table, with the regression subtracted from the keys `energy` and `y`."""
    block = encode_table(table)
    residual = table.energy - references.sum_energies(table)
    return Block(block.samples, {**block.columns, "energy": Column(residual, 1), "y": Column(residual.copy(), 1)})
