"""The choice between messages in plain PyTorch and the fused operator of harness.reference.ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harness.reference.distributed.group import ProcessGroup
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages
from harness.reference.ops.jit_build import BuildError
from harness.reference.ops.messages import UnsupportedKernel

BackendName = Literal["unfused", "fused"]


@dataclass(frozen=True)
class MessageBackend:
    """The implementation of the messages in use.

    Attributes:
        fused: Whether the fused operator computes the messages.
        unfused_reason: Why the fused operator is not used although it was requested; else None.
    """

    fused: bool
    unfused_reason: str | None = None

    @property
    def name(self) -> BackendName:
        """The name of the backend in use."""
        return "fused" if self.fused else "unfused"


UNFUSED = MessageBackend(False)


def select_backend(requested: BackendName, model: FoundationModel, world: ProcessGroup) -> MessageBackend:
    """Let the model use the fused backend if it is requested and every rank supports it, else the unfused backend.

    The call is collective if fused messages are requested.

    Returns:
        The backend that the model uses from now on.
    """
    if requested == "unfused":
        model.fused = None
        return UNFUSED
    reason = world.broadcast_first(find_unavailable_reason(model.config.network, world.device))
    return _set_backend(model, world.device, reason)


def use_fused_messages(model: FoundationModel, device: torch.device) -> MessageBackend:
    """Let the model use the fused backend if this process supports it, and return the backend that it uses."""
    return _set_backend(model, device, find_unavailable_reason(model.config.network, device))


def _set_backend(model: FoundationModel, device: torch.device, unfused_reason: str | None) -> MessageBackend:
    model.fused = device.type if unfused_reason is None else None
    return MessageBackend(unfused_reason is None, unfused_reason)


def find_unavailable_reason(backbone: str, device: torch.device) -> str | None:
    """Load the fused operator; return None, or the reason why this process cannot use it."""
    try:
        messages.check(backbone, device)
        messages.load(device)
    except (UnsupportedKernel, BuildError) as error:
        return str(error)
    return None
