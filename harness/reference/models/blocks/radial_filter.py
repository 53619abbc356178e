"""Filters of distances on edges, as PaiNN and PNAEq have them, and what both give to the operator of messages.

F is the width, n atoms, e edges, K radial functions, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.reference.ops.messages import Terms, messages

COLUMNS = 8


class Edges(NamedTuple):
    """What every message needs of the edges.

    sender, receiver [e]; radial [e, C] as of `columns`; unit: x, y and z of the direction to the sender, [e, 1] each.
    """

    sender: Tensor
    receiver: Tensor
    radial: Tensor
    unit: tuple[Tensor, ...]


def columns(basis: Tensor, envelope: Tensor, *, fused: bool = False) -> Tensor:
    """basis [e, K], envelope [e, 1] -> [basis envelope, envelope, 0 ...] [e, C].

    Its product with the weights and the bias of a filter, one under the other, is the filter with its cutoff. Zeros
    make C a multiple of eight, for which matrix libraries are up to twice as fast; the operator needs none.
    """
    if fused:
        return torch.cat([basis * envelope, envelope], dim=-1)
    spare = basis.new_zeros(basis.shape[0], -(basis.shape[1] + 1) % COLUMNS)
    return torch.cat([basis * envelope, envelope, spare], dim=-1)


def filter_weight(weight: Tensor, bias: Tensor, radial: Tensor) -> Tensor:
    """What radial [e, C] is multiplied with for filters of weight [p, K] and bias [p]: [C, p]."""
    joined = torch.cat([weight.T, bias.unsqueeze(0)])
    return pad(joined, (0, 0, 0, radial.shape[1] - joined.shape[0]))


def filters(radial: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """radial [e, C], weights [C, F] each -> filters [e, F], in the type of radial under autocast too."""
    return tuple((radial @ weight).to(radial.dtype) for weight in weights)


def fused_messages(phi: Tensor, v: Tensor | None, weight: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """phi [n, 3 F] and weight [C, 3 F], or 2 F without v -> what s [n, F] and v [3, n, F] gain."""
    unit = torch.cat(edges.unit, dim=1)
    return messages(Terms(phi.to(edges.radial.dtype), v, edges.radial, weight, unit, edges.receiver, edges.sender))
