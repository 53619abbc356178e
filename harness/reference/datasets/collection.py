"""What ranks train on: the datasets of some branches, from the shipped sets or from stores, as graphs with labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import Graph, neighbour_graph
from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import Frames
from harness.reference.datasets.hydragnn.stores import REFERENCED, describe_store, require_seal, source_named
from harness.reference.datasets.shipped_sets import load_frames, mini_set
from harness.reference.datasets.splitting.assignment import split_frames
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.datasets.statistics import reference_energies
from harness.reference.datasets.statistics.reference_energies import References
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.columns import frames_block
from harness.reference.storage.open import Mode, open_samples
from harness.reference.storage.samples import Merged, Preloaded, Remaining, Samples, merged
from harness.reference.storage.sampling.sampler import Drawn
from harness.reference.storage.schema import Record

NEEDED = ("pos", "atomic_numbers", "energy", "cell", "pbc", "graph_attr")
EDGES = ("edge_index", "edge_shifts")
TRAINING = SPLITS[0]


@dataclass(frozen=True)
class Dataset:
    """One branch's samples. name, role, level: as a report must call them. edges: whether neighbour lists come too.

    is_referenced: whether the references were subtracted from the energies of the samples, and must be added.
    has_forces: whether its structures are labelled with forces.
    """

    name: str
    head: int
    role: str
    level: str
    samples: Samples
    references: References
    edges: bool = False
    is_referenced: bool = False
    has_forces: bool = True


@dataclass(frozen=True)
class Neighbourhood:
    """Who is a neighbour: closer than cutoff (angstrom), at most so many."""

    cutoff: float
    max_neighbours: int | None


class Corpus:
    """Datasets side by side."""

    def __init__(self, datasets: Sequence[Dataset], reach: Neighbourhood) -> None:
        self.datasets = tuple(datasets)
        self.reach = reach
        self.samples: Merged = merged([d.samples for d in datasets])

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each dataset."""
        return tuple(len(d.samples) for d in self.datasets)

    def graphs(self, drawn: Drawn) -> list[Graph]:
        """The samples drawn, with their neighbours."""
        return self.graphs_of(drawn, self.records(drawn))

    def records(self, drawn: Drawn) -> list[Record]:
        """The samples drawn, as they are stored."""
        return self.samples.get(np.array(self.samples.starts)[drawn.dataset] + drawn.index)

    def graphs_of(self, drawn: Drawn, records: Sequence[Record]) -> list[Graph]:
        """Records of what was drawn, with their neighbours."""
        names = zip(drawn.dataset.tolist(), drawn.index.tolist(), records, strict=True)
        return [self._graph(self.datasets[d], k, record) for d, k, record in names]

    def atoms(self, drawn: Drawn) -> NDArray[np.int64]:
        """How many atoms each of the samples drawn has."""
        return np.array([self._sizes[d][k] for d, k in zip(drawn.dataset.tolist(), drawn.index.tolist(), strict=True)])

    @cached_property
    def _sizes(self) -> list[NDArray[np.int64]]:
        """Atoms of every sample of each dataset; all of them are looked at once."""
        return [
            np.array([len(r["atomic_numbers"]) for r in d.samples.get(np.arange(len(d.samples)))])
            for d in self.datasets
        ]

    def _graph(self, dataset: Dataset, index: int, record: Record) -> Graph:
        charge, multiplicity = record["graph_attr"].reshape(-1).tolist()
        numbers = record["atomic_numbers"].reshape(-1).astype(np.int64)
        energy = float(record["energy"].reshape(-1)[0])
        forces = record.get("forces")
        structure = Structure(
            name=f"{dataset.name}/{index}",
            numbers=numbers,
            positions=record["pos"].astype(np.float64, copy=False),
            cell=record["cell"].astype(np.float64, copy=False),
            periodic=tuple((record["pbc"].reshape(-1) != 0).tolist()),
            head=dataset.head,
            energy=energy + (float(dataset.references.energy_ev[numbers].sum()) if dataset.is_referenced else 0.0),
            forces=None if forces is None else forces.astype(np.float64, copy=False),
            charge=int(charge),
            multiplicity=int(multiplicity),
        )
        if dataset.edges:
            sender, receiver = record["edge_index"]
            return Graph(structure, receiver, sender, -record["edge_shifts"])
        return neighbour_graph(structure, cutoff=self.reach.cutoff, max_neighbours=self.reach.max_neighbours)


