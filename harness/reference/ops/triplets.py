"""Sums over pairs of edges k -> j -> i, which scale a message of the first edge by functions of distance and angle.

    F(g, p, s, w, d) = sum of g[o, c] p[t, l] s[m, l, n] w[l, n, c] d[m, c] over t, l, n, c

Here m is the edge k -> j of the pair t and o the edge j -> i, l the order, n the radial function, and c the channel.
The arguments are the gradient g of the result, the angular functions p, the radial functions s, the weights w and the
messages d, so that the result itself is the derivative with respect to g. On CPUs, C++ kernels avoid tensors of pairs
and channels, and of edges, orders and channels; PyTorch's functions, which other devices use, allocate them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.reference.ops.multilinear import Multilinear, Values
from harness.reference.ops.segment_sums import Grouping


class Triplets(NamedTuple):
    """The pairs of edges k -> j -> i.

    Attributes:
        incoming: The edge k -> j of each pair.
        outgoing: The edge j -> i of each pair.
        receivers: The atom j of each edge k -> j, by which the kernels divide their work.
    """

    incoming: Grouping
    outgoing: Grouping
    receivers: Grouping


def sum_triplets(angular: Tensor, radial: Tensor, weight: Tensor, messages: Tensor, triplets: Triplets) -> Tensor:
    """Return the sums over the pairs of each outgoing edge, [e, C].

    Args:
        angular: [t, L] functions of the angle, with at most 64 orders.
        radial: [e, L, N] functions of the length of incoming edges.
        weight: [L, N, C] of the products of both functions.
        messages: [e, C] of incoming edges.
        triplets: The pairs of edges.
    """
    ends = [*triplets.incoming, triplets.outgoing.group, *triplets.receivers]
    return TRIPLET_SUM.differentiate("g", {"p": angular, "s": radial, "w": weight, "d": messages}, ends)


def _get_shape(argument: str, others: dict[str, Any], ends: list[Tensor]) -> tuple[int, ...]:
    pairs, edges = ends[0].shape[0], ends[2].shape[0] - 1
    channels = (others["d"] if "d" in others else others["g"]).shape[1]
    if argument == "p":
        return pairs, others["s"].shape[1]
    if argument == "s":
        return edges, *others["w"].shape[:2]
    return (*others["s"].shape[1:], channels) if argument == "w" else (edges, channels)


def _compute(argument: str, others: Values, ends: list[Tensor]) -> Tensor:
    """Compute an operator by PyTorch's functions."""
    x = {name: value for name, value in others.items() if value is not None}
    incoming, outgoing = ends[0], ends[3]
    if argument in "gp":
        sent = torch.einsum("eln,lnc->elc", x["s"], x["w"]) * x["d"].unsqueeze(1)
        sent_of_pairs = sent.index_select(0, incoming)
        if argument == "p":
            return (sent_of_pairs @ x["g"].index_select(0, outgoing).unsqueeze(2)).squeeze(2)
        received = (x["p"].unsqueeze(1) @ sent_of_pairs).squeeze(1)
        return torch.zeros_like(x["d"]).index_add(0, outgoing, received)
    products = x["p"].unsqueeze(2) * x["g"].index_select(0, outgoing).unsqueeze(1)
    edges = _get_shape("d", x, ends)[0]
    received = products.new_zeros(edges, *products.shape[1:]).index_add(0, incoming, products)
    if argument == "d":
        return (torch.einsum("eln,lnc->elc", x["s"], x["w"]) * received).sum(1)
    received = received * x["d"].unsqueeze(1)
    if argument == "s":
        return torch.einsum("elc,lnc->eln", received, x["w"])
    return torch.einsum("elc,eln->lnc", received, x["s"])


# The parameters are `group`, `order` and `start` of the incoming edges, the outgoing edge of each pair, and `group`,
# `order` and `start` of the receivers.
TRIPLET_SUM = Multilinear(
    {
        "g": "triplet_sums", "p": "triplet_angular", "s": "triplet_radial", "w": "triplet_weight",
        "d": "triplet_messages",
    },
    "",
    "Tensor[] ends",
    _get_shape,
    _compute,
)  # fmt: skip
