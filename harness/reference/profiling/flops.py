"""What a call does: arithmetic by what it is of and in which type, and bytes that its operations read and write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.reference.inference.bucketing import Shape
from harness.reference.ops.message_flops import FLOPS as MESSAGE_FLOPS

# Matrix products with a row for every edge, atom, or structure (the heads); and messages that one operator makes.
Of = Literal["edges", "nodes", "heads", "messages"]
Kind = tuple[Of, str]
# [b] m k n of products [m, k] [k, n], b of them where there is a fourth.
Sizes = tuple[int, ...]
_aten = torch.ops.aten
PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}
TF32 = "tf32"
# Share of all arithmetic that no ceiling is measured for.
SMALL = 0.01
_INDUCTOR_METRICS = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")


def name_of(dtype: torch.dtype) -> str:
    """`float64`."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Work:
    """flops: floating-point operations (2 per multiply-add), element-wise ones left out, by what they are of and type.

    products: of each kind, those of each size. bytes: read and written; each operation reads its inputs from memory and
    writes its results there, as if nothing stayed in a cache.
    """

    flops: Counter[Kind] = field(default_factory=Counter)
    products: dict[Kind, Counter[Sizes]] = field(default_factory=dict)
    bytes: int = 0

    @property
    def kinds(self) -> dict[Kind, Sizes | None]:
        """Those that count, with the sizes of the products that are most of each; None of messages."""
        least = SMALL * self.flops.total()
        most = {kind: max(sizes, key=lambda s: sizes[s]) for kind, sizes in self.products.items()}
        return {kind: most.get(kind) for kind, n in self.flops.items() if n > least}

    @property
    def matrix_flops(self) -> int:
        """Of matrix products alone."""
        return sum(n for (of, _), n in self.flops.items() if of != "messages")


def work(call: Callable[[], object], shape: Shape) -> Work:
    """Of one uncompiled call on a batch of this shape."""
    with _Count(shape) as count:
        call()
    return count.work


class _Count(TorchDispatchMode):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.work = Work()
        # vectors are three rows an atom
        self._rows: dict[int, Of] = {shape.graphs: "heads", 3 * shape.atoms: "nodes", shape.atoms: "nodes"}
        self._rows |= {shape.edges: "edges"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, results = ([x for x in tree_leaves(t) if isinstance(x, Tensor)] for t in ((args, kwargs), out))
        if func._overloadpacket in PRODUCTS:
            left, right = inputs[-2:]
            sizes = (*left.shape, right.shape[-1])
            kind = self._of(sizes), type_of(results[0])
            self.work.flops[kind] += 2 * prod(sizes)
            self.work.products.setdefault(kind, Counter())[sizes] += 2 * prod(sizes)
        elif func.namespace == "gfm_harness":
            self.work.flops["messages", name_of(results[0].dtype)] += MESSAGE_FLOPS[func._opname](*args)
        if not func.is_view:
            self.work.bytes += sum(x.nbytes for x in (*inputs, *results))
        return out

    def _of(self, sizes: Sizes) -> Of:
        """By the rows of the product, or what it sums over; one of neither, of elements or weights, is as of atoms."""
        *stack, m, k, n = sizes
        transposed = [of for size in (n, k) if (of := self._rows.get(size)) != "heads"]
        found = [*(self._rows.get(size) for size in (m, *stack)), *transposed]
        return next((of for of in found if of is not None), "nodes")


def type_of(product: Tensor) -> str:
    """The type in which a product is made: that of its result, or TF32."""
    on_tensor_cores = product.is_cuda and torch.get_float32_matmul_precision() == "high"
    return TF32 if on_tensor_cores and product.dtype == torch.float32 else name_of(product.dtype)


def compiled_bytes(first_call: Callable[[], object]) -> int | None:
    """Bytes that the compiler's kernels read and write in what the first call compiles; None where it does not say.

    Its kernels are fused; each counts its own inputs and results once.
    """
    _INDUCTOR_METRICS.setLevel(logging.INFO)
    _INDUCTOR_METRICS.propagate = False
    before = metrics.num_bytes_accessed
    first_call()
    return metrics.num_bytes_accessed - before or None
