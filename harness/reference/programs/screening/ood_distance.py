"""How far a structure is from what the model was trained on, and how well that tells strange structures from others.

The distance is Mahalanobis' of the pooled embedding per atom, its covariance shrunk towards a multiple of one. Sources:
Lee, Lee, Lee and Shin, NeurIPS 2018; Ledoit and Wolf, J. Multivariate Anal. 88, 365 (2004), as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from harness.reference.data.batch import collate
from harness.reference.data.neighbours import neighbour_graph
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.collection import parted
from harness.reference.datasets.random_structures import random_structures
from harness.reference.datasets.shipped_sets import MINI_SETS
from harness.reference.datasets.splitting.splits import SEED, SPLITS
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.scoring import Familiar

BATCH = 32
STRAIN = 0.3  # angstrom, of every coordinate


@dataclass(frozen=True)
class Calibration:
    """threshold: of the distance, above which a structure is flagged; share: of the structures it was set on, held out
    of training, that it flags. false_alarms: of others, held out too. detected: of strange ones, by kind."""

    threshold: float
    share: float
    false_alarms: float
    calibrated_on: int
    tested_on: int
    detected: dict[str, float]


def embedded(model: FoundationModel, structures: Sequence[Structure]) -> Array:
    """Pooled features per atom, [s, F]."""
    weight = next(model.parameters())
    rows = []
    for first in range(0, len(structures), BATCH):
        limits = model.config.cutoff, model.config.max_neighbours
        some = structures[first : first + BATCH]
        graphs = [neighbour_graph(s, cutoff=limits[0], max_neighbours=limits[1]) for s in some]
        batch = collate(graphs, with_triplets=model.config.needs_triplets).to(weight.device, weight.dtype)
        with torch.no_grad():
            pooled = model.encode(batch, batch.positions, batch.shift) / batch.atoms.unsqueeze(-1)
        rows.append(pooled.double().cpu().numpy())
    return np.concatenate(rows)


def familiar(embedding: Array) -> Familiar:
    """The distance from these embeddings, [s, F]."""
    if len(embedding) < 2:
        raise InputError(f"{len(embedding)} training structures: too few to tell what is familiar")
    found = LedoitWolf().fit(embedding)
    values, vectors = np.linalg.eigh(found.covariance_)
    whitening = vectors / np.sqrt(np.maximum(values, values.max() * 1e-12))
    return Familiar(torch.from_numpy(found.location_), torch.from_numpy(whitening))


def calibrated(known: Array, test: Array, strange: dict[str, Array], false_alarm: float) -> Calibration:
    """The threshold that this share of `known` distances lies above, and what it does on others.

    known, test: distances of structures held out of training, of different materials and molecules. strange: by kind.
    """
    threshold = float(np.quantile(known, 1.0 - false_alarm))
    return Calibration(
        threshold,
        float((known > threshold).mean()),
        float((test > threshold).mean()),
        len(known),
        len(test),
        {kind: float((distances > threshold).mean()) for kind, distances in strange.items()},
    )


def training_structures(split: int, limit: int) -> dict[str, list[Structure]]:
    """Of each shipped set the first `limit` structures of a split: 0 training, 1 validation, 2 test."""
    found = {}
    for entry in MINI_SETS:
        part = parted(entry.name, held_out=0.1, seed=SEED)[SPLITS[split]]
        records = part.samples.get(np.arange(min(limit, len(part.samples))))
        found[entry.name] = [
            Structure(
                name=f"{entry.name}/{k}",
                numbers=r["atomic_numbers"][:, 0].astype(np.int64),
                positions=r["pos"],
                cell=r["cell"],
                periodic=tuple((r["pbc"] != 0).tolist()),
                charge=int(r["graph_attr"][0]),
                multiplicity=int(r["graph_attr"][1]),
            )
            for k, r in enumerate(records)
        ]
    return found


def strange_structures(known: Sequence[Structure], count: int, seed: int) -> dict[str, list[Structure]]:
    """Structures that no dataset holds: atoms at random in a box, and known ones with every atom displaced."""
    rng = np.random.default_rng(seed)
    picked = [known[k] for k in rng.permutation(len(known))[:count]]
    shaken = [
        Structure(
            name=f"{s.name}/shaken",
            numbers=s.numbers,
            positions=s.positions + STRAIN * rng.standard_normal(s.positions.shape),
            cell=s.cell,
            periodic=s.periodic,
        )
        for s in picked
    ]
    return {"random box": random_structures(count, atoms=(2, 60)), f"displaced by {STRAIN} angstrom": shaken}
