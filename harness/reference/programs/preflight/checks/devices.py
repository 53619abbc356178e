"""Accelerators: their number, name and memory, and a product on the one of each rank."""

from __future__ import annotations

import torch

from harness.reference.distributed.group import DEVICES, select_device
from harness.reference.profiling.timing import get_device_name
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome

GB = 1e9
# A device reports a little less memory than its data sheet, where GB also may mean GiB.
MEMORY_TOLERANCE = 0.1
SIZE = 256  # rows and columns of the matrices
ADVICE = (
    "Request the accelerators in `directives` or `launch` of the system's file, and install a torch built for them."
)


def check(context: CheckContext) -> Outcome:
    """Compare the accelerators that this rank sees with those of the system, and compute a product on its own."""
    config = context.config
    device = open_device(context)
    problems = []
    observed = "the CPU"
    if device.type != "cpu":
        module = torch.get_device_module(device)
        memory_gb = module.get_device_properties(device).total_memory / GB
        count = module.device_count()
        observed = f"{count} x {get_device_name(device)}, {memory_gb:.0f} GB"
        if config.accelerators and count not in (1, config.accelerators):
            problems.append(f"{count} accelerators are visible, not 1 (its own) or {config.accelerators}")
        if config.accelerator_memory_gb and memory_gb < (1 - MEMORY_TOLERANCE) * config.accelerator_memory_gb:
            problems.append(f"{memory_gb:.0f} GB of memory, not {config.accelerator_memory_gb:g}")
    elif config.accelerators:
        problems.append("torch computes on the CPU")
    if not computes_product(device):
        problems.append(f"a product of matrices on {device} is wrong")
    outcome = make_outcome(describe_expected(context), observed, problems, ADVICE)
    outcome.device, outcome.device_name = device.type, get_device_name(device)
    return outcome


def describe_expected(context: CheckContext) -> str:
    """Return the devices that the parameters of the case name."""
    config = context.config
    if config.device is None:
        return "any device"
    if config.device == "cpu":
        return "cpu"
    memory = f" with {config.accelerator_memory_gb:g} GB each" if config.accelerator_memory_gb else ""
    number = f"{config.accelerators}" if config.accelerators else "any number of"
    return f"{number} {config.device} {'device' if config.accelerators == 1 else 'devices'}{memory}"


def open_device(context: CheckContext) -> torch.device:
    """Select and return the device of this rank; raise InputError if it is absent."""
    kind = context.config.device or find_device_kind()
    return select_device(kind, "gloo", context.rank_info)  # the one backend that all kinds of devices accept


def find_device_kind() -> str:
    """Return the kind of accelerator that torch sees, or `cpu`."""
    return next((kind for kind in reversed(DEVICES) if torch.get_device_module(kind).is_available()), "cpu")


def computes_product(device: torch.device) -> bool:
    """Return whether a product of matrices of small integers is exact on the device."""
    values = torch.arange(SIZE * SIZE, dtype=torch.float64).reshape(SIZE, SIZE) % 7
    return torch.equal((values.to(device) @ values.to(device)).cpu(), values @ values)
