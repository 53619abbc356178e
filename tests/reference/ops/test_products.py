"""Products of matrices by the operator equal torch's for any shapes, strides and types, and so do their derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.reference.ops import messages
from harness.reference.ops.products import apply_linear, linear

SHAPES = [(1, 1, 1), (13, 5, 7), (14, 192, 32), (15, 193, 33), (140, 385, 17), (289, 31, 530), (3, 400, 1030)]


@pytest.fixture(autouse=True)
def _load_operators() -> Iterator[None]:
    messages.load(torch.device("cpu"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _make_matrix(rows: int, columns: int, dtype: torch.dtype, *, transposed: bool) -> Tensor:
    values = torch.randn(columns, rows, dtype=torch.float64).T if transposed else torch.randn(rows, columns).double()
    return values.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_equals_that_in_double_precision(
    shape: tuple[int, int, int], transposed: tuple[bool, bool], dtype: torch.dtype, tolerance: float
) -> None:
    rows, depth, columns = shape
    torch.manual_seed(rows)
    a = _make_matrix(rows, depth, dtype, transposed=transposed[0])
    b = _make_matrix(depth, columns, dtype, transposed=transposed[1])
    bias = torch.randn(columns, dtype=dtype)
    product = torch.ops.gfm_harness.multiply_add(a, b, bias)
    bound = a.double().abs() @ b.double().abs() + bias.double().abs()
    assert product.dtype == dtype
    assert bool(((product - (a.double() @ b.double() + bias)).abs() <= tolerance * bound).all())
    assert torch.equal(torch.ops.gfm_harness.multiply_add(a, b, torch.zeros_like(bias)),
                       torch.ops.gfm_harness.multiply_add(a, b, None))  # fmt: skip


def test_columns_of_a_wider_matrix_and_empty_matrices() -> None:
    wide = torch.randn(50, 90)
    part = wide[5:40, 3:70:2]
    assert torch.allclose(torch.ops.gfm_harness.multiply_add(part, wide[:34], None), part @ wide[:34], atol=1e-4)
    assert torch.ops.gfm_harness.multiply_add(wide[:0], wide.T, None).shape == (0, 50)
    assert not torch.ops.gfm_harness.multiply_add(wide[:, :0], wide.T[:0], None).any()


def test_product_does_not_depend_on_the_number_of_threads() -> None:
    a, b = torch.randn(301, 337), torch.randn(337, 674)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(torch.ops.gfm_harness.multiply_add(a, b, None))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("with_bias", [True, False])
def test_first_and_second_derivatives(with_bias: bool) -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = (x, weight) if bias is None else (x, weight, bias)

    def apply(*inputs: Tensor) -> Tensor:
        return linear(*inputs, fused=True)

    assert torch.equal(apply(*inputs).detach().round(decimals=12), functional.linear(*inputs).round(decimals=12))
    assert torch.autograd.gradcheck(apply, inputs)
    assert torch.autograd.gradgradcheck(apply, inputs)


def test_the_operator_is_registered_correctly() -> None:
    a, b, bias = (torch.randn(*shape, requires_grad=True) for shape in ((6, 4), (4, 3), (3,)))
    torch.library.opcheck(torch.ops.gfm_harness.multiply_add.default, (a, b, bias))
    torch.library.opcheck(torch.ops.gfm_harness.multiply_add.default, (a, b, None))


def test_hooks_of_a_layer_observe_it() -> None:
    layer, x, observed = nn.Linear(4, 3), torch.randn(5, 4), []
    expected = apply_linear(layer, x)
    layer.register_forward_hook(lambda _layer, _inputs, output: observed.append(output))
    assert torch.allclose(apply_linear(layer, x), expected, atol=1e-6)
    assert len(observed) == 1


def test_compilers_see_torch_products() -> None:
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    compiled = torch.compile(apply_linear, fullgraph=True, backend="eager")
    assert torch.equal(compiled(layer, x), functional.linear(x, layer.weight, layer.bias))
