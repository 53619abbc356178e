"""Products of features of senders, couplings and weights of edges, summed over the edges of receivers.

    F(g, k, h, w) = sum of g[i, r, f] k[e, r, m] h[j, m, f] w[e, p, f] over edges e, rows r, components m, features f

Here i is the receiver of e, j its sender, and p the path of row r; without w, its factors are 1. The operators are the
derivatives of F with respect to g, k, h and w. As F is linear in each, they are each other's derivatives, of any order.
On CPUs, C++ kernels store no tensor of edges, rows and features; elsewhere, or without a compiler, PyTorch's functions
do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from harness.reference.ops.products import is_loaded
from harness.reference.ops.segment_sums import NAMESPACE, Grouping, group_rows

MAX_COMPONENTS = 64  # of senders, in the C++ kernels

# The arguments of F, each with the operator that is the derivative with respect to it.
OPERATORS = {"g": "couple_receivers", "k": "couple_edges", "h": "couple_senders", "w": "couple_weights"}
for _argument, _name in OPERATORS.items():
    _others = ", ".join(f"Tensor{'?' if x == 'w' else ''} {x}" for x in OPERATORS if x != _argument)
    _schema = f"({_others}, int path_count, Tensor[] ends) -> Tensor"
    library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)


def couple_neighbours(
    coupling: Tensor, features: Tensor, weights: Tensor | None, paths: Tensor, senders: Grouping, receivers: Grouping
) -> Tensor:
    """Return the sums over the edges of each receiver, [n, R, C].

    Args:
        coupling: [e, R, M], the factor of each component of the sender in each row of the result.
        features: [m, M, C] of the senders, with at most MAX_COMPONENTS components.
        weights: [e, P, C], or None for ones.
        paths: [R] the path of each row, of P.
        senders: The sender of each edge.
        receivers: The receiver of each edge.
    """
    ends = [paths, *senders, *receivers]
    count = 1 if weights is None else weights.shape[1]
    return _call("g", {"k": coupling, "h": features, "w": weights}, count, ends)


def multiply_slices(x: Tensor, weight: Tensor) -> Tensor:
    """Return the products of the slices x[:, l] [e, N] and weight[l] [N, C], [e, L, C].

    Rows with few elements gain nothing from blocked products of matrices, to which PyTorch's functions resort.
    """
    edges, slices, depth = x.shape
    if depth > MAX_COMPONENTS or not is_loaded(x.device):
        return torch.einsum("eln,lnc->elc", x, weight)
    slice_of_row = torch.arange(slices, device=x.device).repeat(edges)
    row = torch.arange(edges * slices, device=x.device)
    senders, receivers = group_rows(slice_of_row, slices), group_rows(row, edges * slices)
    coupling = x.reshape(edges * slices, 1, depth)
    return couple_neighbours(coupling, weight, None, row[:1], senders, receivers).view(edges, slices, -1)


Values = dict[str, Tensor | None]


def _call(argument: str, others: Values, path_count: int, ends: list[Tensor]) -> Tensor:
    """Return the derivative of F with respect to an argument.

    Args:
        argument: The name of the argument.
        others: The other arguments by name.
        path_count: The number of paths.
        ends: The path of each row, then `group`, `order` and `start` of the senders and of the receivers.
    """
    operator = getattr(torch.ops.gfm_harness, OPERATORS[argument])
    result: Tensor = operator(*(others[x] for x in OPERATORS if x != argument), path_count, ends)
    return result


def _name_inputs(argument: str, inputs: tuple[Any, ...]) -> tuple[dict[str, Any], int, list[Tensor]]:
    *tensors, path_count, ends = inputs
    return dict(zip((x for x in OPERATORS if x != argument), tensors, strict=True)), path_count, ends


def _get_shape(argument: str, others: dict[str, Any], path_count: int, ends: list[Tensor]) -> tuple[int, ...]:
    rows, senders, receivers = ends[0].shape[0], ends[3].shape[0] - 1, ends[6].shape[0] - 1
    components = others["h"].shape[1] if argument == "k" else others["k"].shape[2]
    features = others["h"].shape[2] if "h" in others else others["g"].shape[2]
    shapes = {
        "g": (receivers, rows, features), "k": (ends[1].shape[0], rows, components),
        "h": (senders, components, features), "w": (ends[1].shape[0], path_count, features),
    }  # fmt: skip
    return shapes[argument]


def _build_allocator(argument: str) -> Callable[..., Tensor]:
    def allocate(*inputs: Any) -> Tensor:
        return inputs[0].new_empty(_get_shape(argument, *_name_inputs(argument, inputs)))

    return allocate


def _build_default(argument: str) -> Callable[..., Tensor]:
    """Return a function that computes the operator with PyTorch's."""

    def compute(*inputs: Any) -> Tensor:
        others, path_count, ends = _name_inputs(argument, inputs)
        path, sender, receiver = ends[0], ends[1], ends[4]
        indices = {"g": (0, receiver), "h": (0, sender), "w": (1, path)}
        present = {x: value for x, value in others.items() if value is not None}
        of_edges = {x: value.index_select(*indices[x]) if x in indices else value for x, value in present.items()}
        of_edges.setdefault("w", inputs[0].new_ones(1, 1, 1))
        if argument == "k":
            return (of_edges["g"] * of_edges["w"]) @ of_edges["h"].transpose(1, 2)
        if argument == "h":
            products = of_edges["k"].transpose(1, 2) @ (of_edges["g"] * of_edges["w"])
        else:
            products = (of_edges["k"] @ of_edges["h"]) * of_edges["w" if argument == "g" else "g"]
        zero = products.new_zeros(_get_shape(argument, others, path_count, ends))
        return zero.index_add(*indices[argument], products)

    return compute


def _build_derivative(argument: str) -> Callable[..., Any]:
    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        names = [x for x in OPERATORS if x != argument]
        values: Values = dict(zip(names, ctx.saved_tensors[:3], strict=True)) | {argument: grad}
        ends = list(ctx.saved_tensors[3:])
        gradients = [
            _call(x, {y: value for y, value in values.items() if y != x}, ctx.path_count, ends) if needed else None
            for x, needed in zip(names, ctx.needs_input_grad, strict=False)
        ]
        return *gradients, None, [None] * len(ends)

    return differentiate


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.path_count, ends = inputs
    ctx.save_for_backward(*tensors, *ends)


for _argument, _name in OPERATORS.items():
    library.impl(f"{NAMESPACE}::{_name}", "CompositeExplicitAutograd", _build_default(_argument))
    library.register_fake(f"{NAMESPACE}::{_name}", _build_allocator(_argument))
    library.register_autograd(f"{NAMESPACE}::{_name}", _build_derivative(_argument), setup_context=_save_inputs)
