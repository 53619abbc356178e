"""Sums over neighbours with filters that depend on the distance alone, as in SchNet, on CPUs.

One operator computes the filters of all layers and their derivatives, so that forces need no backward pass through the
networks of the filters:

    radial_filters(r, ...)                     = f_1(r), f_2(r), ..., f_1'(r), f_2'(r), ...
    sum_triple_products(x, y, w, a, b, c)[q]   = sum of x[a[e], k] y[b[e], k] w[q, k] over c[e] = q and k

There are p pairs of an edge and its reverse, which have one distance, and K filters in a layer. Sums with filters are
differentiable any number of times. Operators compute the first two derivatives with respect to distances, as training
on forces needs, and PyTorch's functions further ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from harness.reference.ops.products import is_loaded
from harness.reference.ops.segment_sums import NAMESPACE, Grouping, product_sum

FILTER_ARGUMENTS = "Tensor r, int gaussians, float cutoff, float min_exponent, Tensor[] layers"
SCHEMAS = {
    "radial_filters": f"({FILTER_ARGUMENTS}) -> Tensor[]",
    "radial_filters_backward": f"(Tensor[] grads, {FILTER_ARGUMENTS}, bool needs_r_grad) -> Tensor[]",
    "sum_triple_products": "(Tensor x, Tensor y, Tensor w, Tensor[] a, Tensor[] b, Tensor[] c) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


def _allocate_filters(
    r: Tensor, gaussians: int, cutoff: float, min_exponent: float, layers: list[Tensor]
) -> list[Tensor]:
    return [r.new_empty(r.shape[0], weight.shape[0]) for weight in 2 * layers[2::4]]


def _allocate_gradients(
    grads: list[Tensor],
    r: Tensor,
    gaussians: int,
    cutoff: float,
    min_exponent: float,
    layers: list[Tensor],
    needs_r_grad: bool,
) -> list[Tensor]:
    r_grad = r.new_empty(r.shape if needs_r_grad else 0)
    return [r_grad, *(parameter.new_empty(parameter.shape) for parameter in layers)]


def _allocate_sums(x: Tensor, y: Tensor, w: Tensor, a: list[Tensor], b: list[Tensor], c: list[Tensor]) -> Tensor:
    return x.new_empty(w.shape[0], 1)


library.register_fake(f"{NAMESPACE}::radial_filters", _allocate_filters)
library.register_fake(f"{NAMESPACE}::radial_filters_backward", _allocate_gradients)
library.register_fake(f"{NAMESPACE}::sum_triple_products", _allocate_sums)


class RadialFilter(NamedTuple):
    """The filter of a layer, which depends on the distance alone.

    Attributes:
        value: [p, K]. If there is a slope, autograd treats the value as constant in r: only `sum_filtered` propagates
            gradients to r.
        slope: [p, K] derivative with respect to the distance, or None.
    """

    value: Tensor
    slope: Tensor | None = None


def can_evaluate_filters(r: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Return whether `evaluate_filters` supports r and the parameters, and the gradient of r is needed."""
    return (
        r.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_loaded(r.device)
        and r.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and all(x.dtype == r.dtype for x in parameters)
    )


def evaluate_filters(
    r: Tensor, gaussians: int, cutoff: float, min_exponent: float, layers: list[Tensor]
) -> list[RadialFilter]:
    """Return the filter of each layer, with its slope: the derivative with respect to r.

    A filter is W_2 softplus(W_1 g + b_1) + b_2 times the cosine cutoff, with exponents of the Gaussians g of at least
    min_exponent. The shift of a shifted softplus is a part of b_2.

    Args:
        r: [p, 1] distances.
        gaussians: Number of Gaussians, with centres from 0 to the cutoff.
        cutoff: The cutoff in the unit of r.
        min_exponent: The lower bound of exponents.
        layers: W_1 [H, gaussians], b_1 [H], W_2 [K, H] and b_2 [K] of each layer, one after another.

    Raises:
        ValueError: A shape is not as described.
    """
    results = _operators.radial_filters(r, gaussians, cutoff, min_exponent, layers)
    values, slopes = results[: len(results) // 2], results[len(results) // 2 :]
    return [RadialFilter(value, slope) for value, slope in zip(values, slopes, strict=True)]


def sum_filtered(
    x: Tensor, r: Tensor, radial: RadialFilter, senders: Grouping, receivers: Grouping, pair: Grouping | None
) -> Tensor:
    """Return the sum over the edges of each receiver of the sender's row times the filter, [n, K].

    Args:
        x: [n, K], a row for each sender.
        r: [p, 1] distance of each pair, or [e, 1] without pairs.
        radial: The filter of each pair.
        senders: The sender of each edge.
        receivers: The receiver of each edge.
        pair: The pair of each edge; None only for a filter without a slope, of which each edge then has a row.

    Raises:
        ValueError: The filter has a slope, but there are no pairs.
    """
    if radial.slope is None:
        return product_sum(x, radial.value, senders, receivers, weight_rows=pair)
    if pair is None:
        raise ValueError("a filter with a slope needs the pair of each edge")
    result: Tensor = _FilteredSum.apply(x, r, *radial, senders, receivers, pair)
    return result


class _FilteredSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, value: Tensor, slope: Tensor, *groups: Grouping) -> Tensor:
        ctx.save_for_backward(x, r, value, slope)
        ctx.groups = groups
        return product_sum(x, value, groups[0], groups[1], weight_rows=groups[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, r, value, slope = ctx.saved_tensors
        senders, receivers, pair = ctx.groups
        x_grad = value_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = sum_filtered(grad, r, RadialFilter(value, slope), receivers, senders, pair)
        if ctx.needs_input_grad[2] or torch.is_grad_enabled():
            value_grad = product_sum(x, grad, senders, pair, weight_rows=receivers)
            r_grad = (value_grad * slope).sum(1, keepdim=True)
        else:
            r_grad = _operators.sum_triple_products(x, grad, slope, senders, receivers, pair)
        return x_grad, r_grad, value_grad, *(None,) * 4
