"""The solution of the equation of adaptive cutoffs as an operator, differentiable any number of times.

The scale s of an atom solves sum_e max(1 - c_e s, 0)^3 + total (s^-power - 1) = 0, where c_e are the third powers of
the distances of its neighbours divided by the cutoff. Then ds/dc_e = -3 s max(1 - c_e s, 0)^2 / D with the denominator
D = 3 sum_e c_e max(1 - c_e s, 0)^2 + power total s^(-power - 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

SCHEMA = "(Tensor cubes, Tensor receiver, float total, int power, SymInt n_atoms) -> Tensor"
library.define("gfm_harness::solve_scales", SCHEMA, tags=torch.Tag.pt2_compliant_tag)


def solve_scales(cubes: Tensor, receiver: Tensor, total: float, power: int, n_atoms: int) -> Tensor:
    """Return the scale of each atom, [n]; the operators of messages.py must have been loaded.

    Args:
        cubes: [e] on the CPU.
        receiver: [e] the atom of each edge.
        total: The factor of the second term.
        power: Its exponent.
        n_atoms: Number of atoms.
    """
    return torch.ops.gfm_harness.solve_scales(cubes, receiver, total, power, n_atoms)


def _allocate(cubes: Tensor, receiver: Tensor, total: float, power: int, n_atoms: int) -> Tensor:
    return cubes.new_empty(n_atoms)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cubes, receiver, ctx.total, ctx.power, _ = inputs
    ctx.save_for_backward(cubes, receiver, output)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    cubes, receiver, scale = ctx.saved_tensors
    rest = (1.0 - cubes * scale[receiver]).clamp(min=0.0)
    square = rest * rest
    summed = torch.zeros_like(scale).index_add(0, receiver, cubes * square)
    denominator = 3.0 * summed + (ctx.total * ctx.power) * scale ** (-ctx.power - 1)
    return (-3.0 * scale * grad / denominator)[receiver] * square, None, None, None, None


library.register_fake("gfm_harness::solve_scales", _allocate)
library.register_autograd("gfm_harness::solve_scales", _differentiate, setup_context=_save)
