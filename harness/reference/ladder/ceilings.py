"""What the machine can do at best with the products of a case: measured in the same run, shape by shape."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from harness.reference import measure
from harness.reference.models.config import ModelConfig
from harness.reference.padding import Shape
from harness.reference.work import Of, name_of

SQUARE = (1024, 1024, 1024)
# Columns of radial functions: what a product on edges sums over.
RADIAL = 8


def ceilings(
    shape: Shape, config: ModelConfig, kinds: Iterable[tuple[Of, torch.dtype]], own: torch.dtype, device: torch.device
) -> dict[str, object]:
    """Rates of a square product in the case's type and of a copy, and of a product of the model's for each kind.

    Of what is done in no matrix product (messages) the square one is the ceiling.
    """
    width = config.hidden_dim
    sizes: dict[Of, tuple[int, ...]] = {
        "edges": (shape.edges, RADIAL, width),
        "nodes": (shape.atoms, width, 3 * width),
        "heads": (config.heads, shape.graphs, config.dim_headlayers, config.dim_headlayers),
        "messages": SQUARE,
    }
    return {
        "matrix_product_gflop_per_s": measure.product_gflop_per_s(device, own, SQUARE),
        "copy_gb_per_s": measure.copy_gb_per_s(device),
        "products": [
            {
                "of": of,
                "dtype": name_of(dtype),
                "sizes": list(sizes[of]),
                "gflop_per_s": measure.product_gflop_per_s(device, dtype, sizes[of]),
            }
            for of, dtype in sorted(set(kinds), key=str)
            if min(sizes[of]) > 0
        ],
    }
