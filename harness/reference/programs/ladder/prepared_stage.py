"""A stage with its warm-up, and the work and memory of one call, measured before it is timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import Flops, Padding, Unavailable, WarmUp
from harness.reference.data.batch import Batch
from harness.reference.distributed.group import synchronize
from harness.reference.errors import get_first_line
from harness.reference.inference.bucketing import Shape, get_shape
from harness.reference.inference.prediction import Predict, Prediction
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import memory, timing
from harness.reference.profiling.flops import WorkCount, count_compiled_bytes, count_work
from harness.reference.programs.ladder.stages import Stage, StaticGraphs


@dataclass
class PreparedStage:
    """A stage that is ready to be timed.

    Attributes:
        stage: The stage.
        predict: Its function.
        work: Arithmetic and traffic of one call on the first batch.
        peak_bytes: Peak memory of that call.
    """

    stage: Stage
    predict: Predict
    work: WorkCount = field(default_factory=WorkCount)
    peak_bytes: int = 0

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Run gate and stage, as they are timed."""
        return self.predict(model, batch, model.gate(batch.composition))

    def time(self, model: FoundationModel, batch: Batch) -> tuple[Prediction, dict[str, float]]:
        """Run gate and stage, and return the prediction and the times of a sample that it determines."""
        outputs: list[Prediction] = []
        device_s = timing.time_call(lambda: outputs.append(self(model, batch)), batch.head.device)
        return outputs[0], {"device_s": device_s}

    def shape(self, batch: Batch) -> Shape:
        """Return the shape on which the stage runs for a batch, with padding."""
        shape = get_shape(batch)
        return self.predict.buckets.assign(shape) if isinstance(self.predict, StaticGraphs) else shape

    def padding(self) -> Padding | None:
        """Return the padding up to static shapes so far; None for a stage without padding."""
        if not isinstance(self.predict, StaticGraphs):
            return None
        return msgspec.convert({"event": "padding", "stage": self.stage.name, **self.predict.buckets.stats()}, Padding)


def prepare_stage(stage: Stage, model: FoundationModel, batches: Sequence[Batch], log: CaseLog) -> PreparedStage | None:
    """Warm up a stage, log its first call, work and memory, and leave the allocator in its mode.

    Returns:
        The stage, or None after logging why it cannot be compiled here. An error of an uncompiled stage is raised.
    """
    prepared = PreparedStage(stage, stage.predict())
    try:
        apply_allocator(stage, batches[0].head.device)
        _warm_up(prepared, model, batches, log)
    except Exception as error:  # each compiler raises its own errors
        if stage.compiler is None:
            raise
        log.write(Unavailable(stage=stage.name, reason=get_first_line(error)[:300]))
        return None
    return prepared


def apply_allocator(stage: Stage, device: torch.device) -> bool:
    """Set the mode of the allocator that the stage needs, and return whether that changed it.

    Raises:
        NotGlibc: The mode cannot be set, and the stage is the one that measures its effect.
    """
    try:
        if device.type != "cpu":
            raise memory.NotGlibc(f"memory on {device.type} is managed by torch itself")
        return memory.set_allocator_mode("tuned" if stage.tuned_allocator else "default")
    except memory.NotGlibc:
        if stage.name == "tuned_allocator":
            raise
        return False


def _warm_up(prepared: PreparedStage, model: FoundationModel, batches: Sequence[Batch], log: CaseLog) -> None:
    first = batches[0]
    device = first.head.device
    started = time.perf_counter()
    traffic = count_compiled_bytes(lambda: prepared(model, first))
    synchronize(device)
    first_s = time.perf_counter() - started
    for batch in batches[1:] if prepared.stage.compiler else []:
        prepared(model, batch)
    eager = PreparedStage(prepared.stage, prepared.stage.predict_eager())

    def count() -> None:
        prepared.work = count_work(lambda: eager(model, first), eager.shape(first))

    if prepared.stage.compiler:
        count()
    # for an uncompiled stage, one call both counts and measures the memory
    prepared.peak_bytes = timing.measure_peak_bytes(
        (lambda: prepared(model, first)) if prepared.stage.compiler else count, device
    )
    log.write(
        WarmUp(
            stage=prepared.stage.name,
            first_call_s=first_s,
            matrix_flops=prepared.work.matrix_flops,
            flops=[Flops(operation=of, dtype=dtype, flops=n) for (of, dtype), n in prepared.work.flops.items()],
            memory_traffic_bytes=traffic if prepared.stage.compiler else prepared.work.bytes,
            peak_bytes=prepared.peak_bytes,
        )
    )
