"""One part of a conversion: read, checked, given neighbour lists, split and put into the spool, in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from harness.protocol.text import sanitize_line
from harness.reference.data.neighbour_columns import Edges, neighbours
from harness.reference.data.structure_table import Fault, Frames, Remark
from harness.reference.datasets.catalog import Source
from harness.reference.datasets.conversion.labels import UNLABELLED, LabelCounts
from harness.reference.datasets.conversion.spool import PartWriter, Summary
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.unit_checks import check
from harness.reference.datasets.splitting.duplicates import NOTE, Notes, note_shapes, sort_notes
from harness.reference.datasets.splitting.splits import SEED, SPLITS, digests, split_at
from harness.reference.datasets.statistics.reference_energies import Fit
from harness.reference.errors import InputError
from harness.reference.storage.columns import degree_histogram

EXAMPLES = 3  # faults of each kind that are told in full
STATED = frozenset({UNLABELLED, "outlier"})  # the source itself says so: no fault, even where none is allowed
UNREADABLE = "unreadable"
TRAINING = 0


@dataclass(frozen=True)
class Rules:
    """What a conversion keeps and adds: force norms in eV/angstrom, cutoff in angstrom (None: no neighbour lists).

    charges: "all", "neutral" or "charged" structures. strict: stop at the first structure that cannot be used.
    """

    cutoff: float | None = None
    max_neighbours: int | None = None
    max_force: float = 1000.0
    split_seed: int = SEED
    charges: str = "all"
    strict: bool = False


@dataclass(frozen=True)
class PartOrder:
    """A part to be read; source: what the labels are checked against, or None."""

    number: int
    part: Part
    format: Format
    source: Source | None
    rules: Rules
    spool: Path


@dataclass
class Tally:
    """What a part came to."""

    read: int = 0
    other_charges: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    broken: str = ""  # the first that a strict conversion does not allow
    samples: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    labels: LabelCounts = field(default_factory=LabelCounts)
    degrees: Counter[int] = field(default_factory=Counter)
    fit: Fit = field(default_factory=Fit)
    digests: list[NDArray[np.uint64]] = field(default_factory=list)
    notes: list[Notes] = field(default_factory=list)

    def fault(self, fault: Fault, rules: Rules, where: Path) -> None:
        """Count one; raises InputError where none is allowed."""
        told = sanitize_line(f"{where.name}: {fault.where}: {fault.reason}")
        if rules.strict and fault.kind not in STATED:
            raise InputError(told)
        self.read += fault.count * (fault.kind != UNREADABLE)
        self.left_out[fault.kind] += fault.count
        self.labels.add_fault(fault)
        self.told[fault.kind] += 1
        if self.told[fault.kind] <= EXAMPLES:
            self.examples.append(told)
        if not self.broken and fault.kind not in STATED:
            self.broken = told

    def summary(self) -> Summary:
        """As plain data."""
        return {
            "read": self.read,
            "other_charges": self.other_charges,
            "left_out": dict(self.left_out),
            "examples": self.examples,
            "samples": self.samples,
            "broken": self.broken,
            "labels": self.labels.as_json(),
            "degrees": sorted(self.degrees.items()),
        }


def read_part(order: PartOrder) -> Summary:
    """Read a part into the spool and return its summary.

    Where the rest of a part cannot be read, that counts as one fault, or ends the conversion if none is allowed.
    """
    tally, rules, path = Tally(), order.rules, order.part.path
    with threadpool_limits(1), PartWriter(order.spool, order.number) as writer:
        try:
            for item in order.format.read(order.part):
                if isinstance(item, Remark):
                    tally.labels.add_remark(item)
                elif isinstance(item, Fault):
                    tally.fault(item, rules, path)
                else:
                    _take(item, order, tally, writer)
        except InputError as error:
            if rules.strict:
                raise
            tally.fault(Fault("the rest of it", UNREADABLE, str(error)), rules, path)
        summary = tally.summary()
        ids = np.concatenate(tally.digests) if tally.digests else np.zeros(0, dtype=np.uint64)
        notes = sort_notes(np.concatenate([np.zeros(0, dtype=NOTE), *tally.notes]))
        writer.finish(summary, {"ids": ids, "fit": tally.fit.factor, "notes": notes})
    return summary


def of_charges(frames: Frames, charges: str) -> Frames:
    """Those of the charges that belong to a branch: "all", "neutral" or "charged"."""
    return frames if charges == "all" else frames[(frames.charge == 0) == (charges == "neutral")]


def _take(frames: Frames, order: PartOrder, tally: Tally, writer: PartWriter) -> None:
    """Check a block, give it neighbours, and write it by splits."""
    rules = order.rules
    wanted = of_charges(frames, rules.charges)
    tally.other_charges += len(frames) - len(wanted)
    sound, faults = check(wanted, source=order.source, max_force=rules.max_force)
    edges: Edges | None = None
    if rules.cutoff is not None and len(sound):
        sound, edges, close = neighbours(sound, cutoff=rules.cutoff, max_neighbours=rules.max_neighbours)
        faults += close
    for fault in faults:
        tally.fault(fault, rules, order.part.path)
    if not len(sound):
        return
    tally.read += len(sound)
    tally.labels.add(sound)
    notes = note_shapes(sound, seed=rules.split_seed)
    tally.notes.append(notes)
    split = split_at(notes["place"])
    for k in range(len(SPLITS)):
        mine = split == k
        if mine.any():
            _write(k, sound[mine], None if edges is None else edges.without(~mine), tally, writer)


def _write(split: int, frames: Frames, edges: Edges | None, tally: Tally, writer: PartWriter) -> None:
    writer.write(split, frames, edges)
    tally.digests.append(digests(frames.ids))
    tally.samples[split] += len(frames)
    if split == TRAINING:
        tally.fit.add(frames)
        if edges is not None:
            tally.degrees.update(dict(enumerate(degree_histogram(frames, edges).tolist())))
