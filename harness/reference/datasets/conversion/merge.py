"""Merge the spool of a conversion into a store: drop duplicates, fit reference energies, collect statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.protocol.upgrade import convert_fact
from harness.reference.data.neighbours import count_degrees
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.conversion import read_part
from harness.reference.datasets.conversion.read_part import TRAINING_INDEX, UNLABELLED, ConversionRules, LabelCounts
from harness.reference.datasets.conversion.spool import Spool, Summary
from harness.reference.datasets.duplicates import Fingerprints, SplitAssignment, assign_splits, find_repeats
from harness.reference.datasets.parsing.base import ProgressCallback
from harness.reference.datasets.reference_energies import References, StreamingLeastSquares
from harness.reference.datasets.splits import SPLIT_NAMES, SPLITS, assign_by_hash, hash_groups, hash_texts
from harness.reference.datasets.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.structure_codec import encode_table

MAX_IDS = 4_000_000  # number of ids that are compared at a time, which limits the memory


def merge(
    store: Path,
    spool: Spool,
    *,
    summaries: Sequence[Summary],
    about: dict[str, Any],
    rules: ConversionRules,
    progress: ProgressCallback,
) -> dict[str, Any]:
    """Write the store, and return its facts.

    The facts are dataset, references, statistics, missing_labels, splits, labels, without_stress, left_out, repeats
    (number of structures with the geometry of another) and regrouped (number of structures that moved to another
    split). Structures with the id of an earlier one are left out, as are structures without forces if others have
    forces. If only some structures have a stress, the stress of the others is NaN.

    Args:
        store: The folder of the store.
        spool: The parts that have been read.
        summaries: The result of `read_part` for each part.
        about: Facts of the dataset.
        rules: The options of the conversion.
        progress: Called with the number of structures that are written, and the total.

    Raises:
        InputError: No structure is left to write.
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
    n_without_forces, n_without_stress = label_counts.without["forces"], label_counts.without["stress"]
    has_stress = n_without_stress < expected
    fingerprints: list[Fingerprints] = [spool.array(part, "fingerprints") for part in range(len(summaries))]
    if 0 < n_without_forces < expected:
        fingerprints = [part[part["forces"]] for part in fingerprints]
    repeats = find_repeats(fingerprints)
    split_changes = SplitChanges(assign_splits(fingerprints, repeats.links), fingerprints, rules.split_seed)
    tables = _MergedTables(
        spool,
        len(summaries),
        duplicate_ids,
        split_changes,
        has_forces=n_without_forces < expected,
        has_stress=has_stress,
    )
    fit, degrees = _merge_fits(spool, summaries)
    if duplicate_ids or 0 < n_without_forces < expected or split_changes.count:
        fit, degrees = _refit(replace(tables, left_out=Counter(), known_ids=set()))
    if not fit.structures:
        raise InputError(f"{store.name}: no structure falls into the training set: there are too few groups to split")
    references = fit.solve()
    statistics, absolute_error_sum = Statistics(), 0.0
    splits: Counter[str] = Counter()
    store.parent.mkdir(parents=True, exist_ok=True)
    with BPWriter(store, _build_attributes(about, rules, references, degrees)) as writer:
        for k, label in enumerate(SPLITS):
            for table in tables.blocks(k):
                writer.split(label).put(encode_table(table))
                statistics.add(table, references)
                absolute_error_sum += (
                    float(np.nansum(np.abs(references.residual(table)))) if k == TRAINING_INDEX else 0.0
                )
                splits[label] += len(table)
                progress(splits.total() + tables.left_out.total(), expected, "structures written")
        references = replace(references, mae_ev_per_atom=absolute_error_sum / references.structures)
        attributes = {
            "references": references.to_json(),
            "statistics": statistics.to_json(),
            "missing_labels": label_counts.to_json(),
        }
        for name, value in attributes.items():
            writer.set_attribute(name, value)
        writer.set_attribute("left_out", sum(sum(s["left_out"].values()) for s in summaries) + tables.left_out.total())
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    attributes["dataset"] = {**about, "store_bytes": size}
    return {
        # Attributes of stores keep the names of their first version; facts have the present names.
        **dict(convert_fact("data", name, value) for name, value in attributes.items()),
        "splits": {SPLIT_NAMES[label]: n for label, n in splits.items()},
        "labels": ["energy", *(["forces"] if tables.has_forces else []), *(["stress"] if has_stress else [])],
        "without_stress": n_without_stress if has_stress else 0,
        "left_out": {kind: n for kind, n in tables.left_out.items() if n},
        "repeats": repeats.count,
        "regrouped": split_changes.count,
    }


def _merge_label_counts(summaries: Sequence[Summary]) -> LabelCounts:
    counts = LabelCounts()
    for summary in summaries:
        counts.merge(read_part.parse_label_counts(summary["labels"]))
    return counts


