"""Three precisions, as asked for and as observed: FP64, FP32, and BF16 matrix products on FP32 parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel


@dataclass(frozen=True)
class Precision:
    """dtype: of parameters, positions, sums, energies, forces. autocast: of the encoder's matrix products, or None."""

    name: str
    dtype: torch.dtype
    autocast: torch.dtype | None = None

    def of(self, model: FoundationModel) -> FoundationModel:
        """The model in this precision, changed in place."""
        model.autocast = self.autocast
        return model.to(self.dtype)


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp64", torch.float64),
        Precision("fp32", torch.float32),
        Precision("bf16", torch.float32, torch.bfloat16),
    )
}


def precision(name: str) -> Precision:
    """The precision of that name; raises InputError with the names that there are."""
    if name not in PRECISIONS:
        raise InputError(f"unknown precision {name!r}; there are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def observed(model: FoundationModel, batch: Batch) -> dict[str, object]:
    """The types that really occur in one pass over a batch: of parameters, of what matrix layers return, of results."""
    seen: set[str] = set()

    def note(_: nn.Module, __: object, result: object) -> None:
        if isinstance(result, Tensor):
            seen.add(str(result.dtype))

    hooks = [m.register_forward_hook(note) for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    try:
        positions = batch.positions.detach().requires_grad_()
        pooled = model.encode(batch, positions, batch.shift)
        energies = model.beyond_references(pooled, batch)
        (slope,) = torch.autograd.grad(energies.sum(), positions)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "matrix_layers": sorted(seen),
        "pooled": str(pooled.dtype),
        "energies": str(energies.dtype),
        "forces": str(slope.dtype),
        "autocast": None if model.autocast is None else str(model.autocast),
    }
