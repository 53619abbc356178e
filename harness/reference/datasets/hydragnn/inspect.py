"""Stores that HydraGNN wrote: gone through array by array, and given a seal beside them so that training takes them.

Their energies are total, or what is left of them after a linear regression on the composition, whose coefficients are
an attribute. In `edge_index` row 1 is the atom whose neighbours are listed, at most 20 of them, and row 0 the
neighbour; `edge_shifts` is added to the position in row 1. Training here does not use these edges: the original cuts
shells of equal distance apart, and joins atoms that have no neighbours to any other. Neighbours are found anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Frames
from harness.reference.datasets.catalog import Source
from harness.reference.datasets.hydragnn.original_columns import find_faults, find_oddities
from harness.reference.datasets.hydragnn.stored_frames import (
    COEFFICIENTS,
    REQUIRED,
    compositions_of,
    frames_of,
    read_blocks,
    sum_coefficients,
)
from harness.reference.datasets.parsing.plausibility import implausible_energies, implausible_lengths
from harness.reference.datasets.parsing.unit_checks import MAX_FORCE, check
from harness.reference.datasets.splitting.isolated_process import expect_soon, run_apart
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.datasets.statistics.reference_energies import ELEMENTS, Fit, References, State, compositions
from harness.reference.datasets.statistics.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.checksums import BlockSums, Table
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.schema import ELEMENTS as BINS
from harness.reference.storage.schema import Block, sample_major

EXAMPLES = 5
MAX_ENERGY = 1000.0  # eV per atom beyond the references: no bond is worth a hundredth of it
Progress = Callable[[int, int, str], None]


@dataclass
class SplitFindings:
    """What one split holds. left_out: indices of the samples at fault."""

    samples: int
    statistics: Statistics = field(default_factory=Statistics)
    left_out: list[int] = field(default_factory=list)
    edges: int = 0


@dataclass
class Findings:
    """What a store of HydraGNN holds.

    coefficients: [118] of the regression, None where there is none. is_referenced: whether it was subtracted.
    faults: structures that cannot be used, by kind. notes: what is unusual and no fault. examples: the first of each.
    tables: checksums of all arrays. entry: the dataset that was expected.
    """

    coefficients: Array | None
    is_referenced: bool
    references: References
    splits: dict[str, SplitFindings] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    entry: Source | None = None

    @property
    def samples(self) -> int:
        """Structures of all splits."""
        return sum(split.samples for split in self.splits.values())

    def add(self, counter: Counter[str], kind: str, where: str, reason: str) -> None:
        """Count a fault or a note."""
        counter[kind] += 1
        if counter[kind] <= EXAMPLES:
            self.examples.append(f"{where}: {reason}")


def examine_store(path: Path, entry_of: Callable[[object], Source | None], progress: Progress) -> Findings:
    """Examine a store in a process of its own; entry_of: its dataset_name -> the dataset that is expected."""

    def work() -> Findings:
        expect_soon()
        with BPFile(path) as file:
            return examine(file, entry_of(file.attributes.get("dataset_name")), progress)

    return run_apart(path, work)


def examine(file: BPFile, entry: Source | None, progress: Progress) -> Findings:
    """Go through all arrays of a store; entry: whose energies are expected.

    Raises InputError where no structure can be told from another: counts, offsets or shapes that contradict each other.
    """
    _check_layout(file)
    coefficients = _read_coefficients(file)
    findings = _reference(file, coefficients)
    findings.entry = entry
    subtracted = coefficients if findings.is_referenced else None
    total, done = sum(file.samples(label) for label in file.splits), 0
    sums = {array.name: BlockSums(array.row_bytes) for array in file.arrays()}
    for label in file.splits:
        split = findings.splits[label] = SplitFindings(file.samples(label))
        for first, block in read_blocks(file, label):
            for name, column in block.columns.items():
                sums[f"{label}/{name}"].add(sample_major(column.values, column.axis))
            frames = frames_of(block, label, first, subtracted)
            _examine_block(block, frames, first, split, findings)
            if entry is not None:
                _compare_with_source(frames, entry, findings)
            done += block.samples
            expect_soon()
            progress(done, total, "structures read")
    for array in file.tables():
        for rows in file.pieces(array):
            sums[array.name].add(rows)
    findings.tables = {name: each.table() for name, each in sums.items()}
    return findings


def _check_layout(file: BPFile) -> None:
    """Raise InputError unless each array's samples follow one another without a gap."""
    for label in file.splits:
        missing = next((key for key in REQUIRED if key not in file.keys(label)), None)
        if missing:
            raise InputError(f"{file.path}: {label} has no {missing!r}, which training needs")
        for key in file.keys(label):
            ends = file.ends(label, key)
            differs = np.flatnonzero(file.offsets(label, key) != ends[:-1])
            if len(differs):
                raise InputError(f"{file.path}: damaged, the offset of {label}/{key} of sample {differs[0]} is wrong")
    total = sum(file.samples(label) for label in file.splits)
    if file.attributes.get("total_ndata", total) != total:
        text = file.attributes["total_ndata"]
        raise InputError(f"{file.path}: damaged, total_ndata is {text}, its splits have {total} samples")