class SplitChanges:
    """The structures that must leave their split in the spool, as equal structures must share a split.

    Attributes:
        count: Number of structures that move.
    """

    def __init__(self, assignment: SplitAssignment, fingerprints: Sequence[Fingerprints], seed: int) -> None:
        self._assignment, self._seed = assignment, seed
        self._routes: list[frozenset[tuple[int, int]]] = []
        self.count = 0
        for part in fingerprints:
            before, after = assign_by_hash(part["group_hash"]), assignment.find_splits(part["group_hash"])
            moved = before != after
            self.count += int(moved.sum())
            self._routes.append(frozenset(zip(before[moved].tolist(), after[moved].tolist(), strict=True)))

    def find_origins(self, part: int, split: int) -> list[int]:
        """Return the splits in the spool from which structures of a part go to a split of the store."""
        return [k for k in range(len(SPLITS)) if k == split or (k, split) in self._routes[part]]

    def select(self, table: StructureTable, part: int, origin: int, split: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return for each structure of a table whether it goes to a split of the store, [g].

        Args:
            table: Structures of one split in the spool.
            part: The part.
            origin: The split in the spool.
            split: The split of the store.
        """
        if all(first != origin for first, _ in self._routes[part]):
            return np.ones(len(table), dtype=bool)
        return np.asarray(self._assignment.find_splits(hash_groups(table.groups, seed=self._seed)) == split)


@dataclass
class _MergedTables:
    """The tables of the spool, as they go into the store.

    Attributes:
        spool: The spool.
        parts: Number of parts.
        duplicate_ids: Hashes of ids that several structures have; the first of these structures is retained.
        split_changes: The structures that move to other splits.
        has_forces: Whether the store has forces.
        has_stress: Whether the store has stresses.
        left_out: Number of structures that are left out, by reason.
        known_ids: Hashes among duplicate_ids that have occurred.
    """

    spool: Spool
    parts: int
    duplicate_ids: frozenset[int]
    split_changes: SplitChanges
    has_forces: bool
    has_stress: bool
    left_out: Counter[str] = field(default_factory=Counter)
    known_ids: set[int] = field(default_factory=set)

    def blocks(self, split: int) -> Iterator[StructureTable]:
        """Yield the tables of a split, part by part."""
        for part in range(self.parts):
            for origin in self.split_changes.find_origins(part, split):
                for table in self.spool.blocks(part, origin):
                    is_member = self.split_changes.select(table, part, origin, split)
                    if is_member.all():
                        yield from self._iter_usable(table)
                    elif is_member.any():
                        yield from self._iter_usable(table[is_member])

    def _iter_usable(self, table: StructureTable) -> Iterator[StructureTable]:
        if self.has_forces and table.forces is None:
            self.left_out[UNLABELLED] += len(table)
            return
        is_duplicate = self._find_duplicates(table)
        self.left_out["duplicate"] += int(is_duplicate.sum())
        if not is_duplicate.all():
            yield self._fill_stress(table[~is_duplicate] if is_duplicate.any() else table)

    def _fill_stress(self, table: StructureTable) -> StructureTable:
        """Return the table with a stress (NaN where there is none) if the store has stresses, otherwise without."""
        if not self.has_stress or table.stress is not None:
            return table if self.has_stress else replace(table, stress=None)
        return replace(table, stress=np.full((len(table), 3, 3), np.nan))

    def _find_duplicates(self, table: StructureTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
        is_duplicate = np.zeros(len(table), dtype=bool)
        if self.duplicate_ids:
            for k, digest in enumerate(hash_texts(table.ids).tolist()):
                if digest in self.duplicate_ids:
                    is_duplicate[k] = digest in self.known_ids
                    self.known_ids.add(digest)
        return is_duplicate


def _find_duplicate_ids(spool: Spool, parts: int) -> frozenset[int]:
    """Return the hashes of ids that occur more than once; one range of hashes is searched at a time to save memory."""
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
    """Return the first id whose hash is among duplicate_ids."""
    for part in range(parts):
        for split in range(len(SPLITS)):
            for table in spool.blocks(part, split):
                for digest, name in zip(hash_texts(table.ids).tolist(), table.ids.tolist(), strict=True):
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
    """Fit reference energies and count neighbours again, for the structures that go into the store."""
    fit, degrees = StreamingLeastSquares(), Counter[int]()
    for table in tables.blocks(TRAINING_INDEX):
        fit.add(table)
        if table.edge_counts is not None:
            degrees.update(dict(enumerate(count_degrees(table).tolist())))
    return fit, degrees


def _build_attributes(
    about: dict[str, Any], rules: ConversionRules, references: References, degrees: Counter[int]
) -> dict[str, Any]:
    """Return the attributes of the store, including those that HydraGNN reads."""
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
    return f"left out: {counts} (first: {example})" if counts else "there are no structures in the files"
