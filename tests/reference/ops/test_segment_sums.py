"""Gathers and sums of groups of rows match PyTorch's, with derivatives, and do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from harness.reference.ops import segment_sums
from harness.reference.ops.segment_sums import (
    Grouping,
    gather,
    gather_product,
    group_rows,
    pair_edges,
    product_sum,
    segment_sum,
)

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}
Operator = Callable[..., Tensor]
all_dims = pytest.mark.parametrize("dim", [0, 1])


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    assert segment_sums.load() is None


def draw_groups(rows: int, groups: int, seed: int = 0) -> Grouping:
    """Return unsorted groups; the last third of them is empty."""
    generator = torch.Generator().manual_seed(seed)
    return group_rows(torch.randint(max(1, 2 * groups // 3), (rows,), generator=generator), groups)


def share_rows(a: Grouping) -> Grouping:
    """Return groups of which two edges share each."""
    edges = a.group.numel()
    return group_rows(torch.arange(edges) // 2, (edges + 1) // 2)


def sum_rows(x: Tensor, rows: Grouping, dim: int) -> Tensor:
    """Compute `segment_sum` by PyTorch's functions."""
    shape = list(x.shape)
    shape[dim] = rows.start.numel() - 1
    return x.new_zeros(shape).index_add(dim, rows.group, x)


def list_operators(a: Grouping, b: Grouping, dim: int) -> list[tuple[Operator, Operator, tuple[str, str]]]:
    """Return each operator, the same by PyTorch's functions, and the kinds of rows of its arguments."""
    return [
        (lambda x, _: gather(x, a, dim), lambda x, _: x.index_select(dim, a.group), ("a", "a")),
        (lambda x, _: segment_sum(x, a, dim), lambda x, _: sum_rows(x, a, dim), ("edge", "edge")),
        (
            lambda x, w: product_sum(x, w, a, b, dim),
            lambda x, w: sum_rows(x.index_select(dim, a.group) * w, b, dim),
            ("a", "edge"),
        ),
        (
            lambda x, w: product_sum(x, w, a, b, dim, weight_rows=share_rows(a)),
            lambda x, w: sum_rows(x.index_select(dim, a.group) * w.index_select(dim, share_rows(a).group), b, dim),
            ("a", "weight"),
        ),
        (
            lambda x, y: gather_product(x, y, a, b, dim),
            lambda x, y: x.index_select(dim, a.group) * y.index_select(dim, b.group),
            ("a", "b"),
        ),
    ]


