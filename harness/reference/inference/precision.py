"""The precisions FP64, FP32, and BF16 (matrix products of FP32 parameters), and the data types that a model uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.protocol import parameters as protocol
from harness.reference.data.batch import Batch
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel


@dataclass(frozen=True)
class Precision:
    """A precision of the model.

    Attributes:
        name: "fp64", "fp32" or "bf16".
        dtype: Data type of parameters, positions, sums, energies and forces.
        autocast: Data type of the encoder's matrix products; None if it is `dtype`.
    """

    name: str
    dtype: torch.dtype
    autocast: torch.dtype | None = None

    def apply(self, model: FoundationModel) -> FoundationModel:
        """Convert a model to this precision in place, and return it."""
        model.autocast = self.autocast
        return model.to(self.dtype)


PRECISIONS: dict[str, Precision] = {
    name: Precision(
        name, getattr(torch, types.dtype), None if types.autocast is None else getattr(torch, types.autocast)
    )
    for name, types in protocol.PRECISIONS.items()
}


def find_precision(name: str) -> Precision:
    """Return the precision of that name; raise InputError if there is none."""
    if name not in PRECISIONS:
        raise InputError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def observe_dtypes(model: FoundationModel, batch: Batch) -> dict[str, object]:
    """Evaluate a batch, and return the data types that occur in the model, such as those of parameters and forces."""
    dtypes: set[str] = set()

    def record(_: nn.Module, __: object, result: object) -> None:
        if isinstance(result, Tensor):
            dtypes.add(str(result.dtype))

    hooks = [m.register_forward_hook(record) for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    try:
        positions = batch.positions.detach().requires_grad_()
        pooled = model.encode(batch, positions, batch.shift, fused=False)
        energies = model.residual_energies(pooled, batch)
        (gradient,) = torch.autograd.grad(energies.sum(), positions)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "matrix_layers": sorted(dtypes),
        "pooled": str(pooled.dtype),
        "energies": str(energies.dtype),
        "forces": str(gradient.dtype),
        "autocast": None if model.autocast is None else str(model.autocast),
    }
