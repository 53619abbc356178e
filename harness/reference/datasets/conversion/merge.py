"""The spool of a conversion into one store: duplicates out, references fitted, statistics gathered on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.data.neighbour_columns import Edges
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.data.structure_table import Frames
from harness.reference.datasets.conversion import labels
from harness.reference.datasets.conversion.labels import UNLABELLED, LabelCounts
from harness.reference.datasets.conversion.read_part import TRAINING, Rules
from harness.reference.datasets.conversion.spool import Spool, Summary
from harness.reference.datasets.splitting.assignment import Assignment, assign_splits
from harness.reference.datasets.splitting.duplicates import Notes, find_repeats
from harness.reference.datasets.splitting.splits import SPLITS, digests, places, split_at
from harness.reference.datasets.statistics.reference_energies import Fit, References
from harness.reference.datasets.statistics.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.columns import degree_histogram, frames_block

IDS_AT_ONCE = 4_000_000
Progress = Callable[[int, int, str], None]


def merge(
    store: Path,
    spool: Spool,
    summaries: Sequence[Summary],
    about: dict[str, Any],
    rules: Rules,
    progress: Progress,
) -> dict[str, Any]:
    """Write the store, and return its facts: dataset, references, statistics, splits, labels, left_out, repeats.

    What is left out here: duplicates, and structures without forces where others have them. Where only some have a
    stress, that of the others is NaN. Raises InputError if nothing is left to write.
    """
    expected = sum(sum(s["samples"]) for s in summaries)
    if not expected:
        raise InputError(f"{store.name}: no structure is left to write; {_why(summaries)}")
    twins = _twins(spool, len(summaries))
    if twins and rules.strict:
        raise InputError(f"{_name_of(spool, len(summaries), twins)!r} is the id of more than one structure")
    found = _label_counts(summaries)
    unforced, unstressed = found.without["forces"], found.without["stress"]
    stress = unstressed < expected
    notes: list[Notes] = [spool.array(part, "notes") for part in range(len(summaries))]
    if 0 < unforced < expected:
        notes = [part[part["forces"]] for part in notes]
    repeats = find_repeats(notes)
    moves = Moves(assign_splits(notes, repeats.links), notes, rules.split_seed)
    kept = _Kept(spool, len(summaries), twins, moves, forces=unforced < expected, stress=stress)
    fit, degrees = _fitted(spool, summaries)
    if twins or 0 < unforced < expected or moves.count:
        fit, degrees = _fitted_again(replace(kept, left_out=Counter(), seen=set()))
    if not fit.structures:
        raise InputError(f"{store.name}: no structure falls into the training set, too few groups to split")
    references = fit.solved()
    statistics, error = Statistics(), 0.0
    splits: Counter[str] = Counter()
    store.parent.mkdir(parents=True, exist_ok=True)
    with BPWriter(store, _attributes(about, rules, references, degrees)) as writer:
        for k, label in enumerate(SPLITS):
            for frames, edges in kept.blocks(k):
                writer.split(label).put(frames_block(frames, edges))
                statistics.add(frames, references, None if edges is None else edges.counts)
                error += float(np.nansum(np.abs(references.residual(frames)))) if k == TRAINING else 0.0
                splits[label] += len(frames)
                progress(splits.total() + kept.left_out.total(), expected, "structures written")
        references = replace(references, mae_ev_per_atom=error / references.structures)
        facts = {
            "references": references.as_json(),
            "statistics": statistics.as_json(),
            "missing_labels": found.as_json(),
        }
        for name, fact in facts.items():
            writer.note(name, fact)
        writer.note("left_out", sum(sum(s["left_out"].values()) for s in summaries) + kept.left_out.total())
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    return {
        "dataset": {**about, "store_bytes": size},
        **facts,
        "splits": dict(splits),
        "labels": ["energy", *["forces"] * kept.forces, *["stress"] * stress],
        "without_stress": unstressed if stress else 0,
        "left_out": dict(+kept.left_out),
        "repeats": repeats.count,
        "regrouped": moves.count,
    }


def _label_counts(summaries: Sequence[Summary]) -> LabelCounts:
    found = LabelCounts()
    for summary in summaries:
        found.merge(labels.from_json(summary["labels"]))
    return found


class Moves:
    """Structures that go to another split than the one that they were read into. count: how many."""

    def __init__(self, assignment: Assignment, notes: Sequence[Notes], seed: int) -> None:
        self._assignment, self._seed = assignment, seed
        self._routes: list[frozenset[tuple[int, int]]] = []
        self.count = 0
        for part in notes:
            before, after = split_at(part["place"]), assignment.split_of(part["place"])
            moved = before != after
            self.count += int(moved.sum())
            self._routes.append(frozenset(zip(before[moved].tolist(), after[moved].tolist(), strict=True)))

    def find_origins(self, part: int, split: int) -> list[int]:
        """Return the splits of a part, as read, that hold structures of this split."""
        return [k for k in range(len(SPLITS)) if k == split or (k, split) in self._routes[part]]

    def select(self, frames: Frames, part: int, origin: int, split: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each structure of a block, read into origin, goes to this split, [g]."""
        if all(first != origin for first, _ in self._routes[part]):
            return np.ones(len(frames), dtype=bool)
        return np.asarray(self._assignment.split_of(places(frames.groups, seed=self._seed)) == split)


