"""The work of a call: floating-point operations by operand and type, and bytes read and written.

The counts of matrix products come from torch.utils.flop_counter. The counts of the operators of messages, which this
module registers there, follow the loops of ops/painn, those of heads the products in ops/own_heads.py, and those of the
couplings of neighbours the loops of ops/segments/couplings.h. Sums over edges do not count.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from harness.reference.inference.bucketing import Shape
from harness.reference.ops import (  # noqa: F401 (they define operators)
    activations,
    adaptive_scales,
    bounded_features,
    own_heads,
    pair_repulsion,
    products,
    radial_filters,
    segment_sums,
)
from harness.reference.ops.couplings import COUPLING
from harness.reference.ops.messages import NAMESPACE
from harness.reference.ops.triplets import TRIPLET_SUM

# Matrix products with one row per edge ("edges"), atom ("nodes") or structure ("heads"), and messages by an
# operator.
Category = Literal["edges", "nodes", "heads", "messages"]
Kind = tuple[Category, str]
# (m, k, n) of a product [m, k] x [k, n], or (b, m, k, n) of b such products.
Sizes = tuple[int, ...]
_aten = torch.ops.aten
_operators = torch.ops.gfm_harness
PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _operators.multiply_add}
# Sums, gathers and element-wise operations, which do not count.
UNCOUNTED = {
    *(getattr(_operators, name) for name in segment_sums.SCHEMAS),
    *(_operators.bound_features, _operators.bound_features_backward),
    *(_operators.repel_pairs, _operators.solve_scales, _operators.scaled_silu, _operators.sum_triple_products),
}
HEADS = {_operators.evaluate_own_heads, _operators.differentiate_own_heads}
TF32 = "tf32"
# The peak rate of a kind is measured only if the kind has at least this share of the arithmetic.
MIN_SHARE = 0.01
_INDUCTOR_METRICS = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")

# Operations per edge and feature, without the products with the columns of radial: (always, in addition if there is v).
FORWARD = (9, 7)  # always: 2 for s, 7 for the term in the direction; with v: 7 for the term in v
# always: 7 for the gradient of unit, 5 for the term in the direction, 2 for that of the filter; with v: 6 for W_v
BACKWARD = (14, 6)
BACKWARD_NODES = (4, 6)
FILTER = (7, 6)
# With tangents of radial and unit, and in addition (NODES) with those of phi and v.
SECOND, SECOND_NODES = (40, 13), (9, 30)
FILTER_SECOND, FILTER_SECOND_NODES = (7, 0), (2, 5)


def _count_per_edge_and_feature(v: Tensor | None, *counts: tuple[int, int]) -> int:
    return sum(always + (with_v if v is not None else 0) for always, with_v in counts)


def _count_parts(v: Tensor | None) -> int:
    return 2 if v is None else 3


@register_flop_formula(_operators.messages, get_raw=True)
def count_messages(phi: Tensor, v: Tensor | None, radial: Tensor, *_: Any, **__: Any) -> int:
    """Count the operations of gfm_harness::messages."""
    edges, columns = radial.shape
    per_feature = 2 * columns * _count_parts(v) + _count_per_edge_and_feature(v, FORWARD)
    return edges * (phi.shape[1] // _count_parts(v)) * per_feature


@register_flop_formula(_operators.messages_backward, get_raw=True)
def count_messages_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *rest: Any, **_: Any
) -> int:
    """Count the operations of gfm_harness::messages_backward.

    The gradients of radial and unit need one part of the filter, those of phi and v all parts.
    """
    edges, columns = radial.shape
    nodes = bool(rest[-1])
    filters = _count_parts(v) if nodes else 1
    counts = (BACKWARD, BACKWARD_NODES) if nodes else (BACKWARD,)
    per_feature = 2 * columns * (filters + _count_parts(v)) + _count_per_edge_and_feature(v, *counts)
    return edges * grad_s.shape[1] * per_feature


@register_flop_formula(_operators.filter_backward, get_raw=True)
def count_filter_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *_: Any, **__: Any
) -> int:
    """Count the operations of gfm_harness::filter_backward."""
    edges, columns = radial.shape
    return edges * grad_s.shape[1] * (2 * columns * _count_parts(v) + _count_per_edge_and_feature(v, FILTER))


@register_flop_formula(_operators.messages_second, get_raw=True)
def count_messages_second(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *rest: Any, **_: Any
) -> int:
    """Count the operations of gfm_harness::messages_second, which loops over receivers and then over senders."""
    edges, columns = radial.shape
    # filters and their tangents for receivers and for senders, and the gradient of radial
    factors = 7 + (3 if v is not None else 0)
    counts = [SECOND]
    if rest[4] is not None:
        factors += _count_parts(v) + (1 if v is not None else 0)
        counts.append(SECOND_NODES)
    return edges * grad_s.shape[1] * (2 * columns * factors + _count_per_edge_and_feature(v, *counts))


@register_flop_formula(_operators.filter_second, get_raw=True)
def count_filter_second(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *rest: Any, **_: Any
) -> int:
    """Count the operations of gfm_harness::filter_second."""
    edges, columns = radial.shape
    nodes = rest[3] is not None
    factors = 2 * _count_parts(v) if nodes else _count_parts(v) + 1
    counts = [FILTER, FILTER_SECOND, FILTER_SECOND_NODES] if nodes else [FILTER, FILTER_SECOND]
    return edges * grad_s.shape[1] * (2 * columns * factors + _count_per_edge_and_feature(v, *counts))


@register_flop_formula(_operators.multiply_add, get_raw=True)
def count_multiply_add(a: Tensor, b: Tensor, bias: Tensor | None, **_: Any) -> int:
    """Count the operations of gfm_harness::multiply_add, without those for the bias, as torch does for addmm."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


