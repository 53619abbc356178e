"""What the machine can do at best with the products of a case: measured in the same run, shape by shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.reference.profiling import timing
from harness.reference.profiling.flops import TF32, Kind, Sizes

SQUARE = (1024, 1024, 1024)


def ceilings(kinds: Mapping[Kind, Sizes | None], device: torch.device) -> dict[str, object]:
    """Rates of a copy, of a square product in each type that occurs, and of the product that is most of each kind.

    Of what is done in no matrix product (messages) the square one is the ceiling.
    """
    squares = {dtype: rate(dtype, SQUARE, device) for dtype in sorted({dtype for _, dtype in kinds})}
    products = [
        {
            "of": of,
            "dtype": dtype,
            "sizes": list(sizes or SQUARE),
            "gflop_per_s": rate(dtype, sizes, device) if sizes else squares[dtype],
        }
        for (of, dtype), sizes in sorted(kinds.items())
    ]
    return {
        "copy_gb_per_s": timing.copy_gb_per_s(device),
        "squares": [{"dtype": dtype, "gflop_per_s": measured} for dtype, measured in squares.items()],
        "products": products,
    }


def rate(dtype: str, sizes: Sizes, device: torch.device) -> float:
    """GFLOP/s of a product in a type that Work names."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == TF32 else before)
    try:
        kind = torch.float32 if dtype == TF32 else getattr(torch, dtype)
        return timing.product_gflop_per_s(device, kind, sizes)
    finally:
        torch.set_float32_matmul_precision(before)
