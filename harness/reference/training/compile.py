"""torch.compile for training: compile the loss with forces as one function, or record why it stays eager."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._dynamo.utils import counters

from harness.reference.data.batch import Batch
from harness.reference.errors import get_first_line
from harness.reference.ops.compiler import configure_compiler
from harness.reference.training.loss import Errors, Labels

# Shapes are symbolic, but some batches, such as those of one graph or without edges, need a compilation of their own.
# After this number of compilations, further ones run eagerly.
RECOMPILE_LIMIT = 16


@dataclass(frozen=True)
class CompileResult:
    """The result of a compilation.

    Attributes:
        active: Whether compiled code runs.
        eager_reason: Why nothing, or only a part of the module, is compiled; else None.
    """

    active: bool
    eager_reason: str | None = None


def compile_loss(module: nn.Module, example: tuple[Batch, Labels]) -> CompileResult:
    """Compile the forward method of a module in place, if a first step on an example works.

    Args:
        module: (batch, labels) -> Errors.
        example: A batch with its labels.
    """
    configure_compiler()
    torch._dynamo.config.trace_autograd_ops = True
    # the numbers of a model, such as its cutoff, are constants: as inputs they would make torch trace everything twice
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    # otherwise the graph, which contains the gradient for the forces, would be split at the borders of DDP's buckets
    torch._dynamo.config.optimize_ddp = False
    batch, labels = example
    leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
    rng_state = torch.get_rng_state()
    counters["graph_break"].clear()  # of other modules that this process has compiled
    try:
        module.compile(dynamic=True)
        graph_errors: Errors = module(leaf, labels)
        (graph_errors.energy.sum() + graph_errors.force.sum()).backward()
    except Exception as error:  # each compiler raises its own errors
        module._compiled_call_impl = None
        return CompileResult(False, get_first_line(error)[:300])
    finally:
        module.zero_grad()
        torch.set_rng_state(rng_state)
    if counters["graph_break"]:
        return CompileResult(True, f"in parts: {next(iter(counters['graph_break']))[:300]}")
    return CompileResult(True)


def count_compiled_graphs() -> int:
    """Return the number of graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])
