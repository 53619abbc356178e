"""The rungs: the paper's (Table XV), and those beyond it, a line per stage."""

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
from harness.reference.inference.bucketing import ShapeBuckets, pad_batch, pad_rows, shape_of
from harness.reference.inference.prediction import Predict, Prediction, batched_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages

Function = Callable[..., Prediction]
Wrap = Callable[[Function], Function]
# Static shapes are compiled one by one.
MOST_SHAPES = 64


class StageUnavailable(RuntimeError):
    """A stage is not to be had for this model or device; the message says why."""


def no_compile(function: Function) -> Function:
    """The function as it is."""
    return function


@functools.cache
def dynamic(function: Function) -> Function:
    """Through torch.compile: energy and gradient in one graph, dynamic shapes, inductor."""
    return _compiled(function, dynamic=True)


@functools.cache
def static(function: Function) -> Function:
    """As dynamic, for each shape anew; on GPUs that have them, as one graph of kernels launched at once."""
    on_gpu = torch.cuda.is_available()
    return _compiled(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)


def _compiled(function: Function, **options: Any) -> Function:
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._inductor.config.cpp.enable_kernel_profile = True  # so that a profile can name what runs
    made: Function = torch.compile(function, fullgraph=True, **options)
    return made


@functools.cache
def _formulation(function: Function, fused: bool) -> Function:
    """One object for each, since what is compiled is known by it."""
    return partial(function, fused=fused)


def fused_messages(wrap: Wrap = dynamic) -> Predict:
    """As compiled, around PaiNN's messages as one operator that writes no tensor of edges x features.

    What it gives raises build.CannotBuild without a compiler, and NoSuchKernel for another model or device.
    """
    run = wrap(_formulation(batched_heads, True))

    def predict(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        messages.check(model.config.backbone, batch.positions.device)
        messages.load(batch.positions.device)
        return run(model, batch, weights)

    return predict


def _fused(model: FoundationModel, batch: Batch) -> bool:
    """Whether the messages can be one operator here; raises build.CannotBuild if only a compiler is missing."""
    device = batch.positions.device
    try:
        messages.check(model.config.backbone, device)
        messages.load(device)
    except messages.UnsupportedKernel:
        return False
    return True


@dataclass
class StaticGraphs:
    """On batches that are filled up to a few shapes, with fused messages where the model has them.

    Raises NotHere for models of pairs of edges.
    """

    run: Function
    buckets: ShapeBuckets = field(default_factory=ShapeBuckets)

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """Fill up, run, and cut off what was filled up."""
        if model.config.needs_triplets:
            raise StageUnavailable("pairs of edges have no static shape")
        shape = self.buckets.assign(shape_of(batch))
        full = pad_batch(batch, shape, model.config.cutoff)
        if batch.head.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        got = self.run(model, full, pad_rows(weights, shape.graphs))
        energy, forces = got.energy[: len(batch.head)], got.forces[: len(batch.numbers)]
        # a graph of kernels writes its next results to the same place
        return Prediction(energy.clone(), forces.clone()) if batch.head.is_cuda else Prediction(energy, forces)


@dataclass
class MixedPrecision:
    """Matrix products of the encoder in bfloat16 or TF32, all else as prediction.mixed_precision has it; not exact."""

    wrap: Wrap
    products: Literal["bf16", "tf32"]
    low: FoundationModel | None = None

    def __call__(self, model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        """The products in the type asked for; raises NotHere for TF32 where there is none."""
        if self.low is None:
            if self.products == "tf32" and not batch.head.is_cuda:
                raise StageUnavailable(f"{batch.head.device.type} has no TF32")
            self.low = copy.deepcopy(model).float()
            self.low.autocast = torch.bfloat16 if self.products == "bf16" else None
        run = self.wrap(_formulation(prediction.mixed_precision, _fused(model, batch)))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.products == "tf32" else before)
        try:
            return run(model, self.low, batch, weights)
        finally:
            torch.set_float32_matmul_precision(before)


def static_graphs(wrap: Wrap = static) -> Predict:
    """See StaticGraphs."""

    def run(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
        return wrap(_formulation(batched_heads, _fused(model, batch)))(model, batch, weights)

    return StaticGraphs(run)


def mixed_precision(wrap: Wrap = static, products: Literal["bf16", "tf32"] = "bf16") -> Predict:
    """static_graphs around MixedPrecision."""
    return StaticGraphs(MixedPrecision(wrap, products))


@dataclass(frozen=True)
class Stage:
    """One rung.

    make: returns the stage, given a way to compile; `uncompiled` is one too. exact: whether it must agree with the
    baseline to rounding. compiled: the way it is compiled, and then it may be unavailable. tuned: whether it runs with
    the tuned allocator.
    """

    name: str
    make: Callable[[Wrap], Predict]
    exact: bool = True
    compiled: Wrap | None = None
    tuned: bool = False

    def predict(self) -> Predict:
        """Return the stage as it runs."""
        return self.make(self.compiled or no_compile)

    def predict_eager(self) -> Predict:
        """Return the same arithmetic uncompiled, so that it can be counted."""
        return self.make(no_compile)


# Stage -> how it is made, the way it is compiled, and whether the allocator is tuned.
IMPLEMENTATIONS: dict[StageName, tuple[Callable[[Wrap], Predict], Wrap | None, bool]] = {
    "baseline": (lambda _: prediction.baseline, None, False),
    "encoder_reuse": (lambda _: prediction.encoder_reuse, None, False),
    "branch_skip": (lambda _: prediction.branch_skip, None, False),
    "fused_gradient": (lambda _: prediction.fused_gradient, None, False),
    "batched_heads": (lambda _: batched_heads, None, False),
    "torch_compile": (lambda wrap: wrap(batched_heads), dynamic, False),
    "tuned_allocator": (lambda wrap: wrap(batched_heads), dynamic, True),
    "fused_messages": (fused_messages, dynamic, True),
    "static_graphs": (static_graphs, static, True),
    "mixed_precision": (mixed_precision, static, True),
}
LADDER: tuple[Stage, ...] = tuple(
    Stage(name, make, name not in APPROXIMATE, compiled, tuned)
    for name, (make, compiled, tuned) in ((name, IMPLEMENTATIONS[name]) for name in STAGES)
)


def selected_stages(parameters: LadderParameters) -> tuple[Stage, ...]:
    """Return the stages that a case asks for, in the order of the ladder."""
    mixed = partial(mixed_precision, products=parameters.products)
    chosen = [stage for stage in LADDER if stage.name in parameters.stages]
    return tuple(replace(stage, make=mixed) if stage.name == "mixed_precision" else stage for stage in chosen)
