"""Filters of SchNet and their derivatives with respect to the distance, computed together by a C++ operator on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library, nn

from harness.reference.ops.products import has_hooks, is_loaded

library.define(
    "gfm_harness::radial_filters",
    "(Tensor r, int gaussians, float cutoff, float min_exponent, Tensor[] layers) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
library.define(
    "gfm_harness::sum_row_products", "(Tensor[] a, Tensor[] b) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)


def _allocate(r: Tensor, gaussians: int, cutoff: float, min_exponent: float, layers: list[Tensor]) -> list[Tensor]:
    return 2 * [r.new_empty(r.shape[0], weight.shape[0]) for weight in layers[2::4]]


library.register_fake("gfm_harness::radial_filters", _allocate)


def can_compute_filters(r: Tensor, networks: Sequence[nn.Sequential]) -> bool:
    """Return whether the operator computes the filters of frozen networks, and their derivatives, for distances r."""
    return (
        r.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_loaded(r.device)
        and r.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not any(x.requires_grad or x.dtype != r.dtype for network in networks for x in network.parameters())
        and not any(has_hooks(layer) for network in networks for layer in network)
    )


class RadialFilters(torch.autograd.Function):
    """Filters whose first derivative is computed with them, without a backward pass through their layers."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, compute: Callable[[Tensor], list[Tensor]], *parameters: Any) -> tuple[Tensor, ...]:
        filters = torch.ops.gfm_harness.radial_filters(r, *parameters)
        layers = len(filters) // 2
        ctx.save_for_backward(r, *filters[layers:])
        ctx.compute = compute
        return tuple(filters[:layers])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        r, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            (r_grad,) = torch.autograd.grad(ctx.compute(r), r, grads, create_graph=True)
        else:
            r_grad = torch.ops.gfm_harness.sum_row_products(grads, slopes)
        return r_grad, None, None, None, None, None
