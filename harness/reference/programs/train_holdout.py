"""Errors after training, on structures of a holdout and its files (outside), and on other test structures (inside)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.protocol.events import CaseLog
from harness.protocol.programs.holdout import SYMBOLS, Holdout
from harness.protocol.programs.train import HoldoutSet, StructureErrors, TrainFacts
from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import Dataset, DatasetCollection
from harness.reference.datasets.holdout import OUTSIDE
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed.group import ProcessGroup
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.ood_distance import embed, fit_distance
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training.loss import collate_labelled, predict_own_head

BATCH = 32
# The largest number of structures of each dataset that are evaluated in a split, and the largest number to which the
# distance is fitted.
MAX_EVALUATED, MAX_FITTED = 250, 200

Side = Literal["inside", "outside"]


@dataclass(frozen=True)
class _Errors:
    """Errors of one structure.

    Attributes:
        energy: Signed error of the energy, eV/atom.
        composition: Absolute error of the baseline, the sum of the reference energies, eV/atom.
        force: Mean absolute error of the components of forces, eV/angstrom; None if the structure has no forces.
        zero_force: The same for forces of zero.
    """

    energy: float
    composition: float
    force: float | None
    zero_force: float | None


def log_structure_errors(
    model: FoundationModel,
    splits: Mapping[str, DatasetCollection],
    *,
    references: Tensor,
    rule: Holdout,
    world: ProcessGroup,
    log: CaseLog,
) -> None:
    """Log the errors of structures inside and outside the training sets, and the numbers of structures outside.

    Args:
        model: The trained model.
        splits: The training, validation and test sets, and the split OUTSIDE.
        references: [heads, 119] reference energies in eV.
        rule: The rule of the holdout.
        world: The ranks; the errors are computed on the device of this one.
        log: The log of the case.
    """
    training = splits[SPLITS[0]]
    trained_heads = {dataset.head for dataset in training.datasets}
    fitted = [
        g.structure for k in range(len(training.datasets)) for g in _load(training, k, _select(training, k, MAX_FITTED))
    ]
    distance = fit_distance(embed(model, fitted))
    facts = []
    sides: tuple[tuple[Side, DatasetCollection], ...] = (("inside", splits[SPLITS[2]]), ("outside", splits[OUTSIDE]))
    for side, collection in sides:
        for k, dataset in enumerate(collection.datasets):
            if dataset.head not in trained_heads:
                continue
            selected = _select(collection, k, MAX_EVALUATED)
            graphs = list(zip(selected.tolist(), _load(collection, k, selected), strict=True))
            usable = [(i, g) for i, g in graphs if _has_references(dataset, g.structure.numbers, side)]
            if side == "outside":
                facts.append(_describe_outside(dataset, len(graphs) - len(usable)))
            for first in range(0, len(usable), BATCH):
                indices, chunk = zip(*usable[first : first + BATCH], strict=True)
                distances = distance.distance(torch.from_numpy(embed(model, [g.structure for g in chunk]))).tolist()
                errors = _compute_errors(model, chunk, references, world)
                for i, graph, far, values in zip(indices, chunk, distances, errors, strict=True):
                    symbols = [SYMBOLS[z - 1] for z in graph.structure.numbers.tolist()]
                    event = StructureErrors(
                        head=HEADS[dataset.head],
                        dataset=dataset.name,
                        split=side,
                        index=i,
                        atoms=len(symbols),
                        energy_error_ev_per_atom=values.energy,
                        composition_error_ev_per_atom=values.composition,
                        force_mae_ev_per_angstrom=values.force,
                        zero_force_mae_ev_per_angstrom=values.zero_force,
                        held_out_share=float(np.isin(symbols, rule.elements).mean()),
                        distance=far,
                        file=None if dataset.file is None else str(dataset.file),
                    )
                    log.write(event)
    log.record_facts(TrainFacts(holdout=facts))


def _describe_outside(dataset: Dataset, without_reference: int) -> HoldoutSet:
    return HoldoutSet(
        dataset=dataset.name,
        head=HEADS[dataset.head],
        outside=len(dataset.samples),
        without_reference=without_reference,
        file=None if dataset.file is None else str(dataset.file),
        sha256=None if dataset.file is None else hashlib.sha256(dataset.file.read_bytes()).hexdigest(),
    )


def _select(collection: DatasetCollection, dataset: int, limit: int) -> NDArray[np.int64]:
    """Return the indices of at most `limit` evenly spaced structures of one dataset of a collection."""
    count = len(collection.datasets[dataset].samples)
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64)


def _load(collection: DatasetCollection, dataset: int, indices: NDArray[np.int64]) -> list[NeighbourList]:
    return collection.load_graphs(SampleIndices(np.full(len(indices), dataset), indices))


def _has_references(dataset: Dataset, numbers: NDArray[np.int64], side: Side) -> bool:
    """Return whether all elements have reference energies and, for a structure inside, occur in the training set."""
    is_known = bool(np.isfinite(dataset.references.energy_ev[numbers]).all())
    return is_known and (side == "outside" or dataset.references.knows(numbers))


def _compute_errors(
    model: FoundationModel, graphs: Sequence[NeighbourList], references: Tensor, world: ProcessGroup
) -> Iterator[_Errors]:
    """Yield the errors of each structure."""
    dtype = next(model.parameters()).dtype
    batch, labels = collate_labelled(graphs, references, dtype, with_triplets=model.config.needs_triplets)
    batch = batch.to(world.device, dtype)
    energy, forces = (_to_numpy(t) for t in predict_own_head(model, batch, create_graph=False))
    residual, labelled = _to_numpy(labels.residual_energy), _to_numpy(labels.forces)
    stop = 0
    for position, graph in enumerate(graphs):
        atoms = len(graph.structure)
        start, stop = stop, stop + atoms
        has_forces = graph.structure.forces is not None
        yield _Errors(
            energy=float(energy[position] - residual[position]) / atoms,
            composition=float(abs(residual[position])) / atoms,
            force=float(np.abs(forces[start:stop] - labelled[start:stop]).mean()) if has_forces else None,
            zero_force=float(np.abs(labelled[start:stop]).mean()) if has_forces else None,
        )


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
