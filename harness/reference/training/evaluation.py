"""Errors of each head on its test set, compared with those of baselines that ignore the positions of the atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import Dataset, DatasetCollection
from harness.reference.distributed.group import ProcessGroup
from harness.reference.models.coverage import find_shortest_contact
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training.loss import collate_labelled, predict_own_head

BATCH = 32
# The numbers of structures from which the mean energy is computed, in all and at a time.
MEAN_SAMPLE, MEAN_BATCH = 100_000, 1000
# The number of structures from which the shortest distance is computed.
CONTACT_SAMPLE = 2000
# Counts and sums over the test set of one head; the sums over all ranks give the errors.
SUMS = (
    "structures", "atoms", "structures_with_unseen_elements", "energy_abs", "energy_sq", "composition_abs",
    "composition_sq",
    "mean_abs", "components", "force_abs", "force_sq", "zero_abs", "zero_sq",
)  # fmt: skip


@dataclass
class ErrorSums:
    """The sums named in SUMS over the structures of one head."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, **values: float) -> None:
        """Add each value to the sum with the name of the argument."""
        for name, value in values.items():
            self.sums[name] += value


def compute_mean_energy(dataset: Dataset, world: ProcessGroup) -> float:
    """Return the mean energy per atom of a dataset in eV, from at most MEAN_SAMPLE evenly spaced structures.

    Each rank reads its share of them. The call is collective.
    """
    count = len(dataset.samples)
    sample = np.linspace(0, count - 1, min(count, MEAN_SAMPLE)).round().astype(np.int64)
    indices = sample[world.rank :: world.size]
    local_sum = 0.0
    for first in range(0, len(indices), MEAN_BATCH):
        records = dataset.samples.get(indices[first : first + MEAN_BATCH])
        local_sum += sum(float(r["energy"][0]) / len(r["atomic_numbers"]) for r in records)
    total, number = world.all_reduce_sum(torch.tensor([local_sum, len(indices)], dtype=torch.float64)).tolist()
    return float(total / number)


def find_shortest_distance(collection: DatasetCollection, dataset: Dataset, world: ProcessGroup) -> float:
    """Return the shortest distance in a dataset divided by the sum of covalent radii; see FoundationModel.closest.

    At most CONTACT_SAMPLE evenly spaced structures are read, each rank its share. The call is collective.
    """
    position, count = collection.datasets.index(dataset), len(dataset.samples)
    sample = np.linspace(0, count - 1, min(count, CONTACT_SAMPLE)).round().astype(np.int64)
    indices = sample[world.rank :: world.size].tolist()
    contacts = [
        find_shortest_contact(collection.load_graphs(SampleIndices(np.array([position]), np.array([k]))))
        for k in indices
    ]
    smallest = min(filter(None, contacts), default=np.inf)
    overall = -float(world.all_reduce_max(torch.tensor([-smallest], dtype=torch.float64)))
    return overall if np.isfinite(overall) else 0.0


def evaluate_test_sets(
    model: FoundationModel,
    training: DatasetCollection,
    test: DatasetCollection,
    references: Tensor,
    world: ProcessGroup,
) -> list[dict[str, object]]:
    """Return one row per dataset: mean absolute and root mean square errors on its test set; collective.

    The baselines are `composition`, the reference energies alone (a linear model of composition fitted on the training
    set), `mean`, the mean energy per atom of the training set, and `zero_force`, zero for all forces. Structures with
    elements that the head's training set lacks are counted and omitted. An error without structures, or with a
    prediction that is not finite, is None.

    Args:
        model: The model.
        training: The training sets.
        test: The test sets, which the ranks share.
        references: [heads, 119] eV.
        world: The ranks.
    """
    rows = []
    for k, dataset in enumerate(test.datasets):
        mean = compute_mean_energy(training.datasets[[d.head for d in training.datasets].index(dataset.head)], world)
        errors = ErrorSums()
        indices = np.arange(world.rank, len(dataset.samples), world.size)
        for first in range(0, len(indices), BATCH):
            selected = indices[first : first + BATCH]
            graphs = test.load_graphs(SampleIndices(np.full(len(selected), k), selected))
            known = [g for g in graphs if dataset.references.knows(g.structure.numbers)]
            errors.add(structures_with_unseen_elements=len(graphs) - len(known))
            if known:
                errors.add(**sum_errors(model, known, references, mean, world))
        sums = torch.tensor([errors.sums[name] for name in SUMS], dtype=torch.float64)
        total = dict(zip(SUMS, world.all_reduce_sum(sums).tolist(), strict=True))
        rows.append(build_error_row(dataset, total))
    return rows


