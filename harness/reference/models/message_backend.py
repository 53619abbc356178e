"""Which messages a run takes: the operator of harness.reference.ops where there is one, else the plain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harness.reference.distributed.group import Team
from harness.reference.ops import messages
from harness.reference.ops.jit_build import CannotBuild
from harness.reference.ops.messages import NoSuchKernel

Messages = Literal["plain", "fused"]


@dataclass(frozen=True)
class Chosen:
    """Whether messages are fused, and if that was asked for and is not so, why."""

    fused: bool
    why_plain: str | None = None

    @property
    def messages(self) -> Messages:
        """The name of what runs."""
        return "fused" if self.fused else "plain"


PLAIN = Chosen(False)


def chosen(wanted: Messages, backbone: str, team: Team) -> Chosen:
    """Fused messages if they were asked for and every rank has them; all ranks together."""
    if wanted == "plain":
        return PLAIN
    why = next((reason for reason in team.gathered(lacking(backbone, team.device)) if reason is not None), None)
    return Chosen(why is None, why)


def lacking(backbone: str, device: torch.device) -> str | None:
    """What stands between this process and fused messages; None: they are ready."""
    try:
        messages.check(backbone, device)
        messages.load(device)
    except (NoSuchKernel, CannotBuild) as error:
        return str(error)
    return None
