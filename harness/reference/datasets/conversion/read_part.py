"""Read one part of a conversion in bounded memory: check structures, count labels, add neighbours, write the spool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from harness.protocol.text import sanitize_line
from harness.reference.data.neighbours import add_neighbours, count_degrees
from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.conversion.spool import PartWriter, Summary
from harness.reference.datasets.duplicates import FINGERPRINT, Fingerprints, compute_fingerprints, sort_fingerprints
from harness.reference.datasets.parsing.base import DatasetFormat, FileChunk
from harness.reference.datasets.parsing.unit_checks import check_structures
from harness.reference.datasets.reference_energies import StreamingLeastSquares
from harness.reference.datasets.splits import SEED, SPLITS, assign_by_hash, hash_texts
from harness.reference.errors import InputError

UNLABELLED = "unlabelled"
LABELS = ("energy", "forces", "stress", "spin")


@dataclass
class LabelCounts:
    """Counts of the structures that were read, by the labels that they lack.

    Attributes:
        structures: Number of usable structures.
        without: Number of usable structures without a label, for each of LABELS.
        left_out: Number of structures that cannot be used because a label is missing, by label.
        remarks: Number of structures for each remark (kind, reason).
    """

    structures: int = 0
    without: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, table: StructureTable) -> None:
        """Count usable structures and their labels."""
        count = len(table)
        self.structures += count
        self.without["forces"] += count if table.forces is None else 0
        self.without["stress"] += count if table.stress is None else int(np.isnan(table.stress).all(axis=(1, 2)).sum())
        self.without["spin"] += int((table.multiplicity == 0).sum())

    def add_remark(self, remark: Remark) -> None:
        """Count a remark of a reader."""
        self.remarks[(remark.kind, sanitize_line(remark.reason))] += remark.count

    def add_rejection(self, fault: RejectedStructure) -> None:
        """Count a rejected structure if it lacks a label."""
        if fault.kind == UNLABELLED:
            names = [name for name in ("energy", "forces") if name in fault.reason.partition("there are")[0]]
            self.left_out[" or ".join(names) or "energy"] += fault.count

    def merge(self, other: LabelCounts) -> None:
        """Add the counts of another part."""
        self.structures += other.structures
        self.without.update(other.without)
        self.left_out.update(other.left_out)
        self.remarks.update(other.remarks)

    def find_hint(self, label: str) -> str:
        """Return the hint in the most frequent remark on a label, which is in parentheses there, or ""."""
        remarks = [(count, reason) for (kind, reason), count in self.remarks.items() if kind == label]
        return max(remarks)[1].partition("(")[2].rstrip(")") if remarks else ""

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data, which `parse_label_counts` reads."""
        return {
            "structures": self.structures,
            "missing": dict(+self.without),
            "excluded": dict(+self.left_out),
            "remarks": [[kind, reason, count] for (kind, reason), count in self.remarks.items()],
        }


def parse_label_counts(plain: dict[str, Any]) -> LabelCounts:
    """Return the counts that to_json wrote."""
    remarks = Counter({(kind, reason): count for kind, reason, count in plain["remarks"]})
    return LabelCounts(plain["structures"], Counter(plain["missing"]), Counter(plain["excluded"]), remarks)


def format_count(count: int) -> str:
    """Return "1 structure" or "12 structures"."""
    return f"{count:,} structure{'' if count == 1 else 's'}"


def describe_missing_labels(counts: LabelCounts, declared: Iterable[str]) -> list[str]:
    """Return a line for each label that structures lack, and for each remark on something else.

    Args:
        counts: The counts.
        declared: The labels that the official dataset has.
    """
    lines = [f"{label}: missing in {format_count(n)}, left out" for label, n in counts.left_out.items()]
    for label in (name for name in LABELS if name in declared):
        lacking, total = counts.without[label], counts.structures
        hint = f" ({counts.find_hint(label)})" if counts.find_hint(label) else ""
        if lacking and lacking == total:
            lines.append(f"no structure has {label}{hint}")
        elif lacking and label == "forces":
            lines.append(f"forces: missing in {lacking:,} of {total:,} structures, which are left out{hint}")
        elif lacking:
            lines.append(
                f"{label}: missing in {lacking:,} of {total:,} structures, stored for {total - lacking:,}{hint}"
            )
    lines += [
        f"{format_count(n)}: {reason}" if n else reason
        for (kind, reason), n in counts.remarks.items()
        if kind not in ("forces", "stress", "spin")
    ]
    return lines


MAX_EXAMPLES = 3  # number of rejections of each kind that are reported in full
# Rejections that a strict conversion allows too, since the source itself excludes these structures.
REJECTED_BY_SOURCE = frozenset({UNLABELLED, "outlier"})
UNREADABLE = "unreadable"
TRAINING_INDEX = 0


@dataclass(frozen=True)
class ConversionRules:
    """The options of a conversion.

    Attributes:
        cutoff: Cutoff of neighbour lists in angstrom; None for no neighbour lists.
        max_neighbours: Maximum number of neighbours of an atom; None for no limit.
        max_force: Structures with larger forces are rejected, eV/angstrom.
        split_seed: Seed of the hashes that decide the split of each group.
        charges: Which structures are used: "all", "neutral" or "charged".
        strict: Whether the conversion stops at the first structure that cannot be used.
    """

    cutoff: float | None = None
    max_neighbours: int | None = None
    max_force: float = 1000.0
    split_seed: int = SEED
    charges: str = "all"
    strict: bool = False