def shipped(name: str, atoms: tuple[int, int] | None = None) -> Dataset:
    """A shipped set in memory, or its structures of atoms[0] to atoms[1] atoms; raises InputError if there are none."""
    entry = mini_set(name)
    frames = load_frames(entry)
    if atoms is not None:
        frames = frames[(frames.sizes >= atoms[0]) & (frames.sizes <= atoms[1])]
        if not len(frames):
            raise InputError(f"set {name!r} has no structure of {atoms[0]} to {atoms[1]} atoms")
    found = reference_energies.fit(lambda: iter([frames]))
    return Dataset(
        name, entry.branch, entry.role, entry.level, _in_memory(frames), found, has_forces=frames.forces is not None
    )


def parted(name: str, *, held_out: float, seed: int, limit: int | None = None) -> dict[str, Dataset]:
    """A shipped set, or its first `limit` structures, by split: `held_out` of it for tests, half of that to validate.

    All frames of a molecule, material, reaction or trajectory fall into one split, and so do equal structures;
    references are of the training split alone. Raises InputError if that is empty.
    """
    entry = mini_set(name)
    frames = load_frames(entry)
    frames = frames[np.arange(len(frames)) < (limit or len(frames))]
    of = split_frames(frames, shares=(1.0 - 1.5 * held_out, 0.5 * held_out, held_out), seed=seed)
    train = frames[of == 0]
    if not len(train):
        raise InputError(f"set {name!r}: no structure is left for training")
    found = reference_energies.fit(lambda: iter([train]))
    return {
        split: Dataset(
            name,
            entry.branch,
            entry.role,
            entry.level,
            _in_memory(frames[of == k]),
            found,
            has_forces=frames.forces is not None,
        )
        for k, split in enumerate(SPLITS)
    }


def _in_memory(frames: Frames) -> Samples:
    return Preloaded.of_block(frames_block(frames, keys=(*NEEDED, "forces")))


def stored(
    path: Path,
    reach: Neighbourhood,
    mode: Mode,
    comm: Any = None,
    width: int | None = None,
    backend: str = "auto",
    split: str = TRAINING,
) -> Dataset:
    """One split of a store; collective over comm, where there is one."""
    with BPFile(path) as file:
        facts = describe_store(file)
        limits = (file.attributes.get("cutoff_angstrom"), file.attributes.get("max_neighbours"))
        edges = limits == (reach.cutoff, reach.max_neighbours)
        wanted = (*NEEDED, "forces", *EDGES * edges)
        keys: Collection[str] = [k for k in wanted if k in NEEDED or k in file.keys(split)]
    samples: Samples = open_samples(path, split, mode, comm=comm, width=width, keys=keys, backend=backend)
    if left_out := facts.left_out.get(split):
        samples = Remaining(samples, left_out)
    return Dataset(
        facts.source.slug,
        facts.source.branch,
        facts.role,
        facts.level,
        samples,
        facts.references,
        edges,
        facts.energies == REFERENCED,
        "forces" in keys,
    )


def require_forces(datasets: Sequence[Dataset], force_weight: float) -> None:
    """Raise InputError where training on forces would silently be one on energies alone.

    Args:
        datasets: What is to be trained on.
        force_weight: The weight of forces in the loss; 0 asks for none.
    """
    lacking = sorted({d.name for d in datasets if not d.has_forces and len(d.samples)})
    if lacking and force_weight > 0:
        raise InputError(
            f"no structure of {', '.join(lacking)} has forces, and the training asks for them (force_weight"
            f" {force_weight:g}); convert files that have forces, or leave the set out"
        )


def splits_in(path: Path) -> tuple[str, ...]:
    """Return those of training, validation and test that a store has; raises InputError if it is not for training."""
    with BPFile(path) as file:
        found = tuple(split for split in SPLITS if split in file.splits)
    if TRAINING not in found:
        raise InputError(f"{path}: expected a split {TRAINING!r} to train on, found {', '.join(file.splits) or 'none'}")
    return found


def stores_in(folder: Path) -> list[Path]:
    """The stores in a folder, or one a case below it, in the order of the branches; raises InputError if none."""
    found = [*folder.glob("*.bp"), *folder.glob("*/store/*.bp")]
    if not found:
        raise InputError(f"{folder}: no stores (*.bp) here; `harness data convert` and `harness run data` make them")
    by_slug: dict[str, Path] = {}
    for path in sorted(found):
        require_seal(path)
        try:
            slug = source_named(path.stem).slug
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if by_slug.setdefault(slug, path) is not path:
            raise InputError(f"{path}: {by_slug[slug]} holds the same dataset; keep one of them in this folder")
    return sorted(by_slug.values(), key=lambda path: source_named(path.stem).branch)