@dataclass
class _Kept:
    """What of the spool goes into the store. twins: digests of ids that several structures have: the first is kept.

    forces, stress: whether the store has them.
    """

    spool: Spool
    parts: int
    twins: frozenset[int]
    moves: Moves
    forces: bool
    stress: bool
    left_out: Counter[str] = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)

    def blocks(self, split: int) -> Iterator[tuple[Frames, Edges | None]]:
        """All blocks of a split, part by part."""
        for part in range(self.parts):
            for origin in self.moves.find_origins(part, split):
                for frames, edges in self.spool.blocks(part, origin):
                    here = self.moves.select(frames, part, origin, split)
                    if here.all():
                        yield from self._usable(frames, edges)
                    elif here.any():
                        yield from self._usable(frames[here], None if edges is None else edges.without(~here))

    def _usable(self, frames: Frames, edges: Edges | None) -> Iterator[tuple[Frames, Edges | None]]:
        if self.forces and frames.forces is None:
            self.left_out[UNLABELLED] += len(frames)
            return
        doubled = self._doubled(frames)
        self.left_out["duplicate"] += int(doubled.sum())
        if not doubled.all():
            own = frames[~doubled] if doubled.any() else frames
            pairs = edges.without(doubled) if edges is not None and doubled.any() else edges
            yield self._with_stress(own), pairs

    def _with_stress(self, frames: Frames) -> Frames:
        """The frames with the column that the store has; NaN: that structure has none."""
        if not self.stress or frames.stress is not None:
            return frames if self.stress else replace(frames, stress=None)
        return replace(frames, stress=np.full((len(frames), 3, 3), np.nan))

    def _doubled(self, frames: Frames) -> np.ndarray[Any, np.dtype[np.bool_]]:
        doubled = np.zeros(len(frames), dtype=bool)
        if self.twins:
            for k, digest in enumerate(digests(frames.ids).tolist()):
                if digest in self.twins:
                    doubled[k] = digest in self.seen
                    self.seen.add(digest)
        return doubled


def _twins(spool: Spool, parts: int) -> frozenset[int]:
    """Digests that occur more than once, looked for in ranges of digests so that memory does not grow."""
    columns = [spool.array(part, "ids") for part in range(parts)]
    ranges = 1 + sum(map(len, columns)) // IDS_AT_ONCE
    width = 2**64 // ranges + 1
    found: set[int] = set()
    for k in range(ranges):
        inside = [c[(c // np.uint64(width)) == k] if ranges > 1 else np.asarray(c) for c in columns]
        values, counts = np.unique(np.concatenate(inside), return_counts=True)
        found.update(values[counts > 1].tolist())
    return frozenset(found)


def _name_of(spool: Spool, parts: int, twins: frozenset[int]) -> str:
    """The first id whose digest is among them."""
    for part in range(parts):
        for split in range(len(SPLITS)):
            for frames, _ in spool.blocks(part, split):
                for digest, name in zip(digests(frames.ids).tolist(), frames.ids.tolist(), strict=True):
                    if digest in twins:
                        return str(name)
    raise AssertionError("the spool has lost an id")


def _fitted(spool: Spool, summaries: Sequence[Summary]) -> tuple[Fit, Counter[int]]:
    """The fit of reference energies and the neighbour counts of the training split, from what parts have left."""
    fit, degrees = Fit(), Counter[int]()
    for part, summary in enumerate(summaries):
        other = Fit()
        other.factor, other.structures = np.asarray(spool.array(part, "fit")), summary["samples"][TRAINING]
        if other.structures:
            fit.merge(other)
        degrees.update({int(d): n for d, n in summary["degrees"]})
    return fit, degrees


def _fitted_again(kept: _Kept) -> tuple[Fit, Counter[int]]:
    """The same, of what is kept alone."""
    fit, degrees = Fit(), Counter[int]()
    for frames, edges in kept.blocks(TRAINING):
        fit.add(frames)
        if edges is not None:
            degrees.update(dict(enumerate(degree_histogram(frames, edges).tolist())))
    return fit, degrees


def _attributes(about: dict[str, Any], rules: Rules, references: References, degrees: Counter[int]) -> dict[str, Any]:
    """What the store says of itself, HydraGNN's own attributes among them."""
    coefficients = np.nan_to_num(references.energy_ev[1 : MAX_ATOMIC_NUMBER + 1])
    found: dict[str, Any] = {
        "dataset": about["slug"],
        "energy_linear_regression_coeff": coefficients,
        "about": about,
        "units": "eV, angstrom, eV/angstrom, eV/angstrom^3",
    }
    if rules.cutoff is not None:
        found["cutoff_angstrom"] = rules.cutoff
        found["max_neighbours"] = rules.max_neighbours
        found["pna_deg"] = np.array([degrees[d] for d in range(max(degrees, default=0) + 1)], dtype=np.int64)
    return found


def _why(summaries: Sequence[Summary]) -> str:
    left_out: Counter[str] = sum((Counter(s["left_out"]) for s in summaries), Counter())
    told = ", ".join(f"{n} {kind}" for kind, n in left_out.most_common())
    example = next((s["examples"][0] for s in summaries if s["examples"]), "")
    return f"left out: {told} (first: {example})" if told else "the files hold none"
