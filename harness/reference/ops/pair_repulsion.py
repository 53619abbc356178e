"""The repulsion of models/repulsion.py as an operator, which computes only edges within its range.

It can be differentiated twice, as training on forces needs, and force constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library

library.define(
    "gfm_harness::repel_pairs",
    "(Tensor r, Tensor atoms, Tensor receiver, Tensor sender, float core, float end, float[] amplitudes,"
    " float[] decays, int order) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
MAX_ORDER = 2


def repel_pairs(
    r: Tensor, atoms: Tensor, receiver: Tensor, sender: Tensor, bounds: tuple[float, float],
    screening: tuple[Sequence[float], Sequence[float]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return half the repulsion energy and the switch of learnt interactions of each edge, [e, 1] each.

    `messages.load` must have loaded the operators.

    Args:
        r: [e, 1] distances on the CPU.
        atoms: [n, 3] in FP64: covalent radius, factor of half the energy, contribution to the inverse screening length.
        receiver: [e] the atom of each edge.
        sender: [e] the other atom.
        bounds: The relative distances where the switch begins and where it and the repulsion end.
        screening: The amplitudes and decays of the terms of the screening function.
    """
    energy, switch = torch.ops.gfm_harness.repel_pairs(r, atoms, receiver, sender, *bounds, *map(list, screening), 0)
    return energy, switch


def _allocate(r: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return r.new_empty(r.shape), r.new_empty(r.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.constants, ctx.order = inputs[4:-1], inputs[-1]


def _differentiate(ctx: Any, energy_grad: Tensor, switch_grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.order == MAX_ORDER:
        raise NotImplementedError("the third derivative of the repulsion is not implemented")
    energy, switch = torch.ops.gfm_harness.repel_pairs(*ctx.saved_tensors, *ctx.constants, ctx.order + 1)
    return energy_grad * energy + switch_grad * switch, *(None,) * 8


library.register_fake("gfm_harness::repel_pairs", _allocate)
library.register_autograd("gfm_harness::repel_pairs", _differentiate, setup_context=_save)
