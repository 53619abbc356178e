"""Products of features of senders, couplings and weights of edges, summed over the edges of receivers.

    F(g, k, h, w) = sum of g[i, r, f] k[e, r, m] h[j, m, f] w[e, p, f] over edges e, rows r, components m, features f

Here i is the receiver of e, j its sender, and p the path of row r; without w, its factors are 1. The operators are the
derivatives of F with respect to g, k, h and w. As F is linear in each, they are each other's derivatives, of any order.
On CPUs, C++ kernels store no tensor of edges, rows and features; elsewhere, or without a compiler, PyTorch's functions
do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.reference.ops.multilinear import Multilinear, Values
from harness.reference.ops.segment_sums import Grouping


def couple_neighbours(
    coupling: Tensor, features: Tensor, weights: Tensor | None, paths: Tensor, senders: Grouping, receivers: Grouping
) -> Tensor:
    """Return the sums over the edges of each receiver, [n, R, C].

    Args:
        coupling: [e, R, M], the factor of each component of the sender in each row of the result.
        features: [m, M, C] of the senders, with at most 64 components.
        weights: [e, P, C], or None for ones.
        paths: [R] the path of each row, of P.
        senders: The sender of each edge.
        receivers: The receiver of each edge.
    """
    ends = [paths, *senders, *receivers]
    count = 1 if weights is None else weights.shape[1]
    return COUPLING.differentiate("g", {"k": coupling, "h": features, "w": weights}, count, ends)


def _get_shape(argument: str, others: dict[str, Any], path_count: int, ends: list[Tensor]) -> tuple[int, ...]:
    rows, senders, receivers = ends[0].shape[0], ends[3].shape[0] - 1, ends[6].shape[0] - 1
    components = others["h"].shape[1] if argument == "k" else others["k"].shape[2]
    features = others["h"].shape[2] if "h" in others else others["g"].shape[2]
    shapes = {
        "g": (receivers, rows, features), "k": (ends[1].shape[0], rows, components),
        "h": (senders, components, features), "w": (ends[1].shape[0], path_count, features),
    }  # fmt: skip
    return shapes[argument]


def _compute(argument: str, others: Values, path_count: int, ends: list[Tensor]) -> Tensor:
    """Compute an operator by PyTorch's functions."""
    path, sender, receiver = ends[0], ends[1], ends[4]
    indices = {"g": (0, receiver), "h": (0, sender), "w": (1, path)}
    present = {x: value for x, value in others.items() if value is not None}
    of_edges = {x: value.index_select(*indices[x]) if x in indices else value for x, value in present.items()}
    of_edges.setdefault("w", next(iter(present.values())).new_ones(1, 1, 1))
    if argument == "k":
        return (of_edges["g"] * of_edges["w"]) @ of_edges["h"].transpose(1, 2)
    if argument == "h":
        products = of_edges["k"].transpose(1, 2) @ (of_edges["g"] * of_edges["w"])
    else:
        products = (of_edges["k"] @ of_edges["h"]) * of_edges["w" if argument == "g" else "g"]
    zero = products.new_zeros(_get_shape(argument, dict(others), path_count, ends))
    return zero.index_add(*indices[argument], products)


# The parameters are the number of paths, and the path of each row, then `group`, `order` and `start` of the senders and
# of the receivers.
COUPLING = Multilinear(
    {"g": "couple_receivers", "k": "couple_edges", "h": "couple_senders", "w": "couple_weights"},
    "w",
    "int path_count, Tensor[] ends",
    _get_shape,
    _compute,
)
