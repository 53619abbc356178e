"""A stage at work, and what is to be known of it before it is timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import Flops, Padding, Unavailable, WarmUp
from harness.reference.data.batch import Batch
from harness.reference.distributed.launch import first_line
from harness.reference.inference.bucketing import Shape, shape_of
from harness.reference.inference.prediction import Predict, Prediction
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import allocator, timing
from harness.reference.profiling.flops import WorkCount, compiled_bytes, count_work
from harness.reference.programs.ladder.stages import Stage, StaticGraphs


@dataclass
class PreparedStage:
    """A stage at work; work and peak_bytes: of one call on the first batch."""

    stage: Stage
    predict: Predict
    work: WorkCount = field(default_factory=WorkCount)
    peak_bytes: int = 0

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Gate and stage, as timed."""
        return self.predict(model, batch, model.gate(batch.composition))

    def shape(self, batch: Batch) -> Shape:
        """What the stage makes of the batch's."""
        own = shape_of(batch)
        return self.predict.buckets.assign(own) if isinstance(self.predict, StaticGraphs) else own

    def padding(self) -> Padding | None:
        """Return what filling up to static shapes has cost so far."""
        if not isinstance(self.predict, StaticGraphs):
            return None
        return msgspec.convert({"event": "padding", "stage": self.stage.name, **self.predict.buckets.stats()}, Padding)


def prepare_stage(stage: Stage, model: FoundationModel, batches: Sequence[Batch], log: CaseLog) -> PreparedStage | None:
    """Make a stage, take first calls, arithmetic and memory on record, untimed; leave the allocator as it wants it.

    None, with the reason on record, if it is not to be had here; an error of an uncompiled stage is the case's.
    """
    rung = PreparedStage(stage, stage.predict())
    try:
        apply_allocator(stage, batches[0].head.device)
        _warm_up(rung, model, batches, log)
    except Exception as error:  # compilers fail in as many ways as there are compilers
        if stage.compiled is None:
            raise
        log.write(Unavailable(stage=stage.name, reason=first_line(error)[:300]))
        return None
    return rung


def apply_allocator(stage: Stage, device: torch.device) -> bool:
    """Set the allocator as the stage wants it; whether that has changed anything.

    Raises RuntimeError if that is what the stage is about, and it cannot be; others make do with what there is.
    """
    try:
        if device.type != "cpu":
            raise allocator.NotGlibc(f"memory on {device.type} is managed by torch itself")
        return allocator.set_mode("tuned" if stage.tuned else "default")
    except allocator.NotGlibc:
        if stage.name == "tuned_allocator":
            raise
        return False


def _warm_up(rung: PreparedStage, model: FoundationModel, batches: Sequence[Batch], log: CaseLog) -> None:
    first = batches[0]
    device = first.head.device
    began = time.perf_counter()
    moved = compiled_bytes(lambda: rung(model, first))
    timing.synchronize(device)
    first_s = time.perf_counter() - began
    for batch in batches[1:] if rung.stage.compiled else []:
        rung(model, batch)
    counted = PreparedStage(rung.stage, rung.stage.predict_eager())

    def count() -> None:
        rung.work = count_work(lambda: counted(model, first), counted.shape(first))

    if rung.stage.compiled:
        count()
    # counting is a call of an uncompiled stage: one is enough
    rung.peak_bytes = timing.peak_bytes((lambda: rung(model, first)) if rung.stage.compiled else count, device)
    log.write(
        WarmUp(
            stage=rung.stage.name,
            first_s=first_s,
            matrix_flops=rung.work.matrix_flops,
            flops=[Flops(of=of, dtype=dtype, flops=n) for (of, dtype), n in rung.work.flops.items()],
            bytes=moved if rung.stage.compiled else rung.work.bytes,
            peak_bytes=rung.peak_bytes,
        )
    )
