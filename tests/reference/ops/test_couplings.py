"""Couplings of neighbours match PyTorch's functions, with derivatives, and do not depend on the number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from harness.reference.ops import couplings, segment_sums
from harness.reference.ops.couplings import couple_neighbours
from harness.reference.ops.segment_sums import Grouping, group_rows

# (edges, components, features)
SIZES = [(20, 1, 5), (50, 4, 16), (40, 9, 35), (8, 16, 3), (30, 7, 9)]
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Grouping, Grouping]


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    assert segment_sums.load() is None


def draw_inputs(edges: int, components: int, features: int, dtype: torch.dtype = torch.float64) -> Inputs:
    """Return random couplings, features and weights on unsorted edges; some atoms have no edge."""
    generator = torch.Generator().manual_seed(edges)
    rows, paths, senders, receivers = 6, 3, 7, 9

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()

    def group(size: int, groups: int) -> Grouping:
        return group_rows(torch.randint(groups, (size,), generator=generator), groups)

    return (
        draw(edges, rows, components), draw(senders, components, features), draw(edges, paths, features),
        group(rows, paths).group, group(edges, senders), group(edges, receivers),
    )  # fmt: skip


def sum_products(
    coupling: Tensor, features: Tensor, weights: Tensor | None, paths: Tensor, senders: Grouping, receivers: Grouping
) -> Tensor:
    """Compute `couple_neighbours` by tensors of edges, rows and features."""
    factors = torch.ones_like(coupling[:, :, :1]) if weights is None else weights[:, paths]
    terms = (coupling @ features[senders.group]) * factors
    return terms.new_zeros(receivers.start.numel() - 1, *terms.shape[1:]).index_add(0, receivers.group, terms)


def compute_two_orders(function: object, inputs: Inputs) -> list[Tensor]:
    """Return the values, the gradients, and the gradients of the squared gradients."""
    assert callable(function)
    values = function(*inputs)
    first = torch.autograd.grad(values.sin().sum(), inputs[:3], create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), inputs[:3])
    return [values, *first, *second]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("edges", "components", "features"), SIZES)
def test_values_and_derivatives_match_those_of_pytorch(
    edges: int, components: int, features: int, dtype: torch.dtype
) -> None:
    inputs = draw_inputs(edges, components, features, dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    results = (compute_two_orders(function, inputs) for function in (couple_neighbours, sum_products))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.allclose(got, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


def test_weights_may_be_absent() -> None:
    k, h, _, paths, senders, receivers = draw_inputs(30, 7, 20)
    paths = torch.zeros_like(paths)

    def compute(function: object) -> list[Tensor]:
        assert callable(function)
        values = function(k, h, None, paths, senders, receivers)
        first = torch.autograd.grad(values.sin().sum(), (k, h), create_graph=True)
        return [values, *first, *torch.autograd.grad(sum(x.square().sum() for x in first), (k, h))]

    for got, expected in zip(compute(couple_neighbours), compute(sum_products), strict=True):
        assert torch.allclose(got, expected, rtol=1e-11, atol=1e-11)
    (slope,) = torch.autograd.grad(couple_neighbours(k, h, None, paths, senders, receivers).sum(), k)
    default = couplings.COUPLING.defaults["k"](torch.ones(9, 6, 20).double(), h, None, 1, [paths, *senders, *receivers])
    assert torch.allclose(default, slope, rtol=1e-11, atol=1e-11)


def test_derivatives_match_finite_differences() -> None:
    *tensors, paths, senders, receivers = draw_inputs(9, 4, 2)

    def couple(*x: Tensor) -> Tensor:
        return couple_neighbours(*x, paths, senders, receivers)

    assert gradcheck(couple, tensors)
    assert gradgradcheck(couple, tensors)


def test_atoms_without_edges_receive_zeros() -> None:
    received = couple_neighbours(*draw_inputs(0, 4, 8))
    assert received.shape == (9, 6, 8)
    assert not received.any()


def test_functions_without_cpp_give_the_values_of_the_operators() -> None:
    k, h, w, paths, senders, receivers = draw_inputs(20, 4, 8)
    g, ends = couple_neighbours(k, h, w, paths, senders, receivers), [paths, *senders, *receivers]
    values = {"g": g, "k": k, "h": h, "w": w}
    for argument, name in couplings.COUPLING.operators.items():
        others = [x for y, x in values.items() if y != argument]
        expected = getattr(torch.ops.gfm_harness, name)(*others, 3, ends)
        assert torch.allclose(couplings.COUPLING.defaults[argument](*others, 3, ends), expected, rtol=1e-12)


def test_sums_are_bitwise_equal_on_any_number_of_threads() -> None:
    inputs, before = draw_inputs(3000, 4, 24, torch.float32), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compute_two_orders(couple_neighbours, inputs)[:4])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_operators_are_registered_correctly() -> None:
    k, h, w, paths, senders, receivers = draw_inputs(20, 4, 8)
    g, ends = torch.randn(9, 6, 8, dtype=torch.float64, requires_grad=True), [paths, *senders, *receivers]
    operators = torch.ops.gfm_harness
    library.opcheck(operators.couple_receivers.default, (k, h, w, 3, ends))
    library.opcheck(operators.couple_edges.default, (g, h, w, 3, ends))
    library.opcheck(operators.couple_senders.default, (g, k, w, 3, ends))
    library.opcheck(operators.couple_weights.default, (g, k, h, 3, ends))


def test_arguments_that_do_not_match_are_refused() -> None:
    k, h, w, paths, senders, receivers = draw_inputs(20, 4, 8)
    with pytest.raises(ValueError, match="h is"):
        couple_neighbours(k, h[1:], w, paths, senders, receivers)
    with pytest.raises(TypeError, match="types differ"):
        couple_neighbours(k, h.float(), w, paths, senders, receivers)
    with pytest.raises(ValueError, match="65 components"):
        couple_neighbours(k.repeat(1, 1, 17)[..., :65], h.repeat(1, 17, 1)[:, :65], w, paths, senders, receivers)
