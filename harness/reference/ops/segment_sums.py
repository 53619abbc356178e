"""Gathers of rows and sums over groups of rows, each other's derivatives, without atomic additions on CPUs.

Compilers turn `index_add`, and the gradient of `index_select`, into atomic additions, which gain nothing from a second
thread. Here, one thread computes each row of a result and adds its terms in a fixed order: results do not depend on the
number of threads. The operators are differentiable any number of times, since the derivatives of each are among them.

    gather(x, a)[e]                   = x[a[e]]
    segment_sum(x, a)[i]              = sum of x[e] over a[e] = i
    product_sum(x, w, a, b)[i]        = sum of x[a[e]] w[e] over b[e] = i, or of x[a[e]] w[c[e]] with weight_rows c
    gather_product(x, y, a, b)[e]     = x[a[e]] y[b[e]]

Without the C++ operators (other devices, or no compiler), PyTorch's own operators compute the same functions.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from harness.reference.ops import jit_build

SOURCES = Path(__file__).with_name("segments")
NAMESPACE = "gfm_harness"
PAIR = "Tensor a_index, Tensor a_order, Tensor a_start, Tensor b_index, Tensor b_order, Tensor b_start"
SCHEMAS = {
    "group_rows": "(Tensor index, SymInt groups) -> (Tensor, Tensor)",
    "pair_edges": "(Tensor receiver, Tensor sender, Tensor shift, Tensor order, Tensor start) -> (Tensor, Tensor)",
    "gather": "(Tensor x, Tensor index, Tensor order, Tensor start, int dim) -> Tensor",
    "segment_sum": "(Tensor x, Tensor index, Tensor order, Tensor start, int dim) -> Tensor",
    "product_sum": f"(Tensor x, Tensor weight, {PAIR}, Tensor[] weight_rows, int dim) -> Tensor",
    "gather_product": f"(Tensor x, Tensor y, {PAIR}, int dim) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


class Grouping(NamedTuple):
    """The group of each row of a tensor, such as the receiver of each edge.

    Attributes:
        group: [e] the index of the group of each row.
        order: [e] the rows sorted by group, in their original order within a group.
        start: [n + 1] the position in `order` at which each group starts.
    """

    group: Tensor
    order: Tensor
    start: Tensor


@functools.cache
def load() -> str | None:
    """Load the C++ operators, which a compiler builds the first time; return why they cannot be used, or None."""
    try:
        jit_build.load(SOURCES)
    except jit_build.BuildError as error:
        return str(error)
    return None


def find_default_reason(device: torch.device | str) -> str | None:
    """Return why PyTorch's functions compute the sums on a CPU; None on other devices, where they always do."""
    return load() if torch.device(device).type == "cpu" else None


def group_rows(index: Tensor, groups: int) -> Grouping:
    """Sort rows by the index [e] of their group, 0 <= index < groups."""
    return Grouping(index, *_operators.group_rows(index, groups))


def pair_edges(receivers: Grouping, senders: Grouping, shift: Tensor) -> tuple[Grouping, Grouping] | None:
    """Find the edges that are each other's reverse, with the opposite shift, and so have the same length.

    Return the pair of each edge, and the first edge of each pair; an edge without a reverse is alone in its pair.
    Return None where the C++ operators are not loaded, and to compilers, which would not know the number of pairs.

    Args:
        receivers: The receiver of each edge.
        senders: The sender of each edge.
        shift: [e, 3] translation from each sender to its periodic image.
    """
    if torch.compiler.is_compiling() or shift.device.type != "cpu" or load() is not None:
        return None
    pair, first = _operators.pair_edges(receivers.group, senders.group, shift, receivers.order, receivers.start)
    return group_rows(pair, first.shape[0]), group_rows(first, pair.shape[0])


def gather(x: Tensor, rows: Grouping, dim: int = 0) -> Tensor:
    """Return x[group of e] for each row e, [e, ...]; x is [n, ...] and dim the dimension of the rows."""
    result: Tensor = _operators.gather(x, *rows, dim)
    return result


def segment_sum(x: Tensor, rows: Grouping, dim: int = 0) -> Tensor:
    """Return the sum of the rows of x [e, ...] of each group, [n, ...]; dim is the dimension of the rows."""
    result: Tensor = _operators.segment_sum(x, *rows, dim)
    return result


def product_sum(
    x: Tensor,
    weight: Tensor,
    senders: Grouping,
    receivers: Grouping,
    dim: int = 0,
    *,
    weight_rows: Grouping | None = None,
) -> Tensor:
    """Return the sum of sent rows times weights over the edges of each receiver, [m, ...].

    Args:
        x: [n, ...], a row for each sender.
        weight: [e, ...], or [w, ...] with weight_rows.
        senders: The group in x of each edge.
        receivers: The group in the result of each edge.
        dim: The dimension of the rows; those before it are equal in x, weight and result.
        weight_rows: The row of the weight of each edge; None: each edge has its own.
    """
    factors = _promote(x, weight)
    result: Tensor = _operators.product_sum(*factors, *senders, *receivers, list(weight_rows or ()), dim)
    return result


def gather_product(x: Tensor, y: Tensor, x_rows: Grouping, y_rows: Grouping, dim: int = 0) -> Tensor:
    """Return the products of the rows of x [n, ...] and y [m, ...] that belong to each row, [e, ...]."""
    result: Tensor = _operators.gather_product(*_promote(x, y), *x_rows, *y_rows, dim)
    return result


