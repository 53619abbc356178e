"""The datasets of a training run: shipped sets or stores, as labelled neighbour lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import NeighbourList, NeighbourSpec
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
from harness.reference.storage.schema import Sample
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
    """The samples of one head.

    Attributes:
        name: The name of the dataset.
        head: Index of the head.
        data_origin: The name of the data in reports, such as "stand-in for MPTrj".
        level: The level of theory.
        samples: The samples.
        references: The reference energies.
        has_edges: Whether samples include neighbour lists.
        is_referenced: Whether the reference energies are subtracted from the energies of the samples.
        has_forces: Whether structures have forces.
        file: The file of the user that contains the structures, if they are not those of the dataset.
    """

    name: str
    head: int
    data_origin: str
    level: str
    samples: Samples
    references: References
    has_edges: bool = False
    is_referenced: bool = False
    has_forces: bool = True
    file: Path | None = None


class DatasetCollection:
    """Several datasets with one definition of neighbours."""

    def __init__(self, datasets: Sequence[Dataset], neighbour_spec: NeighbourSpec) -> None:
        self.datasets = tuple(datasets)
        self.neighbour_spec = neighbour_spec
        self.samples: ConcatenatedSamples = ConcatenatedSamples([d.samples for d in datasets])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each dataset."""
        return tuple(len(d.samples) for d in self.datasets)

    def load_graphs(self, indices: SampleIndices) -> list[NeighbourList]:
        """Load samples with their neighbours."""
        return self.build_graphs(indices, self.load_records(indices))

    def load_records(self, indices: SampleIndices) -> list[Sample]:
        """Load samples as they are stored."""
        return self.samples.get(np.array(self.samples.starts)[indices.dataset] + indices.index)

    def build_graphs(self, indices: SampleIndices, records: Sequence[Sample]) -> list[NeighbourList]:
        """Return the neighbour lists of samples that have been loaded as records."""
        names = zip(indices.dataset.tolist(), indices.index.tolist(), records, strict=True)
        return [self._build_graph(self.datasets[d], k, record) for d, k, record in names]

    def count_atoms(self, indices: SampleIndices) -> NDArray[np.int64]:
        """Return the number of atoms of each sample, [n]; the first call reads all samples."""
        return np.array(
            [self._sizes[d][k] for d, k in zip(indices.dataset.tolist(), indices.index.tolist(), strict=True)]
        )

    @cached_property
    def _sizes(self) -> list[NDArray[np.int64]]:
        """The number of atoms of every sample, for each dataset; all samples are read once."""
        return [
            np.array([len(r["atomic_numbers"]) for r in d.samples.get(np.arange(len(d.samples)))])
            for d in self.datasets
        ]

    def _build_graph(self, dataset: Dataset, index: int, record: Sample) -> NeighbourList:
        structure = decode_structure(
            record,
            name=f"{dataset.name}/{index}",
            head=dataset.head,
            reference_energy_ev=dataset.references.energy_ev if dataset.is_referenced else None,
        )
        if dataset.has_edges:
            return self.neighbour_spec.trim(decode_neighbours(record, structure))
        return self.neighbour_spec.build_list(structure)


def load_shipped(name: str, size_range: tuple[int, int] | None = None) -> Dataset:
    """Load a shipped set.

    Args:
        name: The set.
        size_range: The smallest and the largest number of atoms; None for all structures.

    Raises:
        InputError: There is no such set, or no structure has a size in this range.
    """
    entry = find_shipped_set(name)
    table = load_table(entry)
    if size_range is not None:
        table = table[(table.sizes >= size_range[0]) & (table.sizes <= size_range[1])]
        if not len(table):
            raise InputError(f"set {name!r} has no structure of {size_range[0]} to {size_range[1]} atoms")
    references = reference_energies.fit(lambda: iter([table]))
    return Dataset(
        name,
        entry.branch,
        entry.data_origin,
        level=entry.level,
        samples=preload(table),
        references=references,
        has_forces=table.forces is not None,
    )


