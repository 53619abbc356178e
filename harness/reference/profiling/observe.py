"""The fact `observed`: the model and the device of a run as the run observes them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from harness.protocol.records import Observed
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing

Fact = TypeVar("Fact", bound=Observed)


def observe(kind: type[Fact], model: FoundationModel, device: torch.device | str, **others: Any) -> Fact:
    """Return the fact of a program: types of parameters, device, threads, version of torch, and further fields.

    Args:
        kind: The program's type of the fact.
        model: The model as it runs.
        device: Where it runs.
        others: Further fields of the type.
    """
    common = {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(device),
        "device_name": timing.get_device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return kind(**common | others)
