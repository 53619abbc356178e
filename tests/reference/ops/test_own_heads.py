"""Heads evaluated for their own structures alone give the energies, slopes and gradients of all heads evaluated."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from harness.reference.models.heads import Heads
from harness.reference.ops.own_heads import evaluate_own_heads

WIDTH, HEADS = 7, 5


def _make_heads(activation: Literal["relu", "silu"], hidden: tuple[int, ...]) -> Heads:
    torch.manual_seed(3)
    return Heads(HEADS, WIDTH, hidden, activation=activation).double()


def _evaluate_all(heads: Heads, head: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    output = heads(x).gather(1, head.unsqueeze(1)).squeeze(1)
    (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return output, slope


def _compute_loss(output: Tensor, slope: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 2.0, slope.numel(), dtype=slope.dtype).view_as(slope)
    return (output**3).sum() + (weights * slope.sin()).sum()


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("hidden", [(), (6,), (9, 4, 8)])
@pytest.mark.parametrize("head", [[0, 3, 3, 1, 4, 3, 0], [2], [1, 1]])
def test_loss_and_gradients_are_those_through_all_heads(
    activation: Literal["relu", "silu"], hidden: tuple[int, ...], head: list[int]
) -> None:
    heads, index = _make_heads(activation, hidden), torch.tensor(head)
    x = torch.randn(len(head), WIDTH, dtype=torch.float64, requires_grad=True)
    leaves = [x, *heads.parameters()]
    results = []
    for output, slope in (heads.forward_own(index, x), _evaluate_all(heads, index, x)):
        loss = _compute_loss(output, slope)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append(
            (output, slope, [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)])
        )
    (output, slope, gradients), (expected, expected_slope, expected_gradients) = results
    assert torch.allclose(output, expected, rtol=1e-13)
    assert torch.allclose(slope, expected_slope, rtol=1e-13)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-14)


def test_heads_without_structures_have_zero_gradients() -> None:
    heads = _make_heads("silu", (6,))
    output, slope = heads.forward_own(torch.tensor([1, 4]), torch.randn(2, WIDTH, dtype=torch.float64))
    _compute_loss(output, slope).backward()
    for parameter in heads.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[[0, 2, 3]].any()
    assert all(layer.weight.grad[[1, 4]].any() for layer in heads.layers)


@pytest.mark.parametrize("head", [-1, HEADS])
def test_a_structure_without_a_head_is_an_error(head: int) -> None:
    heads = _make_heads("silu", (6,))
    with pytest.raises(IndexError, match="no head"):
        heads.forward_own(torch.tensor([0, head]), torch.randn(2, WIDTH, dtype=torch.float64))


def test_the_operator_is_registered_correctly() -> None:
    heads = _make_heads("silu", (6, 4))
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    parameters = [p for layer in heads.layers for p in (layer.weight, layer.bias)]
    torch.library.opcheck(evaluate_own_heads, (x, torch.tensor([2, 0, 2]), parameters, "silu"))
