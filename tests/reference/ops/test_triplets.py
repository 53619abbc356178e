"""Sums over pairs of edges match PyTorch's functions, with derivatives, and do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import flop_registry

from harness.reference.data.neighbours import NeighbourList, build_neighbour_list, find_triplets
from harness.reference.ops import segment_sums
from harness.reference.ops.segment_sums import group_rows
from harness.reference.ops.triplets import TRIPLET_SUM, Triplets, sum_triplets
from harness.reference.profiling import flops
from tests.reference.conftest import make_crystal, make_molecule

# (orders, functions, channels)
SIZES = [(7, 6, 64), (4, 3, 5), (5, 12, 40), (1, 1, 1), (9, 2, 17)]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Triplets]


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    assert segment_sums.load() is None


def group_triplets(neighbours: NeighbourList) -> Triplets:
    incoming, outgoing = (torch.from_numpy(x) for x in find_triplets(neighbours))
    edges, atoms = len(neighbours.receiver), len(neighbours.structure)
    receivers = group_rows(torch.from_numpy(neighbours.receiver), atoms)
    return Triplets(group_rows(incoming, edges), group_rows(outgoing, edges), receivers)


def draw_inputs(
    orders: int, functions: int, channels: int, dtype: torch.dtype = torch.float64, *, atoms: int = 5
) -> Inputs:
    """Return random factors for the pairs of edges of a molecule."""
    triplets = group_triplets(build_neighbour_list(make_molecule(atoms), cutoff=4.0))
    pairs, edges = triplets.incoming.group.numel(), triplets.receivers.group.numel()
    generator = torch.Generator().manual_seed(orders)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()

    return (
        draw(pairs, orders), draw(edges, orders, functions), draw(orders, functions, channels), draw(edges, channels),
        triplets,
    )  # fmt: skip


def sum_products(angular: Tensor, radial: Tensor, weight: Tensor, messages: Tensor, triplets: Triplets) -> Tensor:
    """Compute `sum_triplets` by tensors of pairs and channels."""
    basis = angular.unsqueeze(2) * radial[triplets.incoming.group]
    terms = torch.einsum("tln,lnc->tc", basis, weight) * messages[triplets.incoming.group]
    return torch.zeros_like(messages).index_add(0, triplets.outgoing.group, terms)


def compute_two_orders(function: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """Return the values, the gradients, and the gradients of the squared gradients."""
    values = function(*inputs)
    first = torch.autograd.grad(values.sin().sum(), inputs[:4], create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), inputs[:4])
    return [values, *first, *second]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_derivatives_match_those_of_pytorch(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    inputs = draw_inputs(*sizes, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    results = (compute_two_orders(function, inputs) for function in (sum_triplets, sum_products))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.allclose(got, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


def test_derivatives_match_finite_differences() -> None:
    *tensors, triplets = draw_inputs(2, 2, 3, atoms=3)

    def compute(*x: Tensor) -> Tensor:
        return sum_triplets(*x, triplets)

    assert gradcheck(compute, tensors)
    assert gradgradcheck(compute, tensors)


def test_functions_without_cpp_give_the_values_of_the_operators() -> None:
    *tensors, triplets = draw_inputs(4, 3, 8)
    ends = [*triplets.incoming, triplets.outgoing.group, *triplets.receivers]
    values = {"g": sum_triplets(*tensors, triplets), **dict(zip("pswd", tensors, strict=True))}
    for argument, name in TRIPLET_SUM.operators.items():
        others = [x for y, x in values.items() if y != argument]
        expected = getattr(torch.ops.gfm_harness, name)(*others, ends)
        assert expected.shape == values[argument].shape
        assert torch.allclose(TRIPLET_SUM.defaults[argument](*others, ends), expected, rtol=1e-11, atol=1e-11)
        library.opcheck(getattr(torch.ops.gfm_harness, name).default, (*(x.detach() for x in others), ends))


def test_sums_are_bitwise_equal_on_any_number_of_threads() -> None:
    inputs, before = draw_inputs(4, 3, 24, torch.float32, atoms=20), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compute_two_orders(sum_triplets, inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_edges_without_pairs_receive_zeros() -> None:
    *tensors, triplets = draw_inputs(3, 2, 4, atoms=2)
    assert triplets.incoming.group.numel() == 0
    assert not compute_two_orders(sum_triplets, (*tensors, triplets))[0].any()


def test_arguments_that_do_not_match_are_refused() -> None:
    angular, radial, weight, messages, triplets = draw_inputs(3, 2, 4)
    with pytest.raises(ValueError, match="d is"):
        sum_triplets(angular, radial, weight, messages[1:], triplets)
    with pytest.raises(ValueError, match="p is"):
        sum_triplets(angular[:, 1:], radial, weight, messages, triplets)


def test_operations_are_counted_by_loops() -> None:
    assert flops.count_work is not None  # the module registers the formulas
    *tensors, triplets = draw_inputs(3, 2, 4)
    pairs, edges = triplets.incoming.group.numel(), triplets.receivers.group.numel()
    values = {"g": tensors[3], **dict(zip("pswd", tensors, strict=True))}
    for argument, name in TRIPLET_SUM.operators.items():
        inputs = [x for y, x in values.items() if y != argument]
        count = flop_registry[getattr(torch.ops.gfm_harness, name)](*inputs, [], out_val=values[argument])
        assert count == 2 * 3 * 4 * (pairs + edges * (2 + 1)), name


@pytest.mark.parametrize("structure", [make_molecule(6), make_crystal(3)], ids=["molecule", "crystal"])
def test_pairs_share_an_atom_and_are_sorted_by_their_first_edge(structure: object) -> None:
    neighbours = build_neighbour_list(structure, cutoff=4.0)  # type: ignore[arg-type]
    receiver, sender, shift = neighbours.receiver, neighbours.sender, neighbours.shift
    incoming, outgoing = find_triplets(neighbours)
    edge = np.arange(len(receiver))
    first, second = (x.ravel() for x in np.meshgrid(edge, edge, indexing="ij"))
    is_reverse = (sender[first] == receiver[second]) & (np.abs(shift[first] + shift[second]).max(1) < 1e-6)
    is_pair = (receiver[first] == sender[second]) & ~is_reverse
    assert (np.diff(incoming) >= 0).all()
    assert sorted(zip(incoming, outgoing, strict=True)) == list(zip(first[is_pair], second[is_pair], strict=True))
