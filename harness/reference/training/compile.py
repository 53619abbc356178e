"""torch.compile for training: the force loss in one compiled function of dynamic shapes, or eager, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._dynamo.utils import counters

from harness.reference.data.batch import Batch
from harness.reference.distributed.launch import first_line
from harness.reference.training.loss import Errors, Labels

# Shapes are symbols. What would be compiled anew more often (batches of one graph, without edges, ...) stays eager.
RECOMPILE_LIMIT = 16


@dataclass(frozen=True)
class Compiled:
    """Whether compiled code runs, and if not, why not."""

    really: bool
    why_eager: str | None = None


def compiled_errors(module: nn.Module, example: tuple[Batch, Labels]) -> Compiled:
    """Compile the module's forward, if a first step on an example works; else leave it as it was."""
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.optimize_ddp = False  # it would cut the graph, and the gradient inside it, at bucket borders
    batch, labels = example
    leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
    drawn = torch.get_rng_state()
    try:
        module.compile(dynamic=True)
        of_graphs: Errors = module(leaf, labels)
        (of_graphs.energy.sum() + of_graphs.force.sum()).backward()
    except Exception as error:  # the compiler fails in as many ways as there are compilers
        module._compiled_call_impl = None
        return Compiled(False, first_line(error)[:300])
    finally:
        module.zero_grad()
        torch.set_rng_state(drawn)
    if counters["graph_break"]:
        return Compiled(True, f"in parts: {next(iter(counters['graph_break']))[:300]}")
    return Compiled(True)


def times_compiled() -> int:
    """How many graphs this process has compiled."""
    return int(counters["stats"]["unique_graphs"])