def _promote(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to the type of their product, which matters under autocast."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _group_rows_default(index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    ordered, order = torch.sort(index, stable=True)
    return order, torch.searchsorted(ordered, torch.arange(groups + 1, dtype=index.dtype, device=index.device))


def _gather_default(x: Tensor, index: Tensor, order: Tensor, start: Tensor, dim: int) -> Tensor:
    return x.index_select(dim, index)


def _segment_sum_default(x: Tensor, index: Tensor, order: Tensor, start: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(_allocate_segment_sum(x, index, order, start, dim)).index_add(dim, index, x)


def _product_sum_default(x: Tensor, weight: Tensor, *rows_and_dim: Any) -> Tensor:
    senders, _, _, index, order, start, weight_rows, dim = rows_and_dim
    factor = weight.index_select(dim, weight_rows[0]) if weight_rows else weight
    return _segment_sum_default(x.index_select(dim, senders) * factor, index, order, start, dim)


def _gather_product_default(x: Tensor, y: Tensor, *pair_and_dim: Any) -> Tensor:
    dim = pair_and_dim[-1]
    return x.index_select(dim, pair_and_dim[0]) * y.index_select(dim, pair_and_dim[3])


def _allocate_group_rows(index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return index.new_empty(index.shape, dtype=torch.int64), index.new_empty(groups + 1, dtype=torch.int64)


def _allocate_rows(x: Tensor, rows: int, dim: int) -> Tensor:
    return x.new_empty(*x.shape[:dim], rows, *x.shape[dim + 1 :])


def _allocate_gather(x: Tensor, index: Tensor, order: Tensor, start: Tensor, dim: int) -> Tensor:
    return _allocate_rows(x, index.shape[0], dim)


def _allocate_segment_sum(x: Tensor, index: Tensor, order: Tensor, start: Tensor, dim: int) -> Tensor:
    return _allocate_rows(x, start.shape[0] - 1, dim)


def _allocate_product_sum(x: Tensor, weight: Tensor, *rows_and_dim: Any) -> Tensor:
    return _allocate_rows(x, rows_and_dim[5].shape[0] - 1, rows_and_dim[-1])


def _allocate_gather_product(x: Tensor, y: Tensor, *pair_and_dim: Any) -> Tensor:
    return _allocate_rows(x, pair_and_dim[0].shape[0], pair_and_dim[-1])


def _differentiate_gather(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return segment_sum(grad, Grouping(*ctx.saved_tensors), ctx.dim), None, None, None, None


def _differentiate_segment_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gather(grad, Grouping(*ctx.saved_tensors), ctx.dim), None, None, None, None


def _differentiate_product_sum(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *rows = ctx.saved_tensors
    senders, receivers = Grouping(*rows[:3]), Grouping(*rows[3:6])
    weight_rows = Grouping(*rows[6:]) if rows[6:] else None
    x_grad = weight_grad = None
    if ctx.needs_input_grad[0]:
        x_grad = product_sum(grad, weight, receivers, senders, ctx.dim, weight_rows=weight_rows)
    if ctx.needs_input_grad[1]:
        weight_grad = (
            gather_product(x, grad, senders, receivers, ctx.dim)
            if weight_rows is None
            else product_sum(x, grad, senders, weight_rows, ctx.dim, weight_rows=receivers)
        )
    return x_grad, weight_grad, *(None,) * 6, [None] * len(rows[6:]), None


def _differentiate_gather_product(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, *pair = ctx.saved_tensors
    x_rows, y_rows = Grouping(*pair[:3]), Grouping(*pair[3:])
    x_grad = product_sum(y, grad, y_rows, x_rows, ctx.dim) if ctx.needs_input_grad[0] else None
    y_grad = product_sum(x, grad, x_rows, y_rows, ctx.dim) if ctx.needs_input_grad[1] else None
    return x_grad, y_grad, *(None,) * 7


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[1:-1])
    ctx.dim = inputs[-1]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, last, _ = inputs
    ctx.save_for_backward(*tensors, *(last if isinstance(last, list) else [last]))
    ctx.dim = inputs[-1]


def _trace(name: str, default: Any) -> None:
    """Let compilers see an operator as PyTorch's functions, which they fuse with others."""

    def trace(mode: Any, func: object, types: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            return default(*args, **kwargs)

    library.register_torch_dispatch(f"{NAMESPACE}::{name}", ProxyTorchDispatchMode, trace)


for _name, _default, _allocate, _derivative in (
    ("group_rows", _group_rows_default, _allocate_group_rows, None),
    ("gather", _gather_default, _allocate_gather, (_differentiate_gather, _save_rows)),
    ("segment_sum", _segment_sum_default, _allocate_segment_sum, (_differentiate_segment_sum, _save_rows)),
    ("product_sum", _product_sum_default, _allocate_product_sum, (_differentiate_product_sum, _save_inputs)),
    (
        "gather_product",
        _gather_product_default,
        _allocate_gather_product,
        (_differentiate_gather_product, _save_inputs),
    ),
):
    library.impl(f"{NAMESPACE}::{_name}", "CompositeExplicitAutograd", _default)
    library.register_fake(f"{NAMESPACE}::{_name}", _allocate)
    if _derivative is not None:
        library.register_autograd(f"{NAMESPACE}::{_name}", _derivative[0], setup_context=_derivative[1])
for _name, _default in (("gather", _gather_default), ("gather_product", _gather_product_default)):
    _trace(_name, _default)
