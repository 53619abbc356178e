"""Features divided by a bound of their size, as operators that read them once, differentiable any number of times.

With c = (1 + x.x / F)^(-1/2), where x.x is the sum of the squares of all F features of an atom (of vectors, of all
three components), bounded features are y = c x. The gradient h(g) = c g - c^3 (x.g) x / F is symmetric:
t.h(g) = g.h(t).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

for _name, _arguments in (("bound_features", "Tensor x"), ("bound_features_backward", "Tensor grad, Tensor x")):
    library.define(f"gfm_harness::{_name}", f"({_arguments}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


def bound_features(x: Tensor, *, fused: bool = False) -> Tensor:
    """Return the features of each atom divided by sqrt(1 + mean square), which amplifies nothing.

    Args:
        x: Scalars [n, F], or vectors [3, n, F], whose squares are those of their lengths.
        fused: Whether the operators of messages.py are loaded; on CPUs, they compute the result in FP32 and FP64 then.
    """
    if fused and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        bounded: Tensor = _operators.bound_features(x)
        return bounded
    return x * _compute_factor(x)


def _compute_factor(x: Tensor) -> Tensor:
    return torch.rsqrt(1.0 + _dot(x, x) / x.shape[-1])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of all features of each atom."""
    return (a * b).sum((-1,) if a.ndim == 2 else (0, 2), keepdim=True)


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    x_grad: Tensor = _operators.bound_features_backward(grad, x)
    return x_grad


def _differentiate_backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of t.h(g) = c g.t - c^3 (x.g) (x.t) / F with respect to g and x."""
    grad, x = ctx.saved_tensors
    factor, of_grad, of_tangent = _compute_factor(x), _dot(x, grad), _dot(x, tangent)
    cube = factor**3 / x.shape[-1]
    along_x = 3.0 * cube * factor**2 / x.shape[-1] * of_grad * of_tangent - cube * _dot(grad, tangent)
    x_grad = along_x * x - cube * (of_tangent * grad + of_grad * tangent)
    return _operators.bound_features_backward(tangent, x), x_grad


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


for _name, _derivative in (("bound_features", _differentiate), ("bound_features_backward", _differentiate_backward)):
    library.register_fake(f"gfm_harness::{_name}", lambda *x: x[-1].new_empty(x[-1].shape))
    library.register_autograd(f"gfm_harness::{_name}", _derivative, setup_context=_save)
