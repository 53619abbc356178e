"""The datasets of a training: shipped sets or stores of some branches, as labelled neighbour lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets import reference_energies
from harness.reference.datasets.duplicates import assign_structures
from harness.reference.datasets.hydragnn.stores import REFERENCED, describe_store, find_named_source, require_seal
from harness.reference.datasets.reference_energies import References
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.datasets.splits import SPLITS
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import ReadMode, open_samples
from harness.reference.storage.samples import (
    ConcatenatedSamples,
    FilteredSamples,
    PreloadedSamples,
    Samples,
)
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.storage.schema import Record
from harness.reference.storage.structure_codec import (
    EDGE_KEYS,
    REQUIRED_KEYS,
    decode_neighbours,
    decode_structure,
    encode_table,
)

TRAINING_SPLIT = SPLITS[0]


@dataclass(frozen=True)
class Dataset:
    """The samples of one branch. name, role, level: for reports. edges: whether samples include neighbour lists.

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
class NeighbourSpec:
    """The definition of neighbours: closer than cutoff (angstrom), and among the nearest max_neighbours."""

    cutoff: float
    max_neighbours: int | None


class DatasetCollection:
    """Several datasets with one definition of neighbours."""

    def __init__(self, datasets: Sequence[Dataset], reach: NeighbourSpec) -> None:
        self.datasets = tuple(datasets)
        self.reach = reach
        self.samples: ConcatenatedSamples = ConcatenatedSamples([d.samples for d in datasets])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each dataset."""
        return tuple(len(d.samples) for d in self.datasets)

    def graphs(self, indices: SampleIndices) -> list[NeighbourList]:
        """Load samples with their neighbours."""
        return self.build_graphs(indices, self.records(indices))

    def records(self, indices: SampleIndices) -> list[Record]:
        """Load samples as they are stored."""
        return self.samples.get(np.array(self.samples.starts)[indices.dataset] + indices.index)

    def build_graphs(self, indices: SampleIndices, records: Sequence[Record]) -> list[NeighbourList]:
        """Return the neighbour lists of samples that have been loaded as records."""
        names = zip(indices.dataset.tolist(), indices.index.tolist(), records, strict=True)
        return [self._build_graph(self.datasets[d], k, record) for d, k, record in names]

    def atoms(self, indices: SampleIndices) -> NDArray[np.int64]:
        """Return the number of atoms of each sample, [n]."""
        return np.array(
            [self._sizes[d][k] for d, k in zip(indices.dataset.tolist(), indices.index.tolist(), strict=True)]
        )

    @cached_property
    def _sizes(self) -> list[NDArray[np.int64]]:
        """Atoms of every sample of each dataset, which are all read once."""
        return [
            np.array([len(r["atomic_numbers"]) for r in d.samples.get(np.arange(len(d.samples)))])
            for d in self.datasets
        ]

    def _build_graph(self, dataset: Dataset, index: int, record: Record) -> NeighbourList:
        structure = decode_structure(
            record,
            name=f"{dataset.name}/{index}",
            head=dataset.head,
            reference_energy_ev=dataset.references.energy_ev if dataset.is_referenced else None,
        )
        if dataset.edges:
            return decode_neighbours(record, structure)
        return build_neighbour_list(structure, cutoff=self.reach.cutoff, max_neighbours=self.reach.max_neighbours)


def load_shipped(name: str, atoms: tuple[int, int] | None = None) -> Dataset:
    """Load a shipped set, or its structures of atoms[0] to atoms[1] atoms; raises InputError if there are none."""
    entry = find_shipped_set(name)
    frames = load_table(entry)
    if atoms is not None:
        frames = frames[(frames.sizes >= atoms[0]) & (frames.sizes <= atoms[1])]
        if not len(frames):
            raise InputError(f"set {name!r} has no structure of {atoms[0]} to {atoms[1]} atoms")
    references = reference_energies.fit(lambda: iter([frames]))
    return Dataset(
        name,
        entry.branch,
        entry.role,
        level=entry.level,
        samples=_preload(frames),
        references=references,
        has_forces=frames.forces is not None,
    )


def load_shipped_splits(name: str, *, test_fraction: float, seed: int, limit: int | None = None) -> dict[str, Dataset]:
    """Return the splits of a shipped set, or of its first `limit` structures, by name.

    The share `test_fraction` of the structures is for tests, and half as many are for validation.

    All frames of a molecule, material, reaction or trajectory fall into one split, and so do equal structures;
    references are of the training split alone. Raises InputError if that is empty.
    """
    entry = find_shipped_set(name)
    frames = load_table(entry)
    frames = frames[np.arange(len(frames)) < (limit or len(frames))]
    split_index = assign_structures(
        frames, shares=(1.0 - 1.5 * test_fraction, 0.5 * test_fraction, test_fraction), seed=seed
    )
    train = frames[split_index == 0]
    if not len(train):
        raise InputError(f"set {name!r}: no structure is left for training")
    references = reference_energies.fit(lambda: iter([train]))
    return {
        split: Dataset(
            name,
            entry.branch,
            entry.role,
            level=entry.level,
            samples=_preload(frames[split_index == k]),
            references=references,
            has_forces=frames.forces is not None,
        )
        for k, split in enumerate(SPLITS)
    }


def _preload(frames: StructureTable) -> Samples:
    return PreloadedSamples.from_block(encode_table(frames, keys=(*REQUIRED_KEYS, "forces")))


def open_dataset(
    path: Path,
    reach: NeighbourSpec,
    mode: ReadMode,
    *,
    comm: Any = None,
    width: int | None = None,
    backend: str = "auto",
    split: str = TRAINING_SPLIT,
) -> Dataset:
    """Open one split of a store; collective over comm, if there is one."""
    with BPFile(path) as file:
        facts = describe_store(file)
        limits = (file.attributes.get("cutoff_angstrom"), file.attributes.get("max_neighbours"))
        edges = limits == (reach.cutoff, reach.max_neighbours)
        candidates = (*REQUIRED_KEYS, "forces", *EDGE_KEYS * edges)
        keys: Collection[str] = [k for k in candidates if k in REQUIRED_KEYS or k in file.keys(split)]
    samples: Samples = open_samples(path, split, mode, comm=comm, width=width, keys=keys, backend=backend)
    if left_out := facts.left_out.get(split):
        samples = FilteredSamples(samples, left_out)
    return Dataset(
        name=facts.source.slug,
        head=facts.source.branch,
        role=facts.role,
        level=facts.level,
        samples=samples,
        references=facts.references,
        edges=edges,
        is_referenced=facts.energies == REFERENCED,
        has_forces="forces" in keys,
    )


def require_forces(datasets: Sequence[Dataset], force_weight: float) -> None:
    """Raise InputError where training on forces would silently be one on energies alone.

    Args:
        datasets: The training sets.
        force_weight: The weight of forces in the loss; 0 asks for none.
    """
    lacking = sorted({d.name for d in datasets if not d.has_forces and len(d.samples)})
    if lacking and force_weight > 0:
        raise InputError(
            f"no structure of {', '.join(lacking)} has forces, and the training asks for them (force_weight"
            f" {force_weight:g}); convert files that have forces, or leave the set out"
        )


def list_splits(path: Path) -> tuple[str, ...]:
    """Return those of training, validation and test that a store has; raises InputError if it is not for training."""
    with BPFile(path) as file:
        splits = tuple(split for split in SPLITS if split in file.splits)
    if TRAINING_SPLIT not in splits:
        raise InputError(
            f"{path}: expected a split {TRAINING_SPLIT!r} to train on, found {', '.join(file.splits) or 'none'}"
        )
    return splits


def find_stores(folder: Path) -> list[Path]:
    """Return the stores in a folder, or one case below it, in the order of branches; raises InputError if none."""
    paths = [*folder.glob("*.bp"), *folder.glob("*/store/*.bp")]
    if not paths:
        raise InputError(f"{folder}: no stores (*.bp) here; `harness data convert` and `harness run data` make them")
    by_slug: dict[str, Path] = {}
    for path in sorted(paths):
        require_seal(path)
        try:
            slug = find_named_source(path.stem).slug
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if by_slug.setdefault(slug, path) is not path:
            raise InputError(f"{path}: {by_slug[slug]} holds the same dataset; keep one of them in this folder")
    return sorted(by_slug.values(), key=lambda path: find_named_source(path.stem).branch)
