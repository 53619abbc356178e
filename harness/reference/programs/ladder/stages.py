"""The stages of the inference ladder: those of the paper (Table XV), and further ones."""

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
from harness.reference.ops.compiler import configure_compiler

Function = Callable[..., Prediction]
Compiler = Callable[[Function], Function]
MAX_COMPILED_SHAPES = 64  # a stage with static shapes is compiled for each of them


class StageUnavailable(RuntimeError):
    """A stage does not support the model or the device; the message has the reason."""


def leave_eager(function: Function) -> Function:
    """Return the function unchanged."""
    return function


@functools.cache
def compile_dynamic(function: Function) -> Function:
    """Compile the energy and its gradient as one graph with dynamic shapes."""
    return _compile(function, dynamic=True)


@functools.cache
def compile_static(function: Function) -> Function:
    """Compile the energy and its gradient as one graph for each shape; on a GPU, it runs as a single CUDA graph."""
    on_gpu = torch.cuda.is_available()
    return _compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)


def _compile(function: Function, **options: Any) -> Function:
    """Compile a function with torch.compile, with the kernels named in profiles."""
    configure_compiler()
    torch._dynamo.config.trace_autograd_ops = True
    # the numbers of a model, such as its cutoff, are constants: as inputs they would make torch trace everything twice
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    torch._inductor.config.cpp.enable_kernel_profile = True
    compiled: Function = torch.compile(function, fullgraph=True, **options)
    return compiled


@functools.cache
def _set_fused(function: Function, fused: bool) -> Function:
    """Return the function with `fused` set; equal arguments give the same object, by which compiled code is cached."""
    return partial(function, fused=fused)


def fused_messages(compiler: Compiler = compile_dynamic) -> Predict:
    """Return `batched_heads` with fused messages: a single operator, which writes no tensor [edges, features].

    The returned function raises BuildError if there is no C++ compiler, and UnsupportedKernel if the operator does not
    support the model or the device.
    """
    run = compiler(_set_fused(batched_heads, True))

    def predict(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        messages.check(model.config.network, batch.positions.device)
        messages.load(batch.positions.device)
        return run(model, batch, weights)

    return predict


def _can_fuse(model: FoundationModel, batch: Batch) -> bool:
    """Return whether fused messages support the model and the device; raise BuildError if they cannot be built."""
    device = batch.positions.device
    try:
        messages.check(model.config.network, device)
        messages.load(device)
    except messages.UnsupportedKernel:
        return False
    return True


@dataclass
class StaticGraphs:
    """A function of a stage that pads batches to a few static shapes.

    Attributes:
        run: The function that predicts a padded batch.
        buckets: The static shapes so far.
    """

    run: Function
    buckets: ShapeBuckets = field(default_factory=ShapeBuckets)

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """Pad the batch, predict, and remove the padding; raise StageUnavailable if the model needs pairs of edges."""
        if model.config.needs_triplets:
            raise StageUnavailable("pairs of edges have no static shape")
        shape = self.buckets.assign(get_shape(batch))
        padded = pad_batch(batch, shape, model.config.cutoff)
        if batch.head.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        result = self.run(model, padded, pad_rows(weights, shape.graphs))
        energy, forces = result.energy[: len(batch.head)], result.forces[: len(batch.numbers)]
        # the results are copied, since a CUDA graph reuses their memory in the next call
        return Prediction(energy.clone(), forces.clone()) if batch.head.is_cuda else Prediction(energy, forces)


@dataclass
class MixedPrecision:
    """Low precision for the matrix products of the encoder; the rest is as in `prediction.mixed_precision`.

    Attributes:
        compiler: The function that compiles the stage.
        products: The type of the matrix products.
        low: The copy of the model in low precision, which the first call makes.
    """

    compiler: Compiler
    products: Literal["bf16", "tf32"]
    low: FoundationModel | None = None

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """Predict with products in low precision; raise StageUnavailable for TF32 on a device that lacks it."""
        if self.low is None:
            if self.products == "tf32" and not batch.head.is_cuda:
                raise StageUnavailable(f"{batch.head.device.type} has no TF32")
            self.low = copy.deepcopy(model).float()
            self.low.autocast = torch.bfloat16 if self.products == "bf16" else None
        run = self.compiler(_set_fused(prediction.mixed_precision, _can_fuse(model, batch)))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.products == "tf32" else before)
        try:
            return run(model, self.low, batch, weights)
        finally:
            torch.set_float32_matmul_precision(before)


def static_graphs(compiler: Compiler = compile_static) -> Predict:
    """Return `batched_heads` on static shapes, with fused messages if the model and the device support them."""

    def run(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        return compiler(_set_fused(batched_heads, _can_fuse(model, batch)))(model, batch, weights)

    return StaticGraphs(run)


def mixed_precision(compiler: Compiler = compile_static, products: Literal["bf16", "tf32"] = "bf16") -> Predict:
    """Return `MixedPrecision` on static shapes."""
    return StaticGraphs(MixedPrecision(compiler, products))


@dataclass(frozen=True)
class Stage:
    """A stage of the ladder.

    Attributes:
        name: The name of the stage.
        make: Returns the function of the stage for a given compiler.
        exact: Whether the stage must agree with the baseline except for rounding errors.
        compiler: The compiler of the stage; None: the stage is not compiled. A compiled stage may be unavailable.
        tuned_allocator: Whether the stage runs with the tuned allocator.
    """

    name: str
    make: Callable[[Compiler], Predict]
    exact: bool = True
    compiler: Compiler | None = None
    tuned_allocator: bool = False

    def predict(self) -> Predict:
        """Return the function of the stage, compiled if it has a compiler."""
        return self.make(self.compiler or leave_eager)

    def predict_eager(self) -> Predict:
        """Return the function of the stage without compilation, whose operations can be counted."""
        return self.make(leave_eager)


# For each stage: its `make`, its compiler, and whether the allocator is tuned (see `Stage`).
IMPLEMENTATIONS: dict[StageName, tuple[Callable[[Compiler], Predict], Compiler | None, bool]] = {
    "baseline": (lambda _: prediction.baseline, None, False),
    "encoder_reuse": (lambda _: prediction.encoder_reuse, None, False),
    "branch_skip": (lambda _: prediction.branch_skip, None, False),
    "fused_gradient": (lambda _: prediction.fused_gradient, None, False),
    "batched_heads": (lambda _: batched_heads, None, False),
    "torch_compile": (lambda compiler: compiler(batched_heads), compile_dynamic, False),
    "tuned_allocator": (lambda compiler: compiler(batched_heads), compile_dynamic, True),
    "fused_messages": (fused_messages, compile_dynamic, True),
    "static_graphs": (static_graphs, compile_static, True),
    "mixed_precision": (mixed_precision, compile_static, True),
}
LADDER: tuple[Stage, ...] = tuple(
    Stage(name, make, name not in APPROXIMATE, compiler, tuned)
    for name, (make, compiler, tuned) in ((name, IMPLEMENTATIONS[name]) for name in STAGES)
)


def select_stages(parameters: LadderParameters) -> tuple[Stage, ...]:
    """Return the stages of a case, in the order of the ladder."""
    make = partial(mixed_precision, products=parameters.matmul_precision)
    stages = [stage for stage in LADDER if stage.name in parameters.stages]
    return tuple(replace(stage, make=make) if stage.name == "mixed_precision" else stage for stage in stages)
