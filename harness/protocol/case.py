"""Case: one run of one program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One run of one program with everything decided.

    id: hash of program, parameters, point, ranks, system, environment and settings: equal work has equal ids.
    point: its value on each axis. after: folders, beside its own, of the cases that must have ended well before.
    sanity, performance: what its events must show (harness.protocol.checks).
    """

    id: str
    name: str
    suite: str
    system: str
    program: str
    parameters: dict[str, Any]
    point: dict[str, Any]
    settings: dict[str, Any]
    nodes: int
    ranks_per_node: int
    minutes: float
    expected_minutes: float
    repeat: int
    tags: tuple[str, ...]
    sanity: tuple[dict[str, Any], ...] = ()
    performance: tuple[dict[str, Any], ...] = ()
    after: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Processes that it runs as."""
        return self.nodes * self.ranks_per_node

    @property
    def folder_name(self) -> str:
        """Its folder inside the campaign's."""
        return f"{self.name}-{self.id[:10]}"
