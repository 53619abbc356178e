"""The fact `observed`: what a run observes of its model and of the device that runs it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from harness.protocol.records import Observed
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing

Fact = TypeVar("Fact", bound=Observed)


def observe(kind: type[Fact], model: FoundationModel, device: torch.device | str, **others: Any) -> Fact:
    """Return the fact of a program: types of parameters, device, threads and version of torch, and what else is known.

    Args:
        kind: The program's type of the fact.
        model: The model as it runs.
        device: Where it runs.
        others: Further fields of the type.
    """
    common = {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(device),
        "device_name": timing.device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return kind(**common | others)
