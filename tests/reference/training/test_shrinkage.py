"""Heads whose predictions do not hold on validation structures are shrunk, and good ones are left unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.batch import build_batch
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loss import Labels, MultiTaskLoss, predict_own_head
from harness.reference.training.shrinkage import FACTORS, find_best_factors


@pytest.mark.parametrize("truth", [0.01, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("repulsion", [None, "zbl"])
def test_the_factor_of_a_head_is_that_of_its_labels(truth: float, repulsion: str | None) -> None:
    """Labels are predictions with another scale, so that the best factor is known; that of other heads is 1."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_dim=8, num_conv_layers=2, dim_headlayers=8, repulsion=repulsion, max_neighbours=None)
    model = FoundationModel(config).double().eval().requires_grad_(False)
    structures = [replace(s, head=0) for s in make_random_structures(6, atoms=(3, 9))]
    batch = build_batch([config.neighbour_spec.build_list(s) for s in structures])
    scale = model.scale.clone()
    model.scale.mul_(truth)
    energy, forces = predict_own_head(model, batch, create_graph=False)
    model.scale.copy_(scale)
    labels = Labels(energy.detach(), forces.detach(), torch.ones(len(forces), 1, dtype=torch.float64))
    factors = find_best_factors(model, [(batch, labels)], MultiTaskLoss(1.0, 6))
    assert float(factors[0]) == pytest.approx(min(truth, 1.0))
    assert (factors[1:] == 1).all()
    assert torch.equal(model.scale, scale)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), truth=st.floats(-1.0, 1.0), repulsion=st.sampled_from([None, "zbl"]))
def test_forces_are_not_worse_than_zero_forces(seed: int, truth: float, repulsion: str | None) -> None:
    """Energies are exact, so that the loss alone asks for a factor of 1, however wrong the forces are."""
    torch.manual_seed(seed)
    config = ModelConfig(hidden_dim=8, num_conv_layers=2, dim_headlayers=8, repulsion=repulsion, max_neighbours=None)
    model = FoundationModel(config).double().eval().requires_grad_(False)
    structures = [replace(s, head=k % 2) for k, s in enumerate(make_random_structures(6, atoms=(3, 9)))]
    batch = build_batch([config.neighbour_spec.build_list(s) for s in structures])
    energy, forces = predict_own_head(model, batch, create_graph=False)
    true_forces = truth * forces + forces.abs().mean() * torch.randn_like(forces)
    labels = Labels(energy.detach(), true_forces, torch.ones_like(forces[:, :1]))
    factors = find_best_factors(model, [(batch, labels)], MultiTaskLoss(1e-3, 6))
    own_head = batch.head[batch.graph]
    model.scale.zero_()
    _, forces_without = predict_own_head(model, batch, create_graph=False)

    def compute_errors(factor: float, head: int) -> float:
        predicted = torch.lerp(forces_without, forces, factor)
        return float((predicted - labels.forces)[own_head == head].abs().mean())

    for head in (0, 1):
        zero = float(labels.forces[own_head == head].abs().mean())
        lowest = min(compute_errors(float(f), head) for f in FACTORS)
        assert compute_errors(float(factors[head]), head) <= max(zero, lowest) * (1 + 1e-12)
        if repulsion is None:
            # the guarantee that the comment at FACTORS derives
            excess = max(0.0, compute_errors(1.0, head) - zero)
            assert lowest <= zero + 1e-4 * excess + 1e-12


def test_scales_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(hidden_dim=8, num_conv_layers=2, dim_headlayers=8)
    model = FoundationModel(config).eval().requires_grad_(False)
    (structure,) = make_random_structures(1, atoms=(3, 4))
    batch = build_batch([config.neighbour_spec.build_list(replace(structure, head=0))])
    scale = model.scale.clone()

    def fail_without_scale(model: FoundationModel, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        if not model.scale.any():
            raise RuntimeError("out of memory")
        return torch.zeros(1), torch.zeros(len(batch.numbers), 3)

    monkeypatch.setattr("harness.reference.training.shrinkage.predict_own_head", fail_without_scale)
    labels = Labels(torch.zeros(1), torch.zeros(len(batch.numbers), 3), torch.ones(len(batch.numbers), 1))
    with pytest.raises(RuntimeError, match="out of memory"):
        find_best_factors(model, [(batch, labels)], MultiTaskLoss(1.0, 6))
    assert torch.equal(model.scale, scale)
