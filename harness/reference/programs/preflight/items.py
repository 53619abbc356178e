"""The items of the preflight in the order in which they are checked; only the process of a check imports its module."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from harness.protocol.programs.preflight import ITEM_SETS, Finding, ItemName, PreflightParameters
from harness.reference.programs.preflight import check
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes

_CHECKS = f"{__package__}.checks"


@dataclass(frozen=True)
class Item:
    """An item; the module of its name has a function `check` and may have a function `judge`.

    Attributes:
        name: The name of the item.
        ranks: The ranks that check the item: all, the first of each node, the first, or ("device") all if an
            accelerator is configured and else the first of each node.
        needs_all: Whether the check needs all ranks, because it compares them or they communicate.
        needs_torch: Whether the check uses torch.
    """

    name: ItemName
    ranks: Literal["all", "node", "first", "device"] = "all"
    needs_all: bool = False
    needs_torch: bool = True

    def is_for(self, context: CheckContext) -> bool:
        """Return whether the rank checks the item."""
        match self.ranks:
            case "all":
                return True
            case "first":
                return context.rank_info.rank == 0
            case "node":
                return context.rank_info.local_rank == 0
            case "device":
                return context.rank_info.local_rank == 0 or context.config.device not in ("cpu", None)

    def check(self, context: CheckContext) -> Outcome:
        """Check the item on this rank."""
        outcome: Outcome = import_module(f"{_CHECKS}.{self.name}").check(context)
        return outcome

    def judge(self, context: CheckContext, outcomes: Outcomes) -> Finding:
        """Return the finding on the outcomes of all ranks that checked the item."""
        module = import_module(f"{_CHECKS}.{self.name}")
        finding: Finding = getattr(module, "judge", check.merge)(context, outcomes)
        return finding


# MPI is last, since its failure may end all processes of the launcher.
ITEMS: tuple[Item, ...] = (
    Item("environment", needs_torch=False),
    Item("limits", needs_torch=False),
    Item("packages", "node", needs_torch=False),
    Item("devices"),
    Item("binding", needs_all=True),
    Item("distributed", needs_all=True),
    Item("disk", "node", needs_torch=False),
    Item("locks", needs_all=True, needs_torch=False),
    Item("adios2"),
    Item("kernels", "device"),
    Item("backbones"),
    Item("ladder", "first"),
    Item("training", "first"),
    Item("screening", "first"),
    Item("resume", "first"),
    Item("checkpoint", "first"),
    Item("telemetry", "device", needs_torch=False),
    Item("mpi", needs_all=True, needs_torch=False),
)


def select_items(config: PreflightParameters) -> tuple[Item, ...]:
    """Return the items of a case, in the order of ITEMS; the item `ranks` is reported separately."""
    names = config.only or ITEM_SETS[config.items]
    return tuple(item for item in ITEMS if item.name in names)
