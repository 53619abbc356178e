"""What a call does: arithmetic by what it is of and in which type, and bytes that its operations read and write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.reference.kernels.arithmetic import FLOPS as MESSAGE_FLOPS

# Matrix products with a row for every edge, atom, or structure (the heads); and messages that one operator makes.
Of = Literal["edges", "nodes", "heads", "messages"]
# Share of all arithmetic that no ceiling is measured for.
SMALL = 0.01
_INDUCTOR_METRICS = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")


def name_of(dtype: torch.dtype) -> str:
    """`float64`."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Work:
    """flops: floating-point operations (2 per multiply-add), element-wise ones left out. bytes: read and written.

    Each operation reads its inputs from memory and writes its results there, as if nothing stayed in a cache.
    """

    flops: Counter[tuple[Of, torch.dtype]] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def kinds(self) -> set[tuple[Of, torch.dtype]]:
        """Those that count."""
        least = SMALL * self.flops.total()
        return {kind for kind, n in self.flops.items() if n > least}

    @property
    def matrix_flops(self) -> int:
        """Of matrix products alone."""
        return sum(n for (of, _), n in self.flops.items() if of != "messages")


def work(call: Callable[[], object], edges: int, graphs: int) -> Work:
    """Of one uncompiled call on a batch of so many edges and graphs."""
    with _Count(edges, graphs) as count:
        call()
    return count.work


class _Count(TorchDispatchMode):
    def __init__(self, edges: int, graphs: int) -> None:
        super().__init__()
        self.work = Work()
        self._edges, self._graphs = edges, graphs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, results = ([x for x in tree_leaves(t) if isinstance(x, Tensor)] for t in ((args, kwargs), out))
        if func._overloadpacket in flop_registry:
            flops = int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
            self.work.flops[self._of(inputs), results[0].dtype] += flops
        elif func.namespace == "gfm_harness":
            self.work.flops["messages", results[0].dtype] += MESSAGE_FLOPS[func._opname](*args)
        if not func.is_view:
            self.work.bytes += sum(x.nbytes for x in (*inputs, *results))
        return out

    def _of(self, inputs: list[Tensor]) -> Of:
        if any(self._edges in x.shape for x in inputs):
            return "edges"
        return "heads" if any(x.dim() == 3 or x.shape[0] <= self._graphs for x in inputs) else "nodes"


def compiled_bytes(first_call: Callable[[], object]) -> int | None:
    """Bytes that the compiler's kernels read and write in what the first call compiles; None where it does not say.

    Its kernels are fused; each counts its own inputs and results once.
    """
    _INDUCTOR_METRICS.setLevel(logging.INFO)
    _INDUCTOR_METRICS.propagate = False
    before = metrics.num_bytes_accessed
    first_call()
    return metrics.num_bytes_accessed - before or None
