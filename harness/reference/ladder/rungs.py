"""A stage at work, and what is to be known of it before it is timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.events import EventLog
from harness.reference import measure
from harness.reference.batches import Batch
from harness.reference.inference import Predict, Prediction
from harness.reference.ladder.stages import Stage
from harness.reference.models.foundation import FoundationModel


@dataclass
class Rung:
    """A stage at work."""

    stage: Stage
    predict: Predict

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Gate and stage, as timed."""
        return self.predict(model, batch, model.gate(batch.composition))


def warm_up(rung: Rung, model: FoundationModel, batches: Sequence[Batch], log: EventLog, device: torch.device) -> bool:
    """First calls, arithmetic and memory of a stage, untimed.

    False, with the reason on record, if compiled code is not to be had here; an error of any other stage is the case's.
    """
    is_compiled = rung.stage.compiled
    began = time.perf_counter()
    try:
        rung(model, batches[0])
        first_s = time.perf_counter() - began
        for batch in batches[1:] if is_compiled else []:
            rung(model, batch)
        flops: list[int] = []

        def counted() -> None:
            """Compiled code hides its arithmetic from the counter."""
            if is_compiled:
                rung(model, batches[0])
            else:
                flops.append(measure.matrix_flops(lambda: rung(model, batches[0])))

        peak = measure.peak_bytes(counted, device)
    except (RuntimeError, ImportError, OSError) as error:
        if not is_compiled:
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.write("unavailable", stage=rung.stage.name, reason=reason.strip()[:300])
        return False
    log.write(
        "warm_up", stage=rung.stage.name, first_s=first_s, matrix_flops=flops[0] if flops else None, peak_bytes=peak
    )
    return True
