"""What the report must know of a case's batches, and of what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.protocol.events import EventLog
from harness.reference.data.batch import Batch
from harness.reference.datasets.heads import HEADS
from harness.reference.inference.prediction import SKIP_THRESHOLD, live_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing
from harness.reference.programs.ladder.config import LadderConfig
from harness.reference.programs.ladder.workload import neighbour_limit


def describe(batches: Sequence[Batch], model: FoundationModel, config: LadderConfig, log: EventLog) -> None:
    """Facts of the workload and of what the model makes of it, read off the tensors."""
    weights = [model.gate(b.composition) for b in batches]
    numbers = torch.cat([b.numbers for b in batches]).unique()
    encoded = model.encode(batches[0], batches[0].positions, batches[0].shift)
    log.fact(
        "workload",
        {
            "name": config.workload,
            "structures": sum(len(b.head) for b in batches),
            "atoms": sum(len(b.numbers) for b in batches),
            "edges": sum(len(b.receiver) for b in batches),
            "batches": len(batches),
            "batch_size": len(batches[0].head),
            "max_neighbours": neighbour_limit(model, config),
            "elements": len(numbers),
            "elements_not_trained": numbers[~model.elements[numbers]].tolist(),
        },
    )
    log.fact(
        "gate",
        {
            "threshold": SKIP_THRESHOLD,
            "live_heads": [[HEADS[h] for h in live_heads(w)] for w in weights],
            "mean_weight": dict(zip(HEADS, torch.cat(weights).mean(0).double().tolist(), strict=True)),
        },
    )
    log.fact(
        "observed",
        {
            "requested": config.precision,
            "parameters": sorted({str(p.dtype) for p in model.parameters()}),
            "positions": str(batches[0].positions.dtype),
            "encoder_output": str(encoded.dtype),
            "device": config.device,
            "device_name": timing.device_name(torch.device(config.device)),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )
