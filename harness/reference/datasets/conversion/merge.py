"""Merge the spool of a conversion into one store: drop duplicates, fit references, collect statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.data.neighbours import count_degrees
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.conversion import read_part
from harness.reference.datasets.conversion.read_part import TRAINING_INDEX, UNLABELLED, ConversionRules, LabelCounts
from harness.reference.datasets.conversion.spool import Spool, Summary
from harness.reference.datasets.duplicates import Assignment, ShapeNotes, assign_splits, find_repeats
from harness.reference.datasets.parsing.base import Progress
from harness.reference.datasets.reference_energies import References, StreamingLeastSquares
from harness.reference.datasets.splits import SPLITS, assign_by_place, hash_texts, place_groups
from harness.reference.datasets.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.structure_codec import encode_table

MAX_IDS = 4_000_000


def merge(
    store: Path,
    spool: Spool,
    *,
    summaries: Sequence[Summary],
    about: dict[str, Any],
    rules: ConversionRules,
    progress: Progress,
) -> dict[str, Any]:
    """Write the store, and return its facts: dataset, references, statistics, splits, labels, left_out, repeats.

    Duplicates are left out, and structures without forces if others have them. If only some have a stress, that of the
    others is NaN. Raises InputError if nothing is left to write.
    """
    expected = sum(sum(s["samples"]) for s in summaries)
    if not expected:
        raise InputError(f"{store.name}: no structure is left to write; {_describe_rejections(summaries)}")
    duplicate_ids = _find_duplicate_ids(spool, len(summaries))
    if duplicate_ids and rules.strict:
        raise InputError(
            f"{_find_duplicate_name(spool, len(summaries), duplicate_ids)!r} is the id of more than one structure"
        )
    label_counts = _merge_label_counts(summaries)
    unforced, unstressed = label_counts.without["forces"], label_counts.without["stress"]
    stress = unstressed < expected
    notes: list[ShapeNotes] = [spool.array(part, "notes") for part in range(len(summaries))]
    if 0 < unforced < expected:
        notes = [part[part["forces"]] for part in notes]
    repeats = find_repeats(notes)
    moves = SplitChanges(assign_splits(notes, repeats.links), notes, rules.split_seed)
    tables = _MergedTables(spool, len(summaries), duplicate_ids, moves, forces=unforced < expected, stress=stress)
    fit, degrees = _merge_fits(spool, summaries)
    if duplicate_ids or 0 < unforced < expected or moves.count:
        fit, degrees = _refit(replace(tables, left_out=Counter(), known_ids=set()))
    if not fit.structures:
        raise InputError(f"{store.name}: no structure falls into the training set, too few groups to split")
    references = fit.solve()
    statistics, error = Statistics(), 0.0
    splits: Counter[str] = Counter()
    store.parent.mkdir(parents=True, exist_ok=True)
    with BPWriter(store, _build_attributes(about, rules, references, degrees)) as writer:
        for k, label in enumerate(SPLITS):
            for frames in tables.blocks(k):
                writer.split(label).put(encode_table(frames))
                statistics.add(frames, references)
                error += float(np.nansum(np.abs(references.residual(frames)))) if k == TRAINING_INDEX else 0.0
                splits[label] += len(frames)
                progress(splits.total() + tables.left_out.total(), expected, "structures written")
        references = replace(references, mae_ev_per_atom=error / references.structures)
        facts = {
            "references": references.to_json(),
            "statistics": statistics.to_json(),
            "missing_labels": label_counts.to_json(),
        }
        for name, fact in facts.items():
            writer.note(name, fact)
        writer.note("left_out", sum(sum(s["left_out"].values()) for s in summaries) + tables.left_out.total())
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    return {
        "dataset": {("name" if key == "slug" else key): value for key, value in about.items()} | {"store_bytes": size},
        "reference_energies": facts.pop("references"),
        **facts,
        "splits": dict(splits),
        "labels": ["energy", *["forces"] * tables.forces, *["stress"] * stress],
        "without_stress": unstressed if stress else 0,
        "left_out": dict(+tables.left_out),
        "repeats": repeats.count,
        "regrouped": moves.count,
    }


def _merge_label_counts(summaries: Sequence[Summary]) -> LabelCounts:
    counts = LabelCounts()
    for summary in summaries:
        counts.merge(read_part.parse_label_counts(summary["labels"]))
    return counts


class SplitChanges:
    """Structures whose final split differs from the one that they were read into. count: their number."""

    def __init__(self, assignment: Assignment, notes: Sequence[ShapeNotes], seed: int) -> None:
        self._assignment, self._seed = assignment, seed
        self._routes: list[frozenset[tuple[int, int]]] = []
        self.count = 0
        for part in notes:
            before, after = assign_by_place(part["place"]), assignment.find_splits(part["place"])
            moved = before != after
            self.count += int(moved.sum())
            self._routes.append(frozenset(zip(before[moved].tolist(), after[moved].tolist(), strict=True)))

    def find_origins(self, part: int, split: int) -> list[int]:
        """Return the splits of a part in the spool that contain structures of this final split."""
        return [k for k in range(len(SPLITS)) if k == split or (k, split) in self._routes[part]]

    def select(self, frames: StructureTable, part: int, origin: int, split: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return whether each structure of a table that was read into `origin` goes to this split, [g]."""
        if all(first != origin for first, _ in self._routes[part]):
            return np.ones(len(frames), dtype=bool)
        return np.asarray(self._assignment.find_splits(place_groups(frames.groups, seed=self._seed)) == split)