@dataclass(frozen=True)
class PartRequest:
    """A request to read a part.

    Attributes:
        number: The number of the part.
        chunk: The file, or the range of a file.
        format: The format of the file.
        source: The expected labels and units; None for a shipped set.
        rules: The options of the conversion.
        spool: The folder of the spool.
    """

    number: int
    chunk: FileChunk
    format: DatasetFormat
    source: DatasetSource | None
    rules: ConversionRules
    spool: Path


@dataclass
class PartResult:
    """The result of reading a part."""

    n_read: int = 0
    other_charges: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    example_counts: Counter[str] = field(default_factory=Counter)
    first_fault: str = ""  # the first rejection that a strict conversion does not allow
    samples: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    labels: LabelCounts = field(default_factory=LabelCounts)
    degrees: Counter[int] = field(default_factory=Counter)
    fit: StreamingLeastSquares = field(default_factory=StreamingLeastSquares)
    digests: list[NDArray[np.uint64]] = field(default_factory=list)
    fingerprints: list[Fingerprints] = field(default_factory=list)

    def add_rejection(self, fault: RejectedStructure, rules: ConversionRules, where: Path) -> None:
        """Count a rejection; raises InputError if the conversion is strict and the source does not exclude it too."""
        message = sanitize_line(f"{where.name}: {fault.where}: {fault.reason}")
        if rules.strict and fault.kind not in REJECTED_BY_SOURCE:
            raise InputError(message)
        self.n_read += 0 if fault.kind == UNREADABLE else fault.count
        self.left_out[fault.kind] += fault.count
        self.labels.add_rejection(fault)
        self.example_counts[fault.kind] += 1
        if self.example_counts[fault.kind] <= MAX_EXAMPLES:
            self.examples.append(message)
        if not self.first_fault and fault.kind not in REJECTED_BY_SOURCE:
            self.first_fault = message

    def summary(self) -> Summary:
        """Return the result as plain data."""
        return {
            "read": self.n_read,
            "other_charges": self.other_charges,
            "left_out": dict(self.left_out),
            "examples": self.examples,
            "samples": self.samples,
            "broken": self.first_fault,
            "labels": self.labels.to_json(),
            "degrees": sorted(self.degrees.items()),
        }


def read_part(request: PartRequest) -> Summary:
    """Read a part into the spool, and return its summary.

    If the rest of a part cannot be read, this counts as one rejection; a strict conversion raises InputError.
    """
    result, rules, path = PartResult(), request.rules, request.chunk.path
    with threadpool_limits(1), PartWriter(request.spool, request.number) as writer:
        try:
            for item in request.format.read_chunk(request.chunk):
                if isinstance(item, Remark):
                    result.labels.add_remark(item)
                elif isinstance(item, RejectedStructure):
                    result.add_rejection(item, rules, path)
                else:
                    _process_table(item, request, result, writer)
        except InputError as error:
            if rules.strict:
                raise
            result.add_rejection(RejectedStructure("rest of the file", UNREADABLE, str(error)), rules, path)
        summary = result.summary()
        ids = np.concatenate(result.digests) if result.digests else np.zeros(0, dtype=np.uint64)
        fingerprints = sort_fingerprints(np.concatenate([np.zeros(0, dtype=FINGERPRINT), *result.fingerprints]))
        writer.finish(summary, {"ids": ids, "fit": result.fit.factor, "fingerprints": fingerprints})
    return summary


def select_charges(table: StructureTable, charges: str) -> StructureTable:
    """Return the structures of a table, or only the neutral or the charged ones ("all", "neutral", "charged")."""
    return table if charges == "all" else table[(table.charge == 0) == (charges == "neutral")]


def _process_table(table: StructureTable, request: PartRequest, result: PartResult, writer: PartWriter) -> None:
    """Check a table, add neighbours, and write its splits."""
    rules = request.rules
    selected = select_charges(table, rules.charges)
    result.other_charges += len(table) - len(selected)
    valid, faults = check_structures(selected, source=request.source, max_force=rules.max_force)
    if rules.cutoff is not None and len(valid):
        valid, coincident = add_neighbours(valid, cutoff=rules.cutoff, max_neighbours=rules.max_neighbours)
        faults += coincident
    for fault in faults:
        result.add_rejection(fault, rules, request.chunk.path)
    if not len(valid):
        return
    result.n_read += len(valid)
    result.labels.add(valid)
    fingerprints = compute_fingerprints(valid, seed=rules.split_seed)
    result.fingerprints.append(fingerprints)
    split = assign_by_hash(fingerprints["group_hash"])
    for k in range(len(SPLITS)):
        is_member = split == k
        if is_member.any():
            _write_table(k, valid[is_member], result, writer)


def _write_table(split: int, table: StructureTable, result: PartResult, writer: PartWriter) -> None:
    writer.write(split, table)
    result.digests.append(hash_texts(table.ids))
    result.samples[split] += len(table)
    if split == TRAINING_INDEX:
        result.fit.add(table)
        if table.edge_counts is not None:
            result.degrees.update(dict(enumerate(count_degrees(table).tolist())))
