"""The operators of smooth options equal their definitions in plain PyTorch, and so do their derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.reference.models.adaptive_cutoff import compute_adaptive_scales
from harness.reference.ops import messages
from harness.reference.ops.bounded_features import bound_features
from harness.reference.ops.segment_sums import group_rows

SHAPES = [(4, 5), (3, 4, 5), (3, 1, 1), (2, 37), (0, 8)]


@pytest.fixture(autouse=True)
def _load_operators() -> None:
    messages.load(torch.device("cpu"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_bounded_features_are_those_of_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(shape, dtype=dtype)
    assert torch.allclose(bound_features(x, fused=True), bound_features(x), rtol=tolerance)
    assert torch.allclose(bound_features(1e6 * x, fused=True), bound_features(1e6 * x), rtol=tolerance)
    assert torch.equal(bound_features(x.mT.contiguous().mT, fused=True), bound_features(x, fused=True))


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 4)])
def test_derivatives_of_bounded_features(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def bound(x: Tensor) -> Tensor:
        return bound_features(x, fused=True)

    assert torch.autograd.gradcheck(bound, x)
    assert torch.autograd.gradgradcheck(bound, x)


def test_the_operators_are_registered_correctly() -> None:
    x = torch.randn(3, 4, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.gfm_harness.bound_features.default, (x,))
    torch.library.opcheck(torch.ops.gfm_harness.bound_features_backward.default, (torch.ones_like(x), x))
    cubes = torch.linspace(0.01, 1.1, 60, dtype=torch.float64, requires_grad=True)
    receiver = torch.arange(60) % 3
    torch.library.opcheck(torch.ops.gfm_harness.solve_scales.default, (cubes, receiver, 5.0, 3.0, 3))


def test_scales_do_not_depend_on_the_order_of_edges_and_match_the_unfused_solution() -> None:
    torch.manual_seed(0)
    cubes, receiver = torch.rand(500, dtype=torch.float64), torch.randint(0, 7, (500,))
    receivers = group_rows(receiver, 8)
    scale = compute_adaptive_scales(cubes, receivers, 14.0, fused=True)
    order = torch.randperm(500)
    shuffled = compute_adaptive_scales(cubes[order], group_rows(receiver[order], 8), 14.0, fused=True)
    assert torch.allclose(shuffled, scale, rtol=1e-14)
    assert torch.allclose(compute_adaptive_scales(cubes, receivers, 14.0), scale, rtol=1e-12)
    assert float(scale[7]) == 1.0
    with pytest.raises(IndexError, match="edge 0 ends at atom"):
        torch.ops.gfm_harness.solve_scales(cubes[:1], torch.tensor([8]), 14.0, 3.0, 8)
