"""Errors on held-out structures, head by head, beside those of what knows nothing of structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import Graph
from harness.reference.data.structure import Array
from harness.reference.datasets.collection import Corpus, Dataset
from harness.reference.datasets.heads import HEADS
from harness.reference.distributed.group import Team
from harness.reference.models.coverage import shortest_contact
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import Drawn
from harness.reference.training.loss import labelled, own_head

BATCH = 32
MEAN_OF, MEAN_BATCH = 100_000, 1000
CLOSEST_OF = 2000
# What is known of one head's test set: number and sums, so that ranks can add theirs up.
SUMS = (
    "structures", "atoms", "unseen_elements", "energy_abs", "energy_sq", "composition_abs", "composition_sq",
    "mean_abs", "components", "force_abs", "force_sq", "zero_abs", "zero_sq",
)  # fmt: skip


@dataclass
class Tally:
    """Sums over the structures of one head."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, **values: float) -> None:
        """Count these in."""
        for name, value in values.items():
            self.sums[name] += value


def predicted(model: FoundationModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Energy beyond the references [g] and forces [n, 3] of each structure from its own head, detached."""
    energy, forces = own_head(model, batch, create_graph=False)
    return energy.detach(), forces


def mean_energy(dataset: Dataset, team: Team) -> float:
    """The mean energy per atom of a dataset, eV: of MEAN_OF structures evenly spread over it, or all if there are less.

    Each rank reads its share, a batch at a time.
    """
    count = len(dataset.samples)
    looked_at = np.linspace(0, count - 1, min(count, MEAN_OF)).round().astype(np.int64)
    mine = looked_at[team.place.rank :: team.place.size]
    own = 0.0
    for first in range(0, len(mine), MEAN_BATCH):
        records = dataset.samples.get(mine[first : first + MEAN_BATCH])
        own += sum(float(r["energy"][0]) / len(r["atomic_numbers"]) for r in records)
    total, number = team.total(torch.tensor([own, len(mine)], dtype=torch.float64)).tolist()
    return float(total / number)


def shortest_distance(corpus: Corpus, dataset: Dataset, team: Team) -> float:
    """Return the shortest distance in a set, as FoundationModel.closest counts it.

    Of a set of more than CLOSEST_OF structures, so many spread evenly over it are looked at, by each rank its share.
    """
    place, count = corpus.datasets.index(dataset), len(dataset.samples)
    looked_at = np.linspace(0, count - 1, min(count, CLOSEST_OF)).round().astype(np.int64)
    mine = looked_at[team.place.rank :: team.place.size]
    found = [shortest_contact(corpus.graphs(Drawn(np.array([place]), np.array([k])))) for k in mine.tolist()]
    least = min(filter(None, found), default=np.inf)
    everywhere = -float(team.largest(torch.tensor([-least], dtype=torch.float64)))
    return everywhere if np.isfinite(everywhere) else 0.0


def held_out(
    model: FoundationModel, training: Corpus, test: Corpus, references: Tensor, team: Team
) -> list[dict[str, object]]:
    """One row a dataset: mean absolute and root mean square errors over all ranks' shares of the test set.

    composition: of the references alone, a linear model of composition fitted on the training set. mean: of the mean
    energy per atom of the training set. zero_force: of no forces. Structures with elements that the head's training set
    lacks are counted and left out: nothing is known of them. None where there is nothing to take a mean of.
    """
    rows = []
    for k, dataset in enumerate(test.datasets):
        mean = mean_energy(training.datasets[[d.head for d in training.datasets].index(dataset.head)], team)
        tally = Tally()
        mine = np.arange(team.place.rank, len(dataset.samples), team.place.size)
        for first in range(0, len(mine), BATCH):
            own = mine[first : first + BATCH]
            graphs = test.graphs(Drawn(np.full(len(own), k), own))
            kept = [g for g in graphs if dataset.references.knows(g.structure.numbers)]
            tally.add(unseen_elements=len(graphs) - len(kept))
            if kept:
                tally.add(**sums_of(model, kept, references, mean, team))
        own_sums = torch.tensor([tally.sums[name] for name in SUMS], dtype=torch.float64)
        total = dict(zip(SUMS, team.total(own_sums).tolist(), strict=True))
        rows.append(row(dataset, total))
    return rows


def sums_of(
    model: FoundationModel, graphs: Sequence[Graph], references: Tensor, mean: float, team: Team
) -> dict[str, float]:
    """The sums of SUMS over some structures of one head."""
    dtype = next(model.parameters()).dtype
    batch, labels = labelled(graphs, references, dtype, with_triplets=model.config.needs_triplets)
    batch = batch.to(team.device, dtype)
    energy, forces = predicted(model, batch)
    atoms = np.array([len(g.structure) for g in graphs], dtype=float)
    beyond = _numpy(labels.beyond) / atoms
    error = _numpy(energy) / atoms - beyond
    whole = np.array([g.structure.energy for g in graphs]) / atoms
    there = labels.known.squeeze(1).numpy() > 0
    wrong, right = (_numpy(forces) - _numpy(labels.forces))[there], _numpy(labels.forces)[there]
    return {
        "structures": len(graphs),
        "atoms": float(atoms.sum()),
        "energy_abs": float(np.abs(error).sum()),
        "energy_sq": float((error**2).sum()),
        "composition_abs": float(np.abs(beyond).sum()),
        "composition_sq": float((beyond**2).sum()),
        "mean_abs": float(np.abs(whole - mean).sum()),
        "components": wrong.size,
        "force_abs": float(np.abs(wrong).sum()),
        "force_sq": float((wrong**2).sum()),
        "zero_abs": float(np.abs(right).sum()),
        "zero_sq": float((right**2).sum()),
    }


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()


def row(dataset: Dataset, total: dict[str, float]) -> dict[str, object]:
    """The errors of one head as plain data."""

    def mean(name: str, over: str, root: bool = False) -> float | None:
        if not total[over]:
            return None
        value = total[name] / total[over]
        return value**0.5 if root else value

    return {
        "head": HEADS[dataset.head],
        "set": dataset.name,
        "role": dataset.role,
        "level": dataset.level,
        **{name: int(total[name]) for name in ("structures", "atoms", "unseen_elements")},
        "energy_mae_ev_per_atom": mean("energy_abs", "structures"),
        "energy_rmse_ev_per_atom": mean("energy_sq", "structures", root=True),
        "composition_mae_ev_per_atom": mean("composition_abs", "structures"),
        "composition_rmse_ev_per_atom": mean("composition_sq", "structures", root=True),
        "mean_mae_ev_per_atom": mean("mean_abs", "structures"),
        "force_mae_ev_per_a": mean("force_abs", "components"),
        "force_rmse_ev_per_a": mean("force_sq", "components", root=True),
        "zero_force_mae_ev_per_a": mean("zero_abs", "components"),
        "zero_force_rmse_ev_per_a": mean("zero_sq", "components", root=True),
    }
