"""Fused messages on CPUs: values and derivatives match the unfused messages and are bitwise reproducible."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from harness.reference.ops import messages as kernels
from harness.reference.ops.messages import MessageInputs, messages
from harness.reference.ops.unfused_messages import compute_unfused_messages, list_float_inputs, make_terms
from tests.reference.ops.message_terms import (
    TOLERANCE,
    compute_first_and_second_derivatives,
    compute_values_and_gradients,
)

all_dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])
with_and_without_v = pytest.mark.parametrize("with_v", [True, False], ids=["v", "no v"])


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    kernels.load(torch.device("cpu"))


# (atoms, edges, width, columns): narrower than a SIMD vector; odd widths; many columns; no edges
SIZES = [(5, 9, 3, 2), (7, 90, 13, 7), (40, 500, 337, 7), (4, 20, 40, 45), (20, 300, 19, 21), (3, 0, 8, 7)]


@all_dtypes
@with_and_without_v
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_match_the_unfused_messages(
    sizes: tuple[int, int, int, int], with_v: bool, dtype: torch.dtype
) -> None:
    terms = make_terms(*sizes, with_v=with_v, dtype=dtype)
    for got, expected in zip(
        compute_values_and_gradients(messages(terms), terms),
        compute_values_and_gradients(compute_unfused_messages(terms), terms),
        strict=True,
    ):
        assert got.dtype == dtype
        assert got.shape == expected.shape
        scale = expected.abs().max() if expected.numel() else torch.zeros(())
        assert torch.allclose(got, expected, rtol=0, atol=float(TOLERANCE[dtype] * scale))


def test_tensors_may_be_views() -> None:
    terms = make_terms(7, 30, 13, 7)
    assert terms.v is not None
    strided = terms._replace(
        phi=terms.phi.T.contiguous().T, v=terms.v.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        radial=terms.radial.repeat_interleave(2, dim=0)[::2], unit=terms.unit.T.contiguous().T,
    )  # fmt: skip
    assert not strided.phi.is_contiguous()
    assert not strided.radial.is_contiguous()
    for got, expected in zip(messages(strided), messages(terms), strict=True):
        assert torch.equal(got, expected)


@with_and_without_v
def test_first_and_second_derivatives_match_finite_differences(with_v: bool) -> None:
    terms = make_terms(3, 6, 2, 2, with_v=with_v)

    def compute_messages(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        tensors = iter(inputs)
        return messages(
            MessageInputs(*(next(tensors) if x is not None and x.is_floating_point() else x for x in terms))
        )

    assert gradcheck(compute_messages, list_float_inputs(terms))
    assert gradgradcheck(compute_messages, list_float_inputs(terms))


@with_and_without_v
@pytest.mark.parametrize("needed", ["radial", "unit", "weight", "phi", "v", "radial unit"])
def test_gradients_are_correct_when_some_inputs_require_none(needed: str, with_v: bool) -> None:
    if needed == "v" and not with_v:
        pytest.skip("there is no v")
    terms = make_terms(5, 20, 6, 4, with_v=with_v)
    terms = MessageInputs(*(
        x.detach().requires_grad_(name in needed.split()) if x is not None and x.is_floating_point() else x
        for name, x in zip(MessageInputs._fields, terms, strict=True)
    ))  # fmt: skip
    results, references = (
        compute_first_and_second_derivatives(formulation, terms) for formulation in (messages, compute_unfused_messages)
    )
    for got, expected in zip(results, references, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@with_and_without_v
def test_operators_are_registered_correctly(with_v: bool) -> None:
    terms = make_terms(5, 20, 6, 4, with_v=with_v)
    to_s, to_v = (torch.randn_like(x).requires_grad_() for x in messages(terms))
    operators = torch.ops.gfm_harness
    library.opcheck(operators.messages.default, tuple(terms))
    library.opcheck(operators.filter_backward.default, (to_s, to_v, *terms[:3], *terms[4:]))
    for nodes in (True, False):
        library.opcheck(operators.messages_backward.default, (to_s, to_v, *terms, nodes))


@all_dtypes
def test_results_are_bitwise_reproducible_on_any_number_of_threads(dtype: torch.dtype, restored_threads: None) -> None:
    terms = make_terms(150, 2500, 67, 7, dtype=dtype)
    results = []
    for n_threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(n_threads)
        results.append(compute_values_and_gradients(messages(terms), terms))
    for before, after in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"receiver": torch.tensor([0, 1, 5])}, "edge 2 ends at atom 5 of 5"),
        ({"sender": torch.tensor([-1, 1, 4])}, "edge 0 ends at atom -1 of 5"),
        ({"sender": torch.tensor([1, 4])}, "edges do not match"),
        ({"unit": torch.zeros(3, 2, dtype=torch.float64)}, "unit is not"),
        ({"unit": torch.zeros(3, 3)}, "types differ"),
        ({"weight": torch.zeros(4, 17, dtype=torch.float64)}, "weight does not fit phi"),
        ({"v": torch.zeros(3, 4, 6, dtype=torch.float64)}, "v does not fit phi"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    terms = make_terms(5, 3, 6, 4)._replace(**wrong)
    with pytest.raises((ValueError, IndexError, TypeError, RuntimeError), match=message):
        torch.ops.gfm_harness.messages(*(x.detach() if x is not None else x for x in terms))
