"""Missing labels of structures, and similar names that may stand for them, as checks and conversions report them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.protocol.text import sanitize_line
from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable

UNLABELLED = "unlabelled"
LABELS = ("energy", "forces", "stress", "spin")


@dataclass
class LabelCounts:
    """Counts of labels over the structures that were read.

    structures: usable ones. without: how many of these lack each of LABELS. left_out: structures that cannot be used
    because they lack a label. remarks: the number of structures of each (kind, reason).
    """

    structures: int = 0
    without: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, frames: StructureTable) -> None:
        """Count usable structures and their labels."""
        count = len(frames)
        self.structures += count
        self.without["forces"] += count if frames.forces is None else 0
        self.without["stress"] += (
            count if frames.stress is None else int(np.isnan(frames.stress).all(axis=(1, 2)).sum())
        )
        self.without["spin"] += int((frames.multiplicity == 0).sum())

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
        """Return the most frequent remark on a label, or ""."""
        remarks = [(count, reason) for (kind, reason), count in self.remarks.items() if kind == label]
        return max(remarks)[1].partition("(")[2].rstrip(")") if remarks else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data, which `from_json` reads."""
        return {
            "structures": self.structures,
            "without": dict(+self.without),
            "left_out": dict(+self.left_out),
            "remarks": [[kind, reason, count] for (kind, reason), count in self.remarks.items()],
        }


def from_json(plain: dict[str, Any]) -> LabelCounts:
    """Return the counts that to_json wrote."""
    remarks = Counter({(kind, reason): count for kind, reason, count in plain["remarks"]})
    return LabelCounts(plain["structures"], Counter(plain["without"]), Counter(plain["left_out"]), remarks)


def format_count(count: int) -> str:
    """Return "1 structure" or "12 structures"."""
    return f"{count:,} structure{'' if count == 1 else 's'}"


def describe_missing_labels(counts: LabelCounts, declared: Iterable[str]) -> list[str]:
    """Return a line for each label of the dataset that structures lack, and for each other remark.

    Args:
        counts: The counts.
        declared: The labels of the dataset as its authors publish it.
    """
    lines = [f"{label}: missing in {format_count(n)}, left out" for label, n in counts.left_out.items()]
    for label in (name for name in LABELS if name in declared):
        lacking, total = counts.without[label], counts.structures
        hint = f" ({counts.find_hint(label)})" if counts.find_hint(label) else ""
        if lacking and lacking == total:
            lines.append(f"no structure has {label}{hint}")
        elif lacking and label == "forces":
            lines.append(f"forces: missing in {lacking:,} of {total:,} structures, which a store leaves out{hint}")
        elif lacking:
            lines.append(
                f"{label}: withheld for {lacking:,} of {total:,} structures, kept for {total - lacking:,}{hint}"
            )
    lines += [
        f"{format_count(n)}: {reason}" if n else reason
        for (kind, reason), n in counts.remarks.items()
        if kind not in ("forces", "stress", "spin")
    ]
    return lines
