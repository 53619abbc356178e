"""Backpropagation gives the gradients of all parameters, and none of positions."""

from __future__ import annotations

import torch
from torch import nn

from harness.reference.training.loss import backpropagate


def test_only_parameters_that_are_trained_have_gradients() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)).double()
    module[2].bias.requires_grad_(False)
    positions = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def compute_loss() -> torch.Tensor:
        energy = module(positions).sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
        return energy.square() + forces.square().sum()

    trained = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(compute_loss(), trained)
    backpropagate(compute_loss(), module)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(trained, expected, strict=True) if p.grad is not None)
    assert all(p.grad is not None for p in trained)
    assert module[2].bias.grad is None
    assert positions.grad is None