@register_flop_formula(_operators.radial_filters, get_raw=True)
def count_radial_filters(r: Tensor, *inputs: Any, **_: Any) -> int:
    """Count the operations of gfm_harness::radial_filters: the products for values and for slopes."""
    return 4 * r.shape[0] * _count_elements(inputs[-1][0::2])


@register_flop_formula(_operators.radial_filters_backward, get_raw=True)
def count_radial_filters_backward(grads: list[Tensor], r: Tensor, *inputs: Any, **_: Any) -> int:
    """Count the operations of gfm_harness::radial_filters_backward.

    It computes hidden layers and their slopes again, and their second derivatives if the gradient of r is needed. Each
    weight has two products for its gradient, and each outer weight two more for the gradients of hidden layers.
    """
    *_constants, layers, needs_r_grad = inputs
    inner = (5 if needs_r_grad else 4) * _count_elements(layers[0::4])
    return 2 * r.shape[0] * (inner + 4 * _count_elements(layers[2::4]))


def _count_elements(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _count_head_parameters(parameters: Sequence[Tensor]) -> int:
    """Return the number of weights of one head, without biases."""
    return sum(weight[0].numel() for weight in parameters[0::2])


@register_flop_formula(_operators.evaluate_own_heads, get_raw=True)
def count_evaluate_own_heads(x: Tensor, head: Tensor, parameters: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """Count the operations of gfm_harness::evaluate_own_heads: a product forward and one back in each layer."""
    return 4 * x.shape[0] * _count_head_parameters(parameters)


@register_flop_formula(_operators.differentiate_own_heads, get_raw=True)
def count_differentiate_own_heads(
    output_grad: Tensor, slope_grad: Tensor, x: Tensor, head: Tensor, parameters: Sequence[Tensor], *_: Any, **__: Any
) -> int:
    """Count the operations of gfm_harness::differentiate_own_heads: three products of twice as many rows."""
    return 12 * x.shape[0] * _count_head_parameters(parameters)


def count_couplings(argument: str, *inputs: Any, out_val: Tensor) -> int:
    """Count the operations of gfm_harness::couple_*, the derivative with respect to an argument of the couplings."""
    others = [x for x in COUPLING.operators if x != argument]
    values = zip((*others, argument), (*inputs[:3], out_val), strict=True)
    shapes = {x: value.shape for x, value in values if value is not None}
    edges, rows, components = shapes["k"]
    return edges * rows * shapes["h"][2] * (2 * components + 1)


def count_triplets(argument: str, *inputs: Any, out_val: Tensor) -> int:
    """Count the operations of gfm_harness::triplet_*, the derivative with respect to an argument of the sum."""
    others = [x for x in TRIPLET_SUM.operators if x != argument]
    shapes = {x: value.shape for x, value in zip((*others, argument), (*inputs[:4], out_val), strict=True)}
    edges, orders, functions = shapes["s"]
    return 2 * orders * shapes["w"][2] * (shapes["p"][0] + edges * (functions + 1))


for _argument, _name in COUPLING.operators.items():
    register_flop_formula(getattr(_operators, _name), get_raw=True)(functools.partial(count_couplings, _argument))
for _argument, _name in TRIPLET_SUM.operators.items():
    register_flop_formula(getattr(_operators, _name), get_raw=True)(functools.partial(count_triplets, _argument))


def format_dtype(dtype: torch.dtype) -> str:
    """Return the name of a data type, such as `float64`."""
    return str(dtype).removeprefix("torch.")


@dataclass
class WorkCount:
    """The work of a call.

    Attributes:
        flops: Floating-point operations by kind (2 per multiply-add), without element-wise operations.
        products: Floating-point operations of the matrix products of each kind, by the sizes of the product.
        bytes: Bytes read and written if each operation reads its inputs from memory and writes its results to memory.
    """

    flops: Counter[Kind] = field(default_factory=Counter)
    products: dict[Kind, Counter[Sizes]] = field(default_factory=dict)
    bytes: int = 0

    @property
    def kinds(self) -> dict[Kind, Sizes | None]:
        """The kinds with at least MIN_SHARE of the flops, each with its costliest sizes, or None for messages."""
        threshold = MIN_SHARE * self.flops.total()
        costliest = {kind: max(sizes, key=lambda s: sizes[s]) for kind, sizes in self.products.items()}
        return {kind: costliest.get(kind) for kind, n in self.flops.items() if n > threshold}

    @property
    def matrix_flops(self) -> int:
        """The floating-point operations of matrix products alone."""
        return sum(n for (category, _), n in self.flops.items() if category != "messages")


def count_work(call: Callable[[], object], shape: Shape) -> WorkCount:
    """Run a call without compilation on a batch of this shape, and count its work."""
    with _WorkCounter(shape) as counter:
        call()
    return counter.work


class _WorkCounter(TorchDispatchMode):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.work = WorkCount()
        # vector features have three rows per atom
        self._rows: dict[int, Category] = {shape.graphs: "heads", 3 * shape.atoms: "nodes", shape.atoms: "nodes"}
        self._rows |= {shape.edges: "edges"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, results = ([x for x in tree_leaves(t) if isinstance(x, Tensor)] for t in ((args, kwargs), out))
        packet = func._overloadpacket
        if packet in PRODUCTS:
            left, right = inputs[:2] if packet is _operators.multiply_add else inputs[-2:]
            sizes = (*left.shape, right.shape[-1])
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            kind = self._classify(sizes), find_product_dtype(results[0])
            self.work.flops[kind] += flops
            self.work.products.setdefault(kind, Counter())[sizes] += flops
        elif func.namespace == NAMESPACE and packet not in UNCOUNTED:
            category: Category = "heads" if packet in HEADS else "messages"
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            self.work.flops[category, format_dtype(results[0].dtype)] += flops
        if not func.is_view:
            self.work.bytes += sum(x.nbytes for x in (*inputs, *results))
        return out

    def _classify(self, sizes: Sizes) -> Category:
        """Classify a product by its number of rows, or else by its columns or its summed dimension.

        Products with other sizes, such as those over elements or weights, count as nodes.
        """
        *batch, m, k, n = sizes
        transposed = [category for size in (n, k) if (category := self._rows.get(size)) != "heads"]
        candidates = [*(self._rows.get(size) for size in (m, *batch)), *transposed]
        return next((category for category in candidates if category is not None), "nodes")


def find_product_dtype(product: Tensor) -> str:
    """Return the data type in which a product is computed: the type of its result, or TF32."""
    on_tensor_cores = product.is_cuda and torch.get_float32_matmul_precision() == "high"
    return TF32 if on_tensor_cores and product.dtype == torch.float32 else format_dtype(product.dtype)


def count_compiled_bytes(first_call: Callable[[], object]) -> int | None:
    """Return the bytes that compiled kernels read and write, or None if the first call compiles nothing.

    Each fused kernel counts its inputs and results once.
    """
    _INDUCTOR_METRICS.setLevel(logging.INFO)
    _INDUCTOR_METRICS.propagate = False
    before = metrics.num_bytes_accessed
    first_call()
    return metrics.num_bytes_accessed - before or None
