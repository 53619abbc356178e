"""Linear layers, differentiable any number of times; on CPUs, the C++ operator multiply_add computes their products."""

from __future__ import annotations

import torch
from torch import Tensor, library, nn
from torch.nn import functional

library.define(
    "gfm_harness::multiply_add", "(Tensor a, Tensor b, Tensor? bias) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)


def _allocate_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


library.register_fake("gfm_harness::multiply_add", _allocate_product)


def is_loaded(device: torch.device) -> bool:
    """Return whether the operator can be called with tensors on the device."""
    name, key = "gfm_harness::multiply_add", device.type.upper()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, fused: bool | None = None) -> Tensor:
    """Return x weight^T + bias as `torch.nn.functional.linear` does.

    Args:
        x: [..., n, in].
        weight: [out, in].
        bias: [out], or None.
        fused: Whether multiply_add is used on CPUs, where it must be loaded; None: if it is loaded, except in code that
            is compiled, since compilers fuse nothing into it.
    """
    if fused is None:
        fused = not torch.compiler.is_compiling() and is_loaded(x.device)
    if not fused or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    product = torch.ops.gfm_harness.multiply_add(x.flatten(0, -2), weight.T, bias)
    return product.view(*x.shape[:-1], weight.shape[0])


def apply_linear(layer: nn.Linear, x: Tensor, *, fused: bool | None = None) -> Tensor:
    """Return layer(x), as computed by `linear` unless the layer has hooks."""
    result: Tensor = layer(x) if has_hooks(layer) else linear(x, layer.weight, layer.bias, fused=fused)
    return result


def has_hooks(layer: nn.Module) -> bool:
    """Return whether hooks observe the inputs or outputs of a layer, so that it has to be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
