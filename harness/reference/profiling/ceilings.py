"""The peak rates of a device, which bound the rates of calls."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.protocol.programs.ladder import Ceilings, ProductRate, SquareRate
from harness.reference.profiling import timing
from harness.reference.profiling.flops import TF32, Kind, Sizes

# The sizes of the square matrix product whose rate is a ceiling.
SQUARE = (1024, 1024, 1024)


def measure_ceilings(kinds: Mapping[Kind, Sizes | None], device: torch.device) -> Ceilings:
    """Measure the hardware's ceilings: the rates of a copy and of matrix products in each type that occurs.

    A product is measured with the sizes of the largest product of each kind of work, and with square matrices. The rate
    of the square product is also the ceiling of work outside matrix products (messages).

    Args:
        kinds: The sizes of the largest product of each kind of work; None for a kind without products.
        device: The device to measure.
    """
    squares = {dtype: measure_rate(dtype, SQUARE, device) for dtype in sorted({dtype for _, dtype in kinds})}
    return Ceilings(
        copy_gb_per_s=timing.measure_copy_gb_per_s(device),
        squares=[SquareRate(dtype=dtype, gflop_per_s=rate) for dtype, rate in squares.items()],
        products=[
            ProductRate(
                operation=of,
                dtype=dtype,
                sizes=list(sizes or SQUARE),
                gflop_per_s=measure_rate(dtype, sizes, device) if sizes else squares[dtype],
            )
            for (of, dtype), sizes in sorted(kinds.items())
        ],
    )


def measure_rate(dtype: str, sizes: Sizes, device: torch.device) -> float:
    """Return the rate of a matrix product in GFLOP/s; dtype: the name of a torch type, or TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == TF32 else before)
    try:
        torch_dtype = torch.float32 if dtype == TF32 else getattr(torch, dtype)
        return timing.measure_product_gflop_per_s(device, torch_dtype, sizes)
    finally:
        torch.set_float32_matmul_precision(before)
