"""Facts of a ladder: its batches, the weights of the heads, and the best rates of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from harness.protocol.programs.ladder import (
    Ceilings,
    LadderFacts,
    LadderGate,
    LadderObserved,
    LadderParameters,
    LadderWorkload,
    ProductRate,
    SquareRate,
)
from harness.reference.data.batch import Batch
from harness.reference.datasets.heads import HEADS
from harness.reference.inference.prediction import SKIP_THRESHOLD, find_active_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing
from harness.reference.profiling.flops import TF32, Kind, Sizes
from harness.reference.profiling.observe import observe
from harness.reference.programs.ladder.workload import neighbour_limit

SQUARE = (1024, 1024, 1024)


def describe_workload(batches: Sequence[Batch], model: FoundationModel, config: LadderParameters) -> LadderFacts:
    """Return facts of the workload, of the gate on it, and of the observed types and devices."""
    weights = [model.gate(b.composition) for b in batches]
    numbers = torch.cat([b.numbers for b in batches]).unique()
    encoded = model.encode(batches[0], batches[0].positions, batches[0].shift)
    return LadderFacts(
        workload=LadderWorkload(
            name=config.workload,
            structures=sum(len(b.head) for b in batches),
            atoms=sum(len(b.numbers) for b in batches),
            edges=sum(len(b.receiver) for b in batches),
            batches=len(batches),
            batch_size=len(batches[0].head),
            max_neighbours=neighbour_limit(model, config),
            elements=len(numbers),
            elements_not_trained=numbers[~model.elements[numbers]].tolist(),
        ),
        gate=LadderGate(
            threshold=SKIP_THRESHOLD,
            live_heads=[[HEADS[h] for h in find_active_heads(w)] for w in weights],
            mean_weight=dict(zip(HEADS, torch.cat(weights).mean(0).double().tolist(), strict=True)),
        ),
        observed=observe(
            LadderObserved,
            model,
            config.device,
            requested=config.precision,
            positions=str(batches[0].positions.dtype),
            encoder_output=str(encoded.dtype),
        ),
    )


def measure_ceilings(kinds: Mapping[Kind, Sizes | None], device: torch.device) -> Ceilings:
    """Measure the rates of a copy, of a square product in each type that occurs, and of the main product of each kind.

    The square product is also the ceiling of work outside matrix products (messages).

    Args:
        kinds: Kind of work -> sizes of its main product, None without products.
        device: The device.
    """
    squares = {dtype: measure_rate(dtype, SQUARE, device) for dtype in sorted({dtype for _, dtype in kinds})}
    return Ceilings(
        copy_gb_per_s=timing.measure_copy_gb_per_s(device),
        squares=[SquareRate(dtype=dtype, gflop_per_s=rate) for dtype, rate in squares.items()],
        products=[
            ProductRate(
                of=of,
                dtype=dtype,
                sizes=list(sizes or SQUARE),
                gflop_per_s=measure_rate(dtype, sizes, device) if sizes else squares[dtype],
            )
            for (of, dtype), sizes in sorted(kinds.items())
        ],
    )


def measure_rate(dtype: str, sizes: Sizes, device: torch.device) -> float:
    """Measure the rate of a matrix product in GFLOP/s; the type is one of torch, or TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == TF32 else before)
    try:
        kind = torch.float32 if dtype == TF32 else getattr(torch, dtype)
        return timing.measure_product_gflop_per_s(device, kind, sizes)
    finally:
        torch.set_float32_matmul_precision(before)
