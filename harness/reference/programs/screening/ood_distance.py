"""The distance of a structure from the training sets, calibrated to detect out-of-distribution (OOD) structures.

The distance is the Mahalanobis distance of the pooled embedding per atom, with a covariance that is shrunk towards the
identity. Sources: Lee, Lee, Lee and Shin, NeurIPS 2018; Ledoit and Wolf, J. Multivariate Anal. 88, 365 (2004), as in
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.collection import load_shipped_splits
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.datasets.splits import SEED, SPLITS
from harness.reference.distributed.group import ProcessGroup
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.scoring import MahalanobisDistance

BATCH = 32
DISPLACEMENT = 0.3  # angstrom, standard deviation of every coordinate


@dataclass(frozen=True)
class OodCalibration:
    """The calibration of the distance.

    Attributes:
        threshold: Distance above which a structure is flagged.
        flagged_fraction: Flagged fraction of the held-out structures from which the threshold is determined.
        false_alarms: Flagged fraction of other held-out structures.
        calibration_structures: Number of structures from which the threshold is determined.
        test_structures: Number of other held-out structures.
        detected: Flagged fraction of out-of-distribution structures, by kind.
    """

    threshold: float
    flagged_fraction: float
    false_alarms: float
    calibration_structures: int
    test_structures: int
    detected: dict[str, float]


def embed(model: FoundationModel, structures: Sequence[Structure]) -> Array:
    """Return the pooled features per atom of structures, [s, F]."""
    weight = next(model.parameters())
    rows = []
    for first in range(0, len(structures), BATCH):
        chunk = structures[first : first + BATCH]
        graphs = [model.config.neighbour_spec.build_list(s) for s in chunk]
        batch = build_batch(graphs, with_triplets=model.config.needs_triplets).to(weight.device, weight.dtype)
        with torch.no_grad():
            pooled = model.select_features(model.encode(batch, batch.positions, batch.shift))
        rows.append((pooled / batch.n_atoms.unsqueeze(-1)).double().cpu().numpy())
    return np.concatenate(rows)


def fit_distance(embedding: Array) -> MahalanobisDistance:
    """Fit the distance to embeddings [s, F] of training structures; raise InputError if there are fewer than two."""
    if len(embedding) < 2:
        raise InputError(f"{len(embedding)} training structures: expected at least 2 to fit a distance")
    from sklearn.covariance import LedoitWolf  # the import takes a second, and training seldom needs it

    fit = LedoitWolf().fit(embedding)
    values, vectors = np.linalg.eigh(fit.covariance_)
    whitening = vectors / np.sqrt(np.maximum(values, values.max() * 1e-12))
    return MahalanobisDistance(torch.from_numpy(fit.location_), torch.from_numpy(whitening))


def fit_training_distance(model: FoundationModel, limit: int, world: ProcessGroup) -> MahalanobisDistance:
    """Fit the distance from the training sets on rank 0, and send it to all ranks; collective.

    Args:
        model: The model on the CPU.
        limit: Maximum number of structures of each training set.
        world: The ranks.
    """
    fit = None
    if world.rank == 0:
        known = [s for structures in load_training_structures(0, limit).values() for s in structures]
        fit = fit_distance(embed(model, known))
    fit = world.broadcast_object(fit)
    assert fit is not None
    return fit


def calibrate(known: Array, test: Array, ood: dict[str, Array], false_alarm: float) -> OodCalibration:
    """Determine the threshold from known distances, and measure the flagged fraction of other structures.

    Args:
        known: Distances of held-out structures.
        test: Distances of held-out structures of other materials and molecules.
        ood: Distances of out-of-distribution structures, by kind.
        false_alarm: Share of the known distances above the threshold.
    """
    threshold = float(np.quantile(known, 1.0 - false_alarm))
    return OodCalibration(
        threshold=threshold,
        flagged_fraction=float((known > threshold).mean()),
        false_alarms=float((test > threshold).mean()),
        calibration_structures=len(known),
        test_structures=len(test),
        detected={kind: float((distances > threshold).mean()) for kind, distances in ood.items()},
    )


def load_training_structures(split: int, limit: int) -> dict[str, list[Structure]]:
    """Return the first structures of a split of each shipped set.

    Args:
        split: 0 for training, 1 for validation, 2 for test.
        limit: Number of structures of each set.
    """
    structures = {}
    for entry in SHIPPED_SETS:
        part = load_shipped_splits(entry.name, test_fraction=0.1, seed=SEED)[SPLITS[split]]
        records = part.samples.get(np.arange(min(limit, len(part.samples))))
        structures[entry.name] = [
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
    return structures


def make_ood_structures(known: Sequence[Structure], count: int, seed: int) -> dict[str, list[Structure]]:
    """Return structures that no dataset contains: random atoms in a box, and known structures with displaced atoms."""
    rng = np.random.default_rng(seed)
    selected = [known[k] for k in rng.permutation(len(known))[:count]]
    displaced = [
        Structure(
            name=f"{s.name}/shaken",
            numbers=s.numbers,
            positions=s.positions + DISPLACEMENT * rng.standard_normal(s.positions.shape),
            cell=s.cell,
            periodic=s.periodic,
        )
        for s in selected
    ]
    return {
        "random box": make_random_structures(count, atoms=(2, 60)),
        f"displaced by {DISPLACEMENT} angstrom": displaced,
    }
