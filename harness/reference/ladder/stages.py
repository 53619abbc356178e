"""The rungs: the paper's (Table XV), and those beyond it, a line per stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness.reference import inference
from harness.reference.batches import Batch
from harness.reference.inference import Predict, Prediction, batched_heads
from harness.reference.kernels import messages
from harness.reference.models.foundation import FoundationModel


def compiled(*, fused: bool = False) -> Predict:
    """batched_heads through torch.compile: energy and gradient in one graph, dynamic shapes, inductor."""
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(partial(batched_heads, fused=fused), dynamic=True, fullgraph=True)


def fused_messages() -> Predict:
    """As compiled, around PaiNN's messages as one operator for CPUs that writes no tensor of edges x features.

    What it gives raises build.CannotBuild without a compiler, and NoSuchKernel for another model or device.
    """
    run = compiled(fused=True)

    def predict(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        messages.check(model.config.backbone, batch.positions.device)
        messages.load()
        return run(model, batch, weights)

    return predict


@dataclass(frozen=True)
class Stage:
    """One rung: how it is made, whether it must agree with the baseline to rounding, and whether it is compiled.

    Compiled code may be not to be had; its arithmetic is hidden from counters.
    """

    name: str
    make: Callable[[], Predict]
    exact: bool = True
    compiled: bool = False


LADDER: tuple[Stage, ...] = (
    Stage("baseline", lambda: inference.baseline),
    Stage("encoder_reuse", lambda: inference.encoder_reuse),
    Stage("branch_skip", lambda: inference.branch_skip, exact=False),
    Stage("fused_gradient", lambda: inference.fused_gradient),
    Stage("batched_heads", lambda: inference.batched_heads),
    Stage("torch_compile", compiled, compiled=True),
    Stage("fused_messages", fused_messages, compiled=True),
)
