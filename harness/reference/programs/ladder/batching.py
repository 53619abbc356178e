"""The structures of a case, batch by batch; how many to a batch, if free memory is to decide."""

from __future__ import annotations

import torch

from harness.protocol.events import EventLog
from harness.reference.data.structure import Structure
from harness.reference.inference import prediction
from harness.reference.inference.prediction import Predict
from harness.reference.models.coverage import check_elements
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing
from harness.reference.profiling.memory import free_bytes, largest_batch
from harness.reference.programs.ladder.config import LadderConfig
from harness.reference.programs.ladder.workload import make_structures, prepare

PROBE = 4


def batched(config: LadderConfig, model: FoundationModel, log: EventLog) -> list[list[Structure]]:
    """config.batches lists of structures; raises InputError for a structure that the model cannot know."""
    size = config.batch_size
    if size == "auto":
        size = chosen(config, model, log)
    structures = make_structures(config, config.batches * size)
    if config.workload != "random":
        for structure in structures:
            check_elements(model, structure)
    return [structures[k : k + size] for k in range(0, len(structures), size)]


def chosen(config: LadderConfig, model: FoundationModel, log: EventLog) -> int:
    """As many as free memory holds, by what a few take in the hungriest stage; compiled ones take less."""
    device = torch.device(config.device)
    batch, _ = prepare(make_structures(config, PROBE), model, config)
    weights = model.gate(batch.composition)
    plain: list[Predict] = [s.plainly() for s in config.climbed if s.compiled is None] or [prediction.fused_gradient]
    peak = max(timing.peak_bytes(lambda p=p: p(model, batch, weights), device) for p in plain)  # type: ignore[misc]
    free, probed = free_bytes(device), len(batch.head)
    size = largest_batch(peak, probed, free)
    log.fact("batch_size", {"chosen": size, "free_bytes": free, "probe_structures": probed, "probe_peak_bytes": peak})
    return size