def _read_coefficients(file: BPFile) -> Array | None:
    result = file.attributes.get(COEFFICIENTS)
    if result is None:
        return None
    values = np.asarray(result)
    if values.dtype.kind not in "fi" or values.shape != (BINS,):
        raise InputError(f"{file.path}: {COEFFICIENTS} has shape {values.shape}, expected {BINS} numbers")
    return values.astype(np.float64)


def _reference(file: BPFile, coefficients: Array | None) -> Findings:
    """Find out whether the regression was subtracted, and what the references are.

    What is left of a regression is orthogonal to it; total energies are not: their product with it is its square.
    """
    present = np.zeros(ELEMENTS, dtype=bool)
    fit, product, square, residuals = Fit(), 0.0, 0.0, Residuals()
    for label in file.splits:
        for _, block in read_blocks(file, label, ("energy", "atomic_numbers")):
            expect_soon()
            frames = compositions_of(block)
            present |= compositions(frames).any(axis=0)
            if coefficients is None:
                if label == SPLITS[0]:
                    fit.add(frames)
                continue
            regressed = sum_coefficients(block, coefficients)
            finite = np.isfinite(frames.energy) & np.isfinite(regressed)
            product += float(frames.energy[finite] @ regressed[finite])
            square += float(regressed[finite] @ regressed[finite])
            if label == SPLITS[0]:
                residuals.add(frames, regressed)
    if coefficients is None:
        return Findings(None, False, fit.solved())
    energy_ev = np.concatenate([[np.nan], coefficients])
    lost = np.flatnonzero(present[1:] & ~np.isfinite(coefficients)) + 1
    if len(lost):
        raise InputError(f"{file.path}: {COEFFICIENTS} of element {lost[0]} is {energy_ev[lost[0]]}")
    present[0] = False
    state = np.where(present, State.FITTED, State.ABSENT).astype(np.int64)
    is_referenced = product <= square / 2
    mae, rmse = residuals.errors(is_referenced)
    energy_ev = np.where(present, energy_ev, np.nan)
    return Findings(
        coefficients,
        is_referenced,
        References(energy_ev, state, int(present.sum()), residuals.structures, rmse, mae),
    )


class Residuals:
    """Errors of the regression per atom, whether it was subtracted or not."""

    def __init__(self) -> None:
        self.structures = 0
        self._sums = {True: np.zeros(2), False: np.zeros(2)}

    def add(self, frames: Frames, regressed: Array) -> None:
        """Take in a block of the training split."""
        known = np.isfinite(frames.energy) & (frames.sizes > 0)
        self.structures += int(known.sum())
        for is_referenced in self._sums:
            rest = (frames.energy - (0.0 if is_referenced else regressed))[known] / frames.sizes[known]
            self._sums[is_referenced] += np.abs(rest).sum(), rest @ rest

    def errors(self, is_referenced: bool) -> tuple[float, float]:
        """Return the mean absolute error and the root of the mean square, eV/atom."""
        absolute, squared = self._sums[is_referenced] / max(1, self.structures)
        return float(absolute), float(np.sqrt(squared))


def _examine_block(block: Block, frames: Frames, first: int, split: SplitFindings, findings: Findings) -> None:
    """Count what is wrong with the structures of a block, and take the others into the statistics."""
    bad: NDArray[np.bool_] = np.zeros(len(frames), dtype=bool)
    beyond = np.abs(np.nan_to_num(findings.references.residual(frames), nan=0.0)) > MAX_ENERGY
    energies = ("energy", beyond, f"an energy of more than {MAX_ENERGY:g} eV per atom beyond the references")
    for kind, mask, reason in (energies, *find_faults(block, frames)):
        for k in np.flatnonzero(mask & ~bad).tolist():
            findings.add(findings.faults, kind, str(frames.ids[k]), reason)
        bad |= mask
    for kind, mask, reason in find_oddities(block, frames):
        for k in np.flatnonzero(mask & ~bad).tolist():
            findings.add(findings.notes, kind, str(frames.ids[k]), reason)
    sound, faults = check(frames[~bad], source=None, max_force=MAX_FORCE)
    for fault in faults:
        findings.add(findings.faults, fault.kind, fault.where, fault.reason)
    usable = np.isin(frames.ids, sound.ids)
    split.left_out += (first + np.flatnonzero(~usable)).tolist()
    split.edges += int(block.columns["edge_attr"].rows(block.samples).sum()) if "edge_attr" in block.columns else 0
    split.statistics.add(sound, findings.references)


def _compare_with_source(frames: Frames, entry: Source, findings: Findings) -> None:
    """Count structures whose energies or lengths are not what the dataset's level of theory gives."""
    sound = frames[np.isfinite(frames.energy) & (frames.sizes > 0)]
    if not len(sound):
        return
    wrong, reason = implausible_energies(sound, entry)
    for k in np.flatnonzero(wrong).tolist():
        findings.add(findings.notes, f"energies unlike {entry.level}", str(sound.ids[k]), reason(k))
    lengths = implausible_lengths(sound, entry) if entry.molecular else ""
    if lengths:
        findings.add(findings.notes, "blocks of unlikely bond lengths", str(sound.ids[0]), lengths)
