"""Sums over neighbours with filters that depend on the distance alone, as in SchNet, for frozen parameters on CPUs.

One operator computes the filters of all layers and their derivatives, so that forces need no backward pass through the
networks of the filters:

    radial_filters(r, ...)                     = f_1(r), f_2(r), ..., f_1'(r), f_2'(r), ...
    sum_triple_products(x, y, w, a, b, c)[p]   = sum of x[a[e], k] y[b[e], k] w[p, k] over c[e] = p and k

p is the number of pairs of an edge and its reverse, which have one distance, and K that of the filters of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from harness.reference.ops.products import is_loaded
from harness.reference.ops.segment_sums import NAMESPACE, Grouping, product_sum

SCHEMAS = {
    "radial_filters": "(Tensor r, int gaussians, float cutoff, float min_exponent, Tensor[] layers) -> Tensor[]",
    "sum_triple_products": "(Tensor x, Tensor y, Tensor w, Tensor a, Tensor b, Tensor[] c) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


def _allocate_filters(
    r: Tensor, gaussians: int, cutoff: float, min_exponent: float, layers: list[Tensor]
) -> list[Tensor]:
    return [r.new_empty(r.shape[0], weight.shape[0]) for weight in 2 * layers[2::4]]


def _allocate_sums(x: Tensor, y: Tensor, w: Tensor, a: Tensor, b: Tensor, c: list[Tensor]) -> Tensor:
    return x.new_empty(w.shape[0], 1)


library.register_fake(f"{NAMESPACE}::radial_filters", _allocate_filters)
library.register_fake(f"{NAMESPACE}::sum_triple_products", _allocate_sums)


class RadialFilter(NamedTuple):
    """The filter of a layer, which depends on the distance alone.

    Either `value` is differentiable, and the other attributes are None, or all three are present.

    Attributes:
        value: [p, K].
        slope: [p, K] derivative with respect to the distance, or None.
        compute_value: Return the differentiable [p, K] for distances [p, 1], or None.
    """

    value: Tensor
    slope: Tensor | None = None
    compute_value: Callable[[Tensor], Tensor] | None = None


def can_evaluate_filters(r: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Return whether `evaluate_filters` can be used: for frozen parameters, and distances whose gradient is needed."""
    return (
        r.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_loaded(r.device)
        and r.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and all(x.dtype == r.dtype and not x.requires_grad for x in parameters)
    )


def evaluate_filters(
    r: Tensor, gaussians: int, cutoff: float, min_exponent: float, layers: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the filters of all layers and their derivatives with respect to r, [p, K] each.

    A filter is W_2 softplus(W_1 g + b_1) + b_2 times the cosine cutoff, with exponents of the Gaussians g of at least
    min_exponent. The shift of a shifted softplus is a part of b_2.

    Args:
        r: [p, 1] distances.
        gaussians: Number of Gaussians, with centres from 0 to the cutoff.
        cutoff: The cutoff in the unit of r.
        min_exponent: The lower bound of exponents.
        layers: W_1 [K, gaussians], b_1 [K], W_2 [K, K] and b_2 [K] of each layer, one after another.
    """
    results = _operators.radial_filters(r.detach(), gaussians, cutoff, min_exponent, layers)
    return results[: len(results) // 2], results[len(results) // 2 :]


def sum_filtered(
    x: Tensor, r: Tensor, radial: RadialFilter, senders: Grouping, receivers: Grouping, pair: Grouping | None
) -> Tensor:
    """Return the sum over the edges of each receiver of the sender's row times the filter, [n, K].

    Args:
        x: [n, K], a row for each sender.
        r: [p, 1] distance of each pair.
        radial: The filter of each pair.
        senders: The sender of each edge.
        receivers: The receiver of each edge.
        pair: The pair of each edge; None: each edge is a pair of its own.
    """
    if radial.slope is None:
        return product_sum(x, radial.value, senders, receivers, weight_rows=pair)
    result: Tensor = _FilteredSum.apply(x, r, radial, senders, receivers, pair)
    return result


class _FilteredSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, radial: RadialFilter, *groups: Grouping) -> Tensor:
        ctx.save_for_backward(x, r)
        ctx.radial, ctx.groups = radial, groups
        return product_sum(x, radial.value, groups[0], groups[1], weight_rows=groups[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, r = ctx.saved_tensors
        value, slope, compute_value = ctx.radial
        senders, receivers, pair = ctx.groups
        if torch.is_grad_enabled():
            value = compute_value(r)
            value_grad = product_sum(x, grad, senders, pair, weight_rows=receivers)
            (r_grad,) = torch.autograd.grad(value, r, value_grad, create_graph=True)
        else:
            r_grad = _operators.sum_triple_products(x, grad, slope, senders.group, receivers.group, pair)
        x_grad = product_sum(grad, value, receivers, senders, weight_rows=pair) if ctx.needs_input_grad[0] else None
        return x_grad, r_grad, *(None,) * 4