def load_shipped_splits(name: str, *, test_fraction: float, seed: int, limit: int | None = None) -> dict[str, Dataset]:
    """Return the training, validation and test split of a shipped set, by the name of the split.

    All frames of a molecule, material, reaction or trajectory are in one split, and so are equal structures. The
    reference energies are fitted to the training split alone.

    Args:
        name: The set.
        test_fraction: The share of structures for tests; half as many are for validation.
        seed: Seed of the split.
        limit: Only the first `limit` structures are used; None for all.

    Raises:
        InputError: A split is empty.
    """
    entry = find_shipped_set(name)
    table = load_table(entry)
    table = table[np.arange(len(table)) < (limit or len(table))]
    split_index = assign_structures(
        table, shares=(1.0 - 1.5 * test_fraction, 0.5 * test_fraction, test_fraction), seed=seed
    )
    for k, split in enumerate(SPLITS):
        if not (split_index == k).any():
            raise InputError(f"set {name!r}: none of {len(table)} structures is in the {split} split")
    train = table[split_index == 0]
    references = reference_energies.fit(lambda: iter([train]))
    return {
        split: Dataset(
            name,
            entry.branch,
            entry.data_origin,
            level=entry.level,
            samples=preload(table[split_index == k]),
            references=references,
            has_forces=table.forces is not None,
        )
        for k, split in enumerate(SPLITS)
    }


def preload(table: StructureTable) -> Samples:
    """Return the structures of a table as samples."""
    return PreloadedSamples.from_block(encode_table(table, keys=(*REQUIRED_KEYS, "forces")))


def open_dataset(
    path: Path,
    neighbour_spec: NeighbourSpec,
    mode: ReadMode,
    *,
    comm: Any = None,
    width: int | None = None,
    backend: str = "auto",
    split: str = TRAINING_SPLIT,
) -> Dataset:
    """Open one split of a store for training; collective over comm (mpi4py), if there is one.

    Args:
        path: The store.
        neighbour_spec: The definition of neighbours. If the store has edges of this definition, they are used.
        mode: As in `open_samples`.
        comm: As in `open_samples`.
        width: As in `open_samples`.
        backend: As in `open_samples`.
        split: The name of the split.

    Raises:
        InputError: The store or the split cannot be read.
    """
    with BPFile(path) as file:
        facts = describe_store(file)
        limits = (file.attributes.get("cutoff_angstrom"), file.attributes.get("max_neighbours"))
        has_edges = limits == (neighbour_spec.cutoff, neighbour_spec.max_neighbours)
        candidates = (*REQUIRED_KEYS, "forces", *(EDGE_KEYS if has_edges else ()))
        keys: Collection[str] = [k for k in candidates if k in REQUIRED_KEYS or k in file.keys(split)]
    samples: Samples = open_samples(path, split, mode, comm=comm, width=width, keys=keys, backend=backend)
    if left_out := facts.left_out.get(split):
        samples = FilteredSamples(samples, left_out)
    return Dataset(
        name=facts.source.slug,
        head=facts.source.branch,
        data_origin=facts.data_origin,
        level=facts.level,
        samples=samples,
        references=facts.references,
        has_edges=has_edges,
        is_referenced=facts.energies == REFERENCED,
        has_forces="forces" in keys,
    )


def require_forces(datasets: Sequence[Dataset], force_weight: float) -> None:
    """Raise InputError if forces are to be trained on, but a dataset has none.

    Args:
        datasets: The training sets.
        force_weight: The weight of forces in the loss; with 0, forces are not needed.
    """
    lacking = sorted({d.name for d in datasets if not d.has_forces and len(d.samples)})
    if lacking and force_weight > 0:
        raise InputError(
            f"no structure of {', '.join(lacking)} has forces, and the training asks for them (force_weight"
            f" {force_weight:g}); convert files that have forces, or leave the set out"
        )


def list_splits(path: Path) -> tuple[str, ...]:
    """Return which of the training, validation and test splits a store has.

    Raises InputError if it has no training split.
    """
    with BPFile(path) as file:
        splits = tuple(split for split in SPLITS if split in file.splits)
    if TRAINING_SPLIT not in splits:
        raise InputError(
            f"{path}: expected a split {TRAINING_SPLIT!r} to train on, found {', '.join(file.splits) or 'none'}"
        )
    return splits


def find_stores(folder: Path) -> list[Path]:
    """Return the stores in a folder or in the case folders below it, in the order of their heads.

    Raises InputError if there are none.
    """
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