def draw(kind: str, a: Grouping, b: Grouping, dim: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return random rows of a kind; with dim = 1, they are in two batches."""
    edges = a.group.numel()
    rows = {"a": a.start.numel() - 1, "b": b.start.numel() - 1, "edge": edges, "weight": (edges + 1) // 2}[kind]
    shape = (rows, width) if dim == 0 else (2, rows, width)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(rows)).requires_grad_()


@all_dims
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("edges", "width"), [(300, 5), (2000, 300), (0, 4)])
def test_values_match_those_of_pytorch(edges: int, width: int, dtype: torch.dtype, dim: int) -> None:
    a, b = draw_groups(edges, 40), draw_groups(edges, 70, seed=1)
    for operator, reference, kinds in list_operators(a, b, dim):
        inputs = [draw(kind, a, b, dim, width, dtype) for kind in kinds]
        got, expected = operator(*inputs), reference(*(x.double() for x in inputs))
        assert got.dtype == dtype
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        assert torch.allclose(got.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@all_dims
def test_first_and_second_derivatives_match_finite_differences(dim: int) -> None:
    a, b = draw_groups(9, 4), draw_groups(9, 5, seed=1)
    for operator, _, kinds in list_operators(a, b, dim):
        inputs = [draw(kind, a, b, dim, 2, torch.float64) for kind in kinds]
        assert gradcheck(operator, inputs)
        assert gradgradcheck(operator, inputs)


def test_functions_without_cpp_give_the_values_of_the_operators() -> None:
    a, b = draw_groups(30, 6), draw_groups(30, 4, seed=1)
    x, y, w = (draw(kind, a, b, 1, 3, torch.float64) for kind in ("a", "b", "edge"))
    for name, inputs in (
        ("gather", (x, *a)), ("segment_sum", (w, *a)), ("product_sum", (x, w, *a, *b, [])),
        ("gather_product", (x, y, *a, *b)), ("product_sum", (x, w, *a, *b, [*group_rows(torch.arange(30), 30)])),
    ):  # fmt: skip
        default = getattr(segment_sums, f"_{name}_default")
        operator = getattr(torch.ops.gfm_harness, name)
        assert torch.allclose(default(*inputs, 1), operator(*inputs, 1), rtol=1e-14)
    order, start = segment_sums._group_rows_default(a.group, 6)
    assert torch.equal(order, a.order)
    assert torch.equal(start, a.start)


def test_compilers_see_the_types_of_groups() -> None:
    """Positions are int64 for an index of any type."""
    index = torch.tensor([1, 0], dtype=torch.int32)
    computed, allocated = segment_sums._group_rows_default(index, 2), segment_sums._allocate_group_rows(index, 2)
    assert [(x.dtype, x.shape) for x in computed] == [(x.dtype, x.shape) for x in allocated]


def test_groups_are_sorted_and_stable() -> None:
    rows = group_rows(torch.tensor([2, 0, 2, 0, 4]), 5)
    assert rows.order.tolist() == [1, 3, 0, 2, 4]
    assert rows.start.tolist() == [0, 2, 2, 4, 4, 5]


def test_edges_with_opposite_shifts_are_pairs() -> None:
    """Atoms 0 and 1 have two bonds, of which one has no reverse; atom 2 is bonded to its own image."""
    receiver, sender = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([1, 1, 0, 0, 2, 2])
    shift = torch.zeros(6, 3)
    shift[:, 0] = torch.tensor([0.0, 3.0, -3.0, 0.0, 3.0, -3.0])
    pairs = pair_edges(group_rows(receiver, 3), group_rows(sender, 3), shift)
    assert pairs is not None
    assert pairs[0].group.tolist() == [0, 1, 1, 2, 3, 3]
    assert pairs[1].group.tolist() == [0, 1, 3, 4]
    assert torch.compile(pair_edges, backend="eager")(group_rows(receiver, 3), group_rows(sender, 3), shift) is None


def test_views_have_the_values_of_their_copies() -> None:
    a, b = draw_groups(50, 9), draw_groups(50, 7, seed=1)
    x, w = torch.randn(6, 9).T, torch.randn(50, 12)[:, ::2]
    assert torch.equal(product_sum(x, w, a, b), product_sum(x.contiguous(), w.contiguous(), a, b))
    assert torch.equal(segment_sum(w, a), segment_sum(w.contiguous(), a))
    assert torch.equal(gather_product(x, x, a, a), gather(x, a) ** 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sums_are_bitwise_equal_on_any_number_of_threads(dtype: torch.dtype, restored_threads: None) -> None:
    a, b = draw_groups(4000, 90), draw_groups(4000, 70, seed=1)
    x, w = draw("a", a, b, 0, 67, dtype), draw("edge", a, b, 0, 67, dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((segment_sum(w, a), product_sum(x, w, a, b), *torch.autograd.grad(
            product_sum(x, w, a, b).square().sum(), (x, w))))  # fmt: skip
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_operators_are_registered_correctly() -> None:
    a, b = draw_groups(20, 5), draw_groups(20, 6, seed=1)
    x, y, w = (draw(kind, a, b, 0, 3, torch.float64) for kind in ("a", "b", "edge"))
    operators = torch.ops.gfm_harness
    library.opcheck(operators.group_rows.default, (a.group, 5))
    library.opcheck(operators.gather.default, (x, *a, 0))
    library.opcheck(operators.segment_sum.default, (w, *a, 0))
    library.opcheck(operators.product_sum.default, (x, w, *a, *b, [], 0))
    library.opcheck(operators.product_sum.default, (x, w[:10], *a, *b, [*share_rows(a)], 0))
    library.opcheck(operators.gather_product.default, (x, y, *a, *b, 0))


@pytest.mark.parametrize("index", [[0, 5], [-1, 0]])
def test_groups_out_of_range_are_refused(index: list[int]) -> None:
    with pytest.raises(IndexError, match="belongs to group"):
        group_rows(torch.tensor(index), 5)


def test_arguments_that_do_not_match_are_refused() -> None:
    a, b = draw_groups(20, 5), draw_groups(21, 6, seed=1)
    x, w = torch.randn(5, 3), torch.randn(20, 3)
    with pytest.raises(ValueError, match="x has 19 rows, not 20"):
        segment_sum(w[1:], a)
    with pytest.raises(ValueError, match="numbers of rows differ"):
        product_sum(x, w, a, b)
    with pytest.raises(ValueError, match="numbers of rows differ"):
        product_sum(x, w, a, a, weight_rows=share_rows(a))
    with pytest.raises(ValueError, match="does not fit"):
        product_sum(x[:, 1:], w, a, a)
    assert gather_product(x, x.double(), a, a).dtype == torch.float64
    with pytest.raises(ValueError, match="no dimension"):
        gather_product(x, x, a, a, 2)


def compute_curvature(x: Tensor, w: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
    """Return second derivatives of a function that uses every operator."""
    a, b = group_rows(senders, x.shape[0]), group_rows(receivers, x.shape[0])
    x = x.detach().requires_grad_()
    y = product_sum(x.sin(), w, a, b) + segment_sum(gather(x, a) * gather_product(x, x, a, b), b)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)[0]


def test_compiled_code_contains_no_scattered_additions() -> None:
    """Gathers become loads, which compilers fuse; sums remain operators, also in derivatives."""
    graphs: list[str] = []

    def record(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.code)
        return module

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=record, bw_compiler=record)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(compute_curvature, fullgraph=True, dynamic=True, backend=backend)
        for atoms, edges in ((7, 30), (9, 50)):
            index = torch.randint(atoms, (2, edges))
            x, w = torch.randn(atoms, 3, dtype=torch.float64), torch.randn(edges, 3, dtype=torch.float64)
            assert torch.allclose(compiled(x, w, *index), compute_curvature(x, w, *index), rtol=1e-12)
    code = "".join(graphs)
    assert len(graphs) == 1
    assert "index_add" not in code
    assert "index_put" not in code
    assert "scatter" not in code
    assert "gfm_harness.product_sum" in code
    assert "gfm_harness.segment_sum" in code
    assert "gfm_harness.gather" not in code
    assert "aten.index" in code
