"""The stages of the ladder: those of the paper (Table XV) and those beyond it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from harness.protocol.programs.ladder import APPROXIMATE, STAGES, LadderParameters, StageName
from harness.reference.data.batch import Batch
from harness.reference.inference import prediction
from harness.reference.inference.bucketing import ShapeBuckets, get_shape, pad_batch, pad_rows
from harness.reference.inference.prediction import Predict, Prediction, batched_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages

Function = Callable[..., Prediction]
Compiler = Callable[[Function], Function]
MAX_COMPILED_SHAPES = 64  # a static stage compiles each shape


class StageUnavailable(RuntimeError):
    """The stage does not support this model or device; the message says why."""


def leave_eager(function: Function) -> Function:
    """Return the function unchanged."""
    return function


@functools.cache
def compile_dynamic(function: Function) -> Function:
    """Compile energy and gradient as one graph with dynamic shapes, by inductor."""
    return _compile(function, dynamic=True)


@functools.cache
def compile_static(function: Function) -> Function:
    """Compile energy and gradient as one graph for each shape; on CUDA, its kernels launch as one CUDA graph."""
    on_gpu = torch.cuda.is_available()
    return _compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)


def _compile(function: Function, **options: Any) -> Function:
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    torch._inductor.config.cpp.enable_kernel_profile = True  # names the kernels in a profile
    compiled: Function = torch.compile(function, fullgraph=True, **options)
    return compiled


@functools.cache
def _formulation(function: Function, fused: bool) -> Function:
    """Return one object for equal arguments, since compiled code is cached by the identity of the function."""
    return partial(function, fused=fused)


def fused_messages(compiler: Compiler = compile_dynamic) -> Predict:
    """Return `batched_heads` with fused messages: one operator that writes no tensor of edges x features.

    The function that is returned raises BuildError without a compiler, and UnsupportedKernel for another model or
    device.
    """
    run = compiler(_formulation(batched_heads, True))

    def predict(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        messages.check(model.config.network, batch.positions.device)
        messages.load(batch.positions.device)
        return run(model, batch, weights)

    return predict


def _can_fuse(model: FoundationModel, batch: Batch) -> bool:
    """Return whether the model has fused messages on this device; raise BuildError if only a compiler is missing."""
    device = batch.positions.device
    try:
        messages.check(model.config.network, device)
        messages.load(device)
    except messages.UnsupportedKernel:
        return False
    return True


@dataclass
class StaticGraphs:
    """A formulation on batches padded to a few shapes, with fused messages where the model has them.

    Attributes:
        run: The formulation.
        buckets: The shapes so far.
    """

    run: Function
    buckets: ShapeBuckets = field(default_factory=ShapeBuckets)

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """Pad the batch, run, and cut off the padding; raise StageUnavailable for models that need pairs of edges."""
        if model.config.needs_triplets:
            raise StageUnavailable("pairs of edges have no static shape")
        shape = self.buckets.assign(get_shape(batch))
        padded = pad_batch(batch, shape, model.config.cutoff)
        if batch.head.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        result = self.run(model, padded, pad_rows(weights, shape.graphs))
        energy, forces = result.energy[: len(batch.head)], result.forces[: len(batch.numbers)]
        # a CUDA graph writes its next results to the same memory
        return Prediction(energy.clone(), forces.clone()) if batch.head.is_cuda else Prediction(energy, forces)


@dataclass
class MixedPrecision:
    """Low precision for the matrix products of the encoder; the rest is as in `prediction.mixed_precision`.

    Attributes:
        wrap: The way to compile.
        products: Type of the matrix products.
        low: The copy of the model in low precision, made by the first call.
    """

    wrap: Compiler
    products: Literal["bf16", "tf32"]
    low: FoundationModel | None = None

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """Predict with low-precision products; raise StageUnavailable for TF32 on a device without it."""
        if self.low is None:
            if self.products == "tf32" and not batch.head.is_cuda:
                raise StageUnavailable(f"{batch.head.device.type} has no TF32")
            self.low = copy.deepcopy(model).float()
            self.low.autocast = torch.bfloat16 if self.products == "bf16" else None
        run = self.wrap(_formulation(prediction.mixed_precision, _can_fuse(model, batch)))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.products == "tf32" else before)
        try:
            return run(model, self.low, batch, weights)
        finally:
            torch.set_float32_matmul_precision(before)


def static_graphs(compiler: Compiler = compile_static) -> Predict:
    """Return the batched heads on static shapes."""

    def run(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        return compiler(_formulation(batched_heads, _can_fuse(model, batch)))(model, batch, weights)

    return StaticGraphs(run)


def mixed_precision(compiler: Compiler = compile_static, products: Literal["bf16", "tf32"] = "bf16") -> Predict:
    """Return mixed precision on static shapes."""
    return StaticGraphs(MixedPrecision(compiler, products))


@dataclass(frozen=True)
class Stage:
    """A stage of the ladder.

    Attributes:
        name: Name of the stage.
        make: Returns the function of the stage for a way to compile it.
        exact: Whether it must agree with the baseline to rounding.
        compiler: The way to compile it, None for eager code; a compiled stage may be unavailable.
        tuned_allocator: Whether it runs with the tuned allocator.
    """

    name: str
    make: Callable[[Compiler], Predict]
    exact: bool = True
    compiler: Compiler | None = None
    tuned_allocator: bool = False

    def predict(self) -> Predict:
        """Return the function of the stage."""
        return self.make(self.compiler or leave_eager)

    def predict_eager(self) -> Predict:
        """Return the same arithmetic as eager code, which can be counted."""
        return self.make(leave_eager)


# Stage -> its function for a way to compile it, that way, and whether the allocator is tuned.
IMPLEMENTATIONS: dict[StageName, tuple[Callable[[Compiler], Predict], Compiler | None, bool]] = {
    "baseline": (lambda _: prediction.baseline, None, False),
    "encoder_reuse": (lambda _: prediction.encoder_reuse, None, False),
    "branch_skip": (lambda _: prediction.branch_skip, None, False),
    "fused_gradient": (lambda _: prediction.fused_gradient, None, False),
    "batched_heads": (lambda _: batched_heads, None, False),
    "torch_compile": (lambda wrap: wrap(batched_heads), compile_dynamic, False),
    "tuned_allocator": (lambda wrap: wrap(batched_heads), compile_dynamic, True),
    "fused_messages": (fused_messages, compile_dynamic, True),
    "static_graphs": (static_graphs, compile_static, True),
    "mixed_precision": (mixed_precision, compile_static, True),
}
LADDER: tuple[Stage, ...] = tuple(
    Stage(name, make, name not in APPROXIMATE, compiled, tuned)
    for name, (make, compiled, tuned) in ((name, IMPLEMENTATIONS[name]) for name in STAGES)
)


def select_stages(parameters: LadderParameters) -> tuple[Stage, ...]:
    """Return the stages of a case, in the order of the ladder."""
    make = partial(mixed_precision, products=parameters.matmul_precision)
    stages = [stage for stage in LADDER if stage.name in parameters.stages]
    return tuple(replace(stage, make=make) if stage.name == "mixed_precision" else stage for stage in stages)