@dataclass
class _MergedTables:
    """The tables of the spool that go into the store.

    duplicate_ids: hashes of ids that several structures have, of which the first is kept. forces, stress: whether the
    store has them.
    """

    spool: Spool
    parts: int
    duplicate_ids: frozenset[int]
    moves: SplitChanges
    forces: bool
    stress: bool
    left_out: Counter[str] = field(default_factory=Counter)
    known_ids: set[int] = field(default_factory=set)

    def blocks(self, split: int) -> Iterator[StructureTable]:
        """Yield the tables of a split, part by part."""
        for part in range(self.parts):
            for origin in self.moves.find_origins(part, split):
                for frames in self.spool.blocks(part, origin):
                    is_member = self.moves.select(frames, part, origin, split)
                    if is_member.all():
                        yield from self._iter_usable(frames)
                    elif is_member.any():
                        yield from self._iter_usable(frames[is_member])

    def _iter_usable(self, frames: StructureTable) -> Iterator[StructureTable]:
        if self.forces and frames.forces is None:
            self.left_out[UNLABELLED] += len(frames)
            return
        is_duplicate = self._find_duplicates(frames)
        self.left_out["duplicate"] += int(is_duplicate.sum())
        if not is_duplicate.all():
            yield self._fill_stress(frames[~is_duplicate] if is_duplicate.any() else frames)

    def _fill_stress(self, frames: StructureTable) -> StructureTable:
        """Return the table with the stress column that the store has; NaN marks structures without one."""
        if not self.stress or frames.stress is not None:
            return frames if self.stress else replace(frames, stress=None)
        return replace(frames, stress=np.full((len(frames), 3, 3), np.nan))

    def _find_duplicates(self, frames: StructureTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
        is_duplicate = np.zeros(len(frames), dtype=bool)
        if self.duplicate_ids:
            for k, digest in enumerate(hash_texts(frames.ids).tolist()):
                if digest in self.duplicate_ids:
                    is_duplicate[k] = digest in self.known_ids
                    self.known_ids.add(digest)
        return is_duplicate


def _find_duplicate_ids(spool: Spool, parts: int) -> frozenset[int]:
    """Return hashes of ids that occur more than once, found in ranges of hashes so that memory does not grow."""
    columns = [spool.array(part, "ids") for part in range(parts)]
    ranges = 1 + sum(map(len, columns)) // MAX_IDS
    width = 2**64 // ranges + 1
    duplicates: set[int] = set()
    for k in range(ranges):
        inside = [c[(c // np.uint64(width)) == k] if ranges > 1 else np.asarray(c) for c in columns]
        values, counts = np.unique(np.concatenate(inside), return_counts=True)
        duplicates.update(values[counts > 1].tolist())
    return frozenset(duplicates)


def _find_duplicate_name(spool: Spool, parts: int, duplicate_ids: frozenset[int]) -> str:
    """Return the first id whose hash is among these."""
    for part in range(parts):
        for split in range(len(SPLITS)):
            for frames in spool.blocks(part, split):
                for digest, name in zip(hash_texts(frames.ids).tolist(), frames.ids.tolist(), strict=True):
                    if digest in duplicate_ids:
                        return str(name)
    raise AssertionError("the spool has lost an id")


def _merge_fits(spool: Spool, summaries: Sequence[Summary]) -> tuple[StreamingLeastSquares, Counter[int]]:
    """Merge the fits of reference energies and the neighbour counts of the training split of all parts."""
    fit, degrees = StreamingLeastSquares(), Counter[int]()
    for part, summary in enumerate(summaries):
        other = StreamingLeastSquares()
        other.factor, other.structures = np.asarray(spool.array(part, "fit")), summary["samples"][TRAINING_INDEX]
        if other.structures:
            fit.merge(other)
        degrees.update({int(d): n for d, n in summary["degrees"]})
    return fit, degrees


def _refit(tables: _MergedTables) -> tuple[StreamingLeastSquares, Counter[int]]:
    """Fit reference energies and count neighbours again, for the structures that are kept."""
    fit, degrees = StreamingLeastSquares(), Counter[int]()
    for frames in tables.blocks(TRAINING_INDEX):
        fit.add(frames)
        if frames.edge_counts is not None:
            degrees.update(dict(enumerate(count_degrees(frames).tolist())))
    return fit, degrees


def _build_attributes(
    about: dict[str, Any], rules: ConversionRules, references: References, degrees: Counter[int]
) -> dict[str, Any]:
    """Return the attributes of the store, including HydraGNN's own."""
    coefficients = np.nan_to_num(references.energy_ev[1 : MAX_ATOMIC_NUMBER + 1])
    attributes: dict[str, Any] = {
        "dataset": about["slug"],
        "energy_linear_regression_coeff": coefficients,
        "about": about,
        "units": "eV, angstrom, eV/angstrom, eV/angstrom^3",
    }
    if rules.cutoff is not None:
        attributes["cutoff_angstrom"] = rules.cutoff
        attributes["max_neighbours"] = rules.max_neighbours
        attributes["pna_deg"] = np.array([degrees[d] for d in range(max(degrees, default=0) + 1)], dtype=np.int64)
    return attributes


def _describe_rejections(summaries: Sequence[Summary]) -> str:
    left_out: Counter[str] = sum((Counter(s["left_out"]) for s in summaries), Counter())
    counts = ", ".join(f"{n} {kind}" for kind, n in left_out.most_common())
    example = next((s["examples"][0] for s in summaries if s["examples"]), "")
    return f"left out: {counts} (first: {example})" if counts else "the files hold none"
