"""The choice between plain messages and the fused operator of harness.reference.ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harness.reference.distributed.group import ProcessGroup
from harness.reference.ops import messages
from harness.reference.ops.jit_build import BuildError
from harness.reference.ops.messages import UnsupportedKernel

BackendName = Literal["unfused", "fused"]


@dataclass(frozen=True)
class MessageBackend:
    """Whether messages are fused, and why not if they were requested."""

    fused: bool
    unfused_reason: str | None = None

    @property
    def name(self) -> BackendName:
        """Return the name of the backend in use."""
        return "fused" if self.fused else "unfused"


PLAIN = MessageBackend(False)


def select_backend(requested: BackendName, backbone: str, world: ProcessGroup) -> MessageBackend:
    """Return fused messages if they are requested and every rank supports them; collective if they are requested."""
    if requested == "unfused":
        return PLAIN
    reasons = world.all_gather(find_unavailable_reason(backbone, world.device))
    reason = next((reason for reason in reasons if reason is not None), None)
    return MessageBackend(reason is None, reason)


def find_unavailable_reason(backbone: str, device: torch.device) -> str | None:
    """Return why this process cannot use fused messages, or None once they are loaded."""
    try:
        messages.check(backbone, device)
        messages.load(device)
    except (UnsupportedKernel, BuildError) as error:
        return str(error)
    return None
