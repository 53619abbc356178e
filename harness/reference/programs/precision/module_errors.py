"""The error of the output of each module in low precision, relative to the same model in FP64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel

# For each module, its floating-point inputs and outputs.
Activations = dict[str, tuple[list[Tensor], list[Tensor]]]


def compute_module_errors(
    exact: FoundationModel, low: FoundationModel, batch: Batch, low_batch: Batch
) -> list[dict[str, Any]]:
    """Return the errors of each module of encoder and heads, in the order in which they run.

    The error is |x - x_64| / |x_64| in Frobenius norms. If a module is called repeatedly, its last call counts.

    Args:
        exact: The model in FP64.
        low: The model in low precision.
        batch: A batch in FP64.
        low_batch: The same batch in the data type of the model in low precision.

    Returns:
        Rows of `module`, `kind`, `input` (error of its inputs, None if it has none in floating point) and `output`.
    """
    reference, other = _record_activations(exact, batch), _record_activations(low, low_batch)
    return [
        {"module": name, "kind": type(exact.get_submodule(name)).__name__,
         "input": _compute_relative_error(reference[name][0], other[name][0]),
         "output": _compute_relative_error(reference[name][1], other[name][1])}
        for name in reference
        if name in other and reference[name][1]
    ]  # fmt: skip


def _record_activations(model: FoundationModel, batch: Batch) -> Activations:
    """Run encoder and heads, and return the inputs and outputs of each of their modules."""
    activations: Activations = {}

    def make_hook(name: str) -> Any:
        def record(_: nn.Module, inputs: Any, outputs: Any) -> None:
            activations.pop(name, None)
            activations[name] = (_list_floating_tensors(inputs), _list_floating_tensors(outputs))

        return record

    modules = [(n, m) for n, m in model.named_modules() if n.startswith(("encoder.", "heads"))]
    hooks = [module.register_forward_hook(make_hook(name)) for name, module in modules]
    try:
        with torch.no_grad():
            model.residual_energies(model.encode(batch, batch.positions, batch.shift, fused=False), batch)
    finally:
        for hook in hooks:
            hook.remove()
    return activations


def _list_floating_tensors(value: Any) -> list[Tensor]:
    """Return all floating-point tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    return [t for part in value for t in _list_floating_tensors(part)] if isinstance(value, (tuple, list)) else []


def _compute_relative_error(reference: list[Tensor], other: list[Tensor]) -> float | None:
    """Return the relative error of a list of tensors; None if there is nothing to compare."""
    pairs = [(a.double(), b.double()) for a, b in zip(reference, other, strict=False) if a.shape == b.shape]
    size = sum(float(a.square().sum()) for a, _ in pairs) ** 0.5
    if not size:
        return None
    error = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5 / size
    return error if torch.isfinite(torch.tensor(error)) else None
