"""The operators of smooth options equal their definitions in plain PyTorch, and so do their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.models.adaptive_cutoff import compute_adaptive_scales
from harness.reference.models.repulsion import Repulsion
from harness.reference.ops import messages
from harness.reference.ops.bounded_features import bound_features
from harness.reference.ops.segment_sums import group_rows
from tests.reference.models.test_smooth_painn import make_dimers

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
    r, atoms = torch.linspace(0.1, 2.0, 60, dtype=torch.float64).unsqueeze(1), torch.rand(3, 3, dtype=torch.float64)
    constants = (0.4, 0.7, [1.0], [2.0], 0)
    torch.library.opcheck(
        torch.ops.gfm_harness.repel_pairs.default, (r.requires_grad_(), atoms, receiver, receiver, *constants)
    )
    torch.library.opcheck(torch.ops.gfm_harness.solve_scales.default, (cubes, receiver, 5.0, 3, 3))


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
        torch.ops.gfm_harness.solve_scales(cubes[:1], torch.tensor([8]), 14.0, 3, 8)


def make_pairs() -> tuple[Tensor, Batch]:
    """Return distances [e, 1] from contact to beyond the end of the repulsion, and the batch of these atoms."""
    fractions = torch.linspace(0.05, 0.8, 12, dtype=torch.float64)
    numbers = np.array([[1, 1], [6, 29], [92, 8]]).repeat(4, axis=0)
    r = fractions * torch.from_numpy(COVALENT_RADII[numbers].sum(1))
    return r.repeat_interleave(2).unsqueeze(1), make_dimers(numbers, r.numpy())


def test_the_repulsion_of_pairs_is_that_of_the_definition_with_two_derivatives() -> None:
    repulsion, (r, batch) = Repulsion(0.4, 0.7), make_pairs()

    def repel(r: Tensor) -> tuple[Tensor, Tensor]:
        energy, switch = repulsion(r, batch, fused=True)
        return energy / repulsion(reference, batch)[0].clamp(min=1.0), switch

    reference = r.clone()
    for fused, expected in zip(repulsion(r, batch, fused=True), repulsion(r, batch), strict=True):
        assert torch.allclose(fused, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(fused[-2:], expected[-2:])
    single = repulsion(r.float(), batch, fused=True)[0]
    assert torch.allclose(single.double(), repulsion(r, batch)[0], rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(repel, r.requires_grad_())
    assert torch.autograd.gradgradcheck(repel, r, atol=1e-4)
