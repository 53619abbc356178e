"""The structures of a case, batch by batch; how many to a batch, if free memory is to decide."""

from __future__ import annotations

import torch

from harness.events import EventLog
from harness.reference import inference
from harness.reference.coverage import check_elements
from harness.reference.inference import Predict
from harness.reference.ladder.config import LadderConfig
from harness.reference.ladder.workload import make_structures, prepare
from harness.reference.measuring import measure
from harness.reference.measuring.memory import free_bytes, largest_batch
from harness.reference.models.foundation import FoundationModel
from harness.reference.structures import Structure

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
    plain: list[Predict] = [s.plainly() for s in config.climbed if s.compiled is None] or [inference.fused_gradient]
    peak = max(measure.peak_bytes(lambda p=p: p(model, batch, weights), device) for p in plain)  # type: ignore[misc]
    free, probed = free_bytes(device), len(batch.head)
    size = largest_batch(peak, probed, free)
    log.fact("batch_size", {"chosen": size, "free_bytes": free, "probe_structures": probed, "probe_peak_bytes": peak})
    return size
