"""The warm-up of a stage, in which the work and the memory of one call are measured."""

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
        stage: The definition of the stage.
        predict: The function of the stage, which may be compiled.
        work: The floating-point operations and the memory traffic of one call on the first batch.
        peak_bytes: The peak memory of this call.
    """

    stage: Stage
    predict: Predict
    work: WorkCount = field(default_factory=WorkCount)
    peak_bytes: int = 0

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Run the gate and the stage."""
        return self.predict(model, batch, model.gate(batch.composition))

    def time(self, model: FoundationModel, batch: Batch) -> tuple[Prediction, dict[str, float]]:
        """Run the gate and the stage, and return the prediction and the measured times as fields of `LadderSample`."""
        outputs: list[Prediction] = []
        device_s = timing.time_call(lambda: outputs.append(self(model, batch)), batch.head.device)
        return outputs[0], {"device_s": device_s}

    def find_shape(self, batch: Batch) -> Shape:
        """Return the shape of a batch, including the padding of a stage with static shapes."""
        shape = get_shape(batch)
        return self.predict.buckets.assign(shape) if isinstance(self.predict, StaticGraphs) else shape

    def build_padding_event(self) -> Padding | None:
        """Return an event with the amount of padding so far; None for a stage without static shapes."""
        if not isinstance(self.predict, StaticGraphs):
            return None
        return msgspec.convert({"event": "padding", "stage": self.stage.name, **self.predict.buckets.stats()}, Padding)


def prepare_stage(stage: Stage, model: FoundationModel, batches: Sequence[Batch], log: CaseLog) -> PreparedStage | None:
    """Warm up a stage in its allocator mode, and log its first call, its work and its memory.

    An error in an uncompiled stage is raised.

    Returns:
        The stage; None if it cannot be compiled here, after the reason has been logged.
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
    """Set the allocator mode that the stage needs, and return whether the mode has changed.

    Raises:
        NotGlibc: The mode cannot be set, and the stage is `tuned_allocator`, which measures its effect.
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
    """Call a stage on the batches, set its work and its peak memory, and log them."""
    first = batches[0]
    device = first.head.device
    started = time.perf_counter()
    traffic = count_compiled_bytes(lambda: prepared(model, first))
    synchronize(device)
    first_s = time.perf_counter() - started
    for batch in batches[1:] if prepared.stage.compiler else []:
        prepared(model, batch)
    eager = PreparedStage(prepared.stage, prepared.stage.predict_eager())

    def count_work_of_call() -> None:
        prepared.work = count_work(lambda: eager(model, first), eager.find_shape(first))

    if prepared.stage.compiler:
        count_work_of_call()
    # a single call of an uncompiled stage serves to count its work and to measure its memory
    prepared.peak_bytes = timing.measure_peak_bytes(
        (lambda: prepared(model, first)) if prepared.stage.compiler else count_work_of_call, device
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
