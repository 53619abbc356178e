"""Activations and their derivatives match PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from harness.reference.ops import segment_sums
from harness.reference.ops.activations import silu


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    assert segment_sums.load() is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_derivatives_up_to_the_third_match_pytorch(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-100, 100, 333), torch.linspace(-3, 3, 100)]).to(dtype).view(-1, 1)
    results: list[list[Tensor]] = []
    for function in (silu, functional.silu):
        inputs = x.clone().requires_grad_()
        values = [function(inputs)]
        for _ in range(3):
            values += torch.autograd.grad(values[-1].sum(), inputs, create_graph=True)
        results.append(values)
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.allclose(got, expected, rtol=0, atol=tolerance * max(1.0, float(expected.detach().abs().max())))


def test_derivatives_match_finite_differences() -> None:
    x = torch.linspace(-4, 4, 9, dtype=torch.float64).view(3, 3).T.requires_grad_()
    assert gradcheck(silu, x)
    assert gradgradcheck(silu, x)
    factor = torch.randn(3, 3, dtype=torch.float64).requires_grad_()
    operator = torch.ops.gfm_harness.scaled_silu
    assert gradcheck(lambda x, a: operator(x, a, 2), (x, factor))
    library.opcheck(operator.default, (x.detach(), factor.detach(), 2))


def test_orders_without_an_operator_are_refused() -> None:
    x = torch.ones(2)
    for factor, order in ((None, 1), (x, 0), (x, 4)):
        with pytest.raises(ValueError, match=f"order {order}"):
            torch.ops.gfm_harness.scaled_silu(x, factor, order)
    with pytest.raises(ValueError, match="does not fit"):
        torch.ops.gfm_harness.scaled_silu(x, x[:1], 2)


def test_other_types_and_compilers_use_the_function_of_pytorch() -> None:
    x = torch.linspace(-2, 2, 5)
    assert torch.equal(silu(x.bfloat16()), functional.silu(x.bfloat16()))
    assert torch.equal(torch.compile(silu, backend="eager", fullgraph=True)(x), functional.silu(x))