def sum_errors(
    model: FoundationModel, graphs: Sequence[NeighbourList], references: Tensor, mean: float, world: ProcessGroup
) -> dict[str, float]:
    """Return the sums named in SUMS over structures of one head.

    Args:
        model: The model.
        graphs: Labelled structures with neighbours.
        references: [heads, 119] reference energies in eV.
        mean: Mean energy per atom of the head's training set in eV.
        world: The ranks, for their device.
    """
    dtype = next(model.parameters()).dtype
    batch, labels = collate_labelled(graphs, references, dtype, with_triplets=model.config.needs_triplets)
    batch = batch.to(world.device, dtype)
    energy, forces = predict_own_head(model, batch, create_graph=False)
    atoms = np.array([len(g.structure) for g in graphs], dtype=float)
    residual = _to_numpy(labels.residual_energy) / atoms
    error = _to_numpy(energy) / atoms - residual
    per_atom = np.array([g.structure.energy for g in graphs]) / atoms
    known = labels.force_mask.squeeze(1).numpy() > 0
    force_error, force = (_to_numpy(forces) - _to_numpy(labels.forces))[known], _to_numpy(labels.forces)[known]
    return {
        "structures": len(graphs),
        "atoms": float(atoms.sum()),
        "energy_abs": float(np.abs(error).sum()),
        "energy_sq": float((error**2).sum()),
        "composition_abs": float(np.abs(residual).sum()),
        "composition_sq": float((residual**2).sum()),
        "mean_abs": float(np.abs(per_atom - mean).sum()),
        "components": force_error.size,
        "force_abs": float(np.abs(force_error).sum()),
        "force_sq": float((force_error**2).sum()),
        "zero_abs": float(np.abs(force).sum()),
        "zero_sq": float((force**2).sum()),
    }


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()


def build_error_row(dataset: Dataset, total: dict[str, float]) -> dict[str, object]:
    """Return the errors of one head as plain data.

    Args:
        dataset: The test set of the head.
        total: The sums named in SUMS over all ranks.
    """

    def mean(name: str, count: str, root: bool = False) -> float | None:
        if not total[count] or not math.isfinite(total[name]):
            return None
        value = total[name] / total[count]
        return value**0.5 if root else value

    return {
        "head": HEADS[dataset.head],
        "dataset": dataset.name,
        "data_origin": dataset.data_origin,
        "level_of_theory": dataset.level,
        **{name: int(total[name]) for name in ("structures", "atoms", "structures_with_unseen_elements")},
        "energy_mae_ev_per_atom": mean("energy_abs", "structures"),
        "energy_rmse_ev_per_atom": mean("energy_sq", "structures", root=True),
        "composition_mae_ev_per_atom": mean("composition_abs", "structures"),
        "composition_rmse_ev_per_atom": mean("composition_sq", "structures", root=True),
        "mean_mae_ev_per_atom": mean("mean_abs", "structures"),
        "force_mae_ev_per_angstrom": mean("force_abs", "components"),
        "force_rmse_ev_per_angstrom": mean("force_sq", "components", root=True),
        "zero_force_mae_ev_per_angstrom": mean("zero_abs", "components"),
        "zero_force_rmse_ev_per_angstrom": mean("zero_sq", "components", root=True),
    }
