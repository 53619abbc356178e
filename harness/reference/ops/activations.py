"""Activations whose higher derivatives are single passes over memory on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, library
from torch.nn import functional

from harness.reference.ops.products import is_loaded

library.define(
    "gfm_harness::scaled_silu", "(Tensor x, Tensor? factor, int order) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)


def _allocate(x: Tensor, factor: Tensor | None, order: int) -> Tensor:
    return x.new_empty(x.shape)


library.register_fake("gfm_harness::scaled_silu", _allocate)


def silu(x: Tensor) -> Tensor:
    """Return x / (1 + exp(-x)), differentiable three times.

    PyTorch computes the second derivative, which training on forces needs, by more than ten passes over memory. The
    operator scaled_silu(x, factor, order) returns the factor times the derivative of this order in one pass. Compiled
    code, other devices and other types use PyTorch's function.
    """
    if torch.compiler.is_compiling() or not is_loaded(x.device) or x.dtype not in (torch.float32, torch.float64):
        return functional.silu(x)
    result: Tensor = torch.ops.gfm_harness.scaled_silu(x, None, 0)
    return result
