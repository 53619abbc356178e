"""Where low precision goes wrong: how far each module's output is from that of the same weights in FP64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel

Seen = dict[str, tuple[list[Tensor], list[Tensor]]]


def module_errors(exact: FoundationModel, low: FoundationModel, batch: Batch, low_batch: Batch) -> list[dict[str, Any]]:
    """One row a module of encoder and heads, in the order in which they run.

    output: |x - x_64| / |x_64|, Frobenius norms, over all that it returns; input: the same over all that it was given,
    None where that holds no numbers. A module that is called more than once counts with its last call.
    """
    found = []
    for model, own in ((exact, batch), (low, low_batch)):
        seen: Seen = {}
        with _watched(model, seen), torch.no_grad():
            model.residual_energies(model.encode(own, own.positions, own.shift), own)
        found.append(seen)
    reference, other = found
    return [
        {"module": name, "kind": type(exact.get_submodule(name)).__name__,
         "input": _off(reference[name][0], other[name][0]), "output": _off(reference[name][1], other[name][1])}
        for name in reference
        if name in other and reference[name][1]
    ]  # fmt: skip


@contextmanager
def _watched(model: FoundationModel, seen: Seen) -> Iterator[None]:
    """Note what each module is given and returns, by its name."""

    def noting(name: str) -> Any:
        def note(_: nn.Module, given: Any, result: Any) -> None:
            seen.pop(name, None)
            seen[name] = (_floats(given), _floats(result))

        return note

    parts = [(n, m) for n, m in model.named_modules() if n.startswith(("encoder.", "heads"))]
    hooks = [module.register_forward_hook(noting(name)) for name, module in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _floats(value: Any) -> list[Tensor]:
    """All tensors of floating-point numbers in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    return [t for part in value for t in _floats(part)] if isinstance(value, (tuple, list)) else []


def _off(reference: list[Tensor], other: list[Tensor]) -> float | None:
    """The relative distance of two lists of tensors; None where there is nothing to compare."""
    pairs = [(a.double(), b.double()) for a, b in zip(reference, other, strict=False) if a.shape == b.shape]
    size = sum(float(a.square().sum()) for a, _ in pairs) ** 0.5
    if not size:
        return None
    off = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5 / size
    return off if torch.isfinite(torch.tensor(off)) else None
