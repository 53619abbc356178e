"""torch.compile for training: the force loss as one compiled function of dynamic shapes, or eager with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._dynamo.utils import counters

from harness.reference.data.batch import Batch
from harness.reference.errors import get_first_line
from harness.reference.training.loss import Errors, Labels

# Shapes are symbolic. Batches that would need further compilations (of one graph, without edges, ...) stay eager.
RECOMPILE_LIMIT = 16


@dataclass(frozen=True)
class CompileResult:
    """Whether compiled code runs, and why not, or why only in parts."""

    active: bool
    eager_reason: str | None = None


def compile_loss(module: nn.Module, example: tuple[Batch, Labels]) -> CompileResult:
    """Compile the forward method of a module in place, if a first step on an example works.

    Args:
        module: (batch, labels) -> Errors.
        example: A batch with its labels.
    """
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.optimize_ddp = False  # it would cut the graph, and the gradient inside it, at bucket borders
    batch, labels = example
    leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
    rng_state = torch.get_rng_state()
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
