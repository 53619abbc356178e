"""Examine stores that HydraGNN wrote, array by array, before they get a seal and can be used for training.

The stored energies are total energies, or the residuals of a linear regression on the composition, whose coefficients
are an attribute. Row 1 of `edge_index` is an atom, row 0 one of its neighbours, at most 20; `edge_shifts` is added to
the position of the atom in row 1. The harness does not use these edges in training, because HydraGNN divides shells of
equal distance and connects atoms without neighbours to arbitrary atoms; neighbours are computed again.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.hydragnn.stores import (
    COEFFICIENTS,
    check_columns,
    decode_total_energies,
    find_inconsistencies,
    read_blocks,
    sum_coefficients,
)
from harness.reference.datasets.parsing.base import ProgressCallback
from harness.reference.datasets.parsing.plausibility import describe_implausible_lengths, find_implausible_energies
from harness.reference.datasets.parsing.unit_checks import MAX_FORCE, check_structures
from harness.reference.datasets.reference_energies import (
    ELEMENT_SLOTS,
    ElementState,
    References,
    StreamingLeastSquares,
    count_elements,
)
from harness.reference.datasets.splits import SPLITS
from harness.reference.datasets.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import BlockSums, Table
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.schema import ELEMENTS as BINS
from harness.reference.storage.schema import Block, move_samples_first
from harness.reference.storage.structure_codec import REQUIRED_KEYS, decode_compositions

MAX_EXAMPLES = 5
MAX_RESIDUAL_EV = 1000.0  # eV per atom, minus reference energies; no bond has a hundredth of this energy
Result = TypeVar("Result")
MAX_READ_S = 120  # a read that takes longer is considered never to return


@dataclass
class SplitFindings:
    """The findings in one split.

    Attributes:
        samples: Number of samples.
        statistics: Statistics of the usable samples.
        left_out: Indices of the samples that cannot be used.
        edges: Number of stored edges.
    """

    samples: int
    statistics: Statistics = field(default_factory=Statistics)
    left_out: list[int] = field(default_factory=list)
    edges: int = 0


@dataclass
class Findings:
    """The findings in a store of HydraGNN.

    Attributes:
        coefficients: [118] coefficients of the regression, None if there is none.
        is_referenced: Whether the regression is subtracted from the stored energies.
        references: The reference energies.
        splits: The findings in each split.
        faults: Number of structures that cannot be used, by kind.
        unusual: Number of structures that are unusual but usable, by kind.
        examples: Descriptions of the first structures of each kind of `faults` and `unusual`.
        tables: The checksums of all arrays.
        entry: The expected dataset.
    """

    coefficients: Array | None
    is_referenced: bool
    references: References
    splits: dict[str, SplitFindings] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    unusual: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    entry: DatasetSource | None = None

    @property
    def samples(self) -> int:
        """The number of structures in all splits."""
        return sum(split.samples for split in self.splits.values())

    def add(self, counter: Counter[str], kind: str, where: str, reason: str) -> None:
        """Count a structure in `faults` or `unusual`, and describe it if it is among the first of its kind."""
        counter[kind] += 1
        if counter[kind] <= MAX_EXAMPLES:
            self.examples.append(f"{where}: {reason}")


def examine_store(
    path: Path, find_entry: Callable[[object], DatasetSource | None], progress: ProgressCallback
) -> Findings:
    """Examine a store in a separate process, since ADIOS2 may crash.

    Args:
        path: The store.
        find_entry: Returns the expected dataset for the attribute dataset_name, or None.
        progress: The function that reports progress.
    """

    def work() -> Findings:
        restart_alarm()
        with BPFile(path) as file:
            return examine_file(file, find_entry(file.attributes.get("dataset_name")), progress)

    return run_isolated(path, work)


def examine_file(file: BPFile, entry: DatasetSource | None, progress: ProgressCallback) -> Findings:
    """Examine all arrays of a store.

    Args:
        file: The store.
        entry: The dataset with which energies are compared; None for no comparison.
        progress: The function that reports progress.

    Raises:
        InputError: Counts, offsets or shapes contradict each other, so that structures cannot be separated.
    """
    _check_layout(file)
    coefficients = _read_coefficients(file)
    findings = _start_findings(file, coefficients)
    findings.entry = entry
    subtracted = coefficients if findings.is_referenced else None
    total, count = sum(file.count_samples(label) for label in file.splits), 0
    sums = {array.name: BlockSums(array.row_bytes) for array in file.arrays()}
    for label in file.splits:
        split = findings.splits[label] = SplitFindings(file.count_samples(label))
        for first, block in read_blocks(file, label):
            for name, column in block.columns.items():
                sums[f"{label}/{name}"].add(move_samples_first(column.values, column.axis))
            table = decode_total_energies(block, where=label, first=first, coefficients=subtracted)
            _examine_block(block, table, first, split, findings)
            if entry is not None:
                _compare_with_source(table, entry, findings)
            count += block.samples
            restart_alarm()
            progress(count, total, "structures read")
    for array in file.tables():
        for rows in file.pieces(array):
            sums[array.name].add(rows)
    findings.tables = {name: array_sums.table() for name, array_sums in sums.items()}
    return findings


def _check_layout(file: BPFile) -> None:
    """Raise InputError unless the samples of each array follow each other without gaps."""
    for label in file.splits:
        missing = next((key for key in REQUIRED_KEYS if key not in file.keys(label)), None)
        if missing:
            raise InputError(f"{file.path}: {label} has no {missing!r}, which training needs")
        for key in file.keys(label):
            ends = file.bounds(label, key)
            differs = np.flatnonzero(file.offsets(label, key) != ends[:-1])
            if len(differs):
                raise InputError(f"{file.path}: damaged, the offset of {label}/{key} of sample {differs[0]} is wrong")
    total = sum(file.count_samples(label) for label in file.splits)
    if file.attributes.get("total_ndata", total) != total:
        text = file.attributes["total_ndata"]
        raise InputError(f"{file.path}: damaged, total_ndata is {text}, but its splits have {total} samples")


def _read_coefficients(file: BPFile) -> Array | None:
    attribute = file.attributes.get(COEFFICIENTS)
    if attribute is None:
        return None
    values = np.asarray(attribute)
    if values.dtype.kind not in "fi" or values.shape != (BINS,):
        raise InputError(f"{file.path}: {COEFFICIENTS} has shape {values.shape}, expected {BINS} numbers")
    return values.astype(np.float64)


def _start_findings(file: BPFile, coefficients: Array | None) -> Findings:
    """Return findings that have only the reference energies, and whether they are subtracted from the stored energies.

    The scalar product of regressed energies with the stored energies is zero for residuals; for total energies, it is
    the square of the regressed energies.
    """
    present = np.zeros(ELEMENT_SLOTS, dtype=bool)
    fit, product, square, residuals = StreamingLeastSquares(), 0.0, 0.0, RegressionErrors()
    for label in file.splits:
        for _, block in read_blocks(file, label, ("energy", "atomic_numbers")):
            restart_alarm()
            table = decode_compositions(block)
            present |= count_elements(table).any(axis=0)
            if coefficients is None:
                if label == SPLITS[0]:
                    fit.add(table)
                continue
            regressed = sum_coefficients(block, coefficients)
            finite = np.isfinite(table.energy) & np.isfinite(regressed)
            product += float(table.energy[finite] @ regressed[finite])
            square += float(regressed[finite] @ regressed[finite])
            if label == SPLITS[0]:
                residuals.add(table, regressed)
    if coefficients is None:
        return Findings(None, False, fit.solve())
    energy_ev = np.concatenate([[np.nan], coefficients])
    invalid = np.flatnonzero(present[1:] & ~np.isfinite(coefficients)) + 1
    if len(invalid):
        raise InputError(f"{file.path}: {COEFFICIENTS} of element {invalid[0]} is {energy_ev[invalid[0]]}")
    present[0] = False
    state = np.where(present, ElementState.FITTED, ElementState.ABSENT).astype(np.int64)
    is_referenced = product <= square / 2
    mae, rmse = residuals.errors(is_referenced)
    energy_ev = np.where(present, energy_ev, np.nan)
    return Findings(
        coefficients,
        is_referenced,
        References(
            energy_ev,
            state,
            int(present.sum()),
            structures=residuals.structures,
            rmse_ev_per_atom=rmse,
            mae_ev_per_atom=mae,
        ),
    )


class RegressionErrors:
    """The errors per atom of the regression, if it is subtracted from the stored energies and if it is not."""

    def __init__(self) -> None:
        self.structures = 0
        self._sums = {True: np.zeros(2), False: np.zeros(2)}

    def add(self, table: StructureTable, regressed: Array) -> None:
        """Add a block of the training split."""
        known = np.isfinite(table.energy) & (table.sizes > 0)
        self.structures += int(known.sum())
        for is_referenced in self._sums:
            residual = (table.energy - (0.0 if is_referenced else regressed))[known] / table.sizes[known]
            self._sums[is_referenced] += np.abs(residual).sum(), residual @ residual

    def errors(self, is_referenced: bool) -> tuple[float, float]:
        """Return the mean absolute error and the root of the mean square, eV/atom."""
        absolute, squared = self._sums[is_referenced] / max(1, self.structures)
        return float(absolute), float(np.sqrt(squared))


def _examine_block(block: Block, table: StructureTable, first: int, split: SplitFindings, findings: Findings) -> None:
    """Count the faulty structures of a block, and add the others to the statistics."""
    is_faulty: NDArray[np.bool_] = np.zeros(len(table), dtype=bool)
    is_extreme = np.abs(np.nan_to_num(findings.references.residual(table), nan=0.0)) > MAX_RESIDUAL_EV
    energies = ("energy", is_extreme, f"a residual energy of more than {MAX_RESIDUAL_EV:g} eV per atom")
    for kind, mask, reason in (energies, *check_columns(block, table)):
        for k in np.flatnonzero(mask & ~is_faulty).tolist():
            findings.add(findings.faults, kind, str(table.ids[k]), reason)
        is_faulty |= mask
    for kind, mask, reason in find_inconsistencies(block, table):
        for k in np.flatnonzero(mask & ~is_faulty).tolist():
            findings.add(findings.unusual, kind, str(table.ids[k]), reason)
    sound, faults = check_structures(table[~is_faulty], source=None, max_force=MAX_FORCE)
    for fault in faults:
        findings.add(findings.faults, fault.kind, fault.where, fault.reason)
    usable = np.isin(table.ids, sound.ids)
    split.left_out += (first + np.flatnonzero(~usable)).tolist()
    split.edges += int(block.columns["edge_attr"].rows(block.samples).sum()) if "edge_attr" in block.columns else 0
    split.statistics.add(sound, findings.references)


def _compare_with_source(table: StructureTable, entry: DatasetSource, findings: Findings) -> None:
    """Count structures whose energies or lengths are implausible for the dataset."""
    sound = table[np.isfinite(table.energy) & (table.sizes > 0)]
    if not len(sound):
        return
    wrong, reason = find_implausible_energies(sound, entry)
    for k in np.flatnonzero(wrong).tolist():
        findings.add(findings.unusual, f"energies unlike {entry.level}", str(sound.ids[k]), reason(k))
    lengths = describe_implausible_lengths(sound, entry) if entry.molecular else ""
    if lengths:
        findings.add(findings.unusual, "blocks of unlikely bond lengths", str(sound.ids[0]), lengths)


def run_isolated(path: Path, work: Callable[[], Result]) -> Result:
    """Call `work` in a separate process, and return its result or raise its error.

    Raises:
        InputError: The process crashes; the message names the store at `path`.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(work, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        raise InputError(f"{path}: damaged, ADIOS2 crashes on it or does not return; restore it") from None
    finally:
        process.kill()
        process.join()
    if isinstance(error, MemoryError):
        raise InputError(f"{path}: damaged, it asks for more memory than there is; restore it")
    if error is not None:
        raise error
    return result


def restart_alarm() -> None:
    """End the process unless this function is called again within MAX_READ_S: a read may never return."""
    if multiprocessing.parent_process() is not None:
        signal.alarm(MAX_READ_S)


def _send_result(work: Callable[[], Result], sender: multiprocessing.connection.Connection) -> None:
    faulthandler.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # suppress the messages of C++ at a crash
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        sender.send((work(), None))
    except Exception as error:
        sender.send((None, error))
    finally:
        os._exit(0)
