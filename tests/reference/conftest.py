"""Small models and structures for the tests of the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import Prediction, batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

SMALL = ModelConfig(hidden_dim=16, num_conv_layers=3, cutoff=4.0, dim_sharedlayers=8, dim_headlayers=12)


def make_model(config: ModelConfig = SMALL, seed: int = 0) -> FoundationModel:
    torch.manual_seed(seed)
    model = FoundationModel(config).double()
    model.reference_energy.normal_()
    model.scale.uniform_(0.5, 2.0)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def model() -> FoundationModel:
    return make_model()


def make_molecule(n: int = 9, seed: int = 0) -> Structure:
    """Return atoms at least 0.8 angstrom apart in a small box."""
    rng = np.random.default_rng(seed)
    positions: list[np.ndarray] = []
    while len(positions) < n:
        p = rng.uniform(0, 4.5, 3)
        if all(np.linalg.norm(p - q) > 0.8 for q in positions):
            positions.append(p)
    return Structure(f"molecule-{seed}", rng.integers(1, 20, n), np.array(positions))


def make_crystal(n: int = 4, seed: int = 1) -> Structure:
    """Return a skewed cell narrower than twice the cutoff, so that atoms are neighbours of their own images."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.6, 4.2]) + rng.normal(0, 0.3, (3, 3))
    return Structure(
        f"crystal-{seed}", rng.integers(1, 20, n), rng.uniform(0, 1, (n, 3)) @ cell, cell, (True, True, True)
    )


def make_batch(structures: list[Structure], config: ModelConfig = SMALL) -> Batch:
    return build_batch(
        [build_neighbour_list(s, cutoff=config.cutoff, max_neighbours=config.max_neighbours) for s in structures]
    )


def ignore_progress(count: int, total: int, activity: str) -> None:
    """Report no progress."""


def predict(model: FoundationModel, structures: list[Structure]) -> Prediction:
    batch = make_batch(structures, model.config)
    return batched_heads(model, batch, model.gate(batch.composition))
