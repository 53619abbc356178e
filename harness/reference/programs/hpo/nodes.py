"""Nodes for trials: each takes its own from the pool, and those that fail the job's check do not come back."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.reference.errors import InputError

# The job's list of healthy nodes, one `name` or `name host` a line, and the shell line that makes it anew.
LIST, CHECK = "GFM_HARNESS_HEALTHY_NODES", "GFM_HARNESS_CHECK_NODES"
CHECK_S = 180.0


@dataclass(frozen=True)
class Node:
    """name: the scheduler's. host: where ranks meet, if that is another name."""

    name: str
    host: str


@dataclass
class Pool:
    """Groups of nodes, or bare slots on a machine that has no scheduler; two trials never share a node.

    path: the job's list of healthy nodes. check: the shell line that makes it anew.
    """

    per_trial: int
    slots: int
    path: Path | None = None
    check: str = ""
    _healthy: list[Node] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of_job(cls, per_trial: int, at_once: int, environment: Mapping[str, str] = os.environ) -> Pool:
        """The nodes that the job found healthy, or `at_once` slots where no job says; raises InputError for too few."""
        listed = environment.get(LIST)
        if not listed:
            return cls(per_trial, at_once)
        path = Path(listed)
        pool = cls(per_trial, at_once, path, environment.get(CHECK, ""), _nodes(path))
        if pool.capacity < 1:
            raise InputError(f"{len(pool._healthy)} healthy nodes, and a trial takes {per_trial}")
        return pool

    @property
    def capacity(self) -> int:
        """Trials that can run at once."""
        return len(self._healthy) // self.per_trial if self.path else self.slots

    def take(self) -> list[Node]:
        """Nodes for one trial, none where the machine has no scheduler; raises InputError if too few are free."""
        if self.path is None:
            return []
        with self._lock:
            free = [node for node in self._healthy if node.name not in self._busy]
            if len(free) < self.per_trial:
                raise InputError(f"{len(free)} nodes are free, and a trial takes {self.per_trial}")
            taken = free[: self.per_trial]
            self._busy |= {node.name for node in taken}
            return taken

    def give_back(self, nodes: list[Node]) -> None:
        """A trial has ended."""
        with self._lock:
            self._busy -= {node.name for node in nodes}

    def lost(self, nodes: list[Node]) -> list[str]:
        """Those of the nodes that do not pass the job's check, which is run now; nobody gets them any more."""
        if not nodes or not self.check or self.path is None:
            return []
        with self._lock:
            subprocess.run(["bash", "-c", self.check], timeout=CHECK_S, check=False, stdout=subprocess.DEVNULL)
            answered = _nodes(self.path)
            if answered:  # none at all says that the check could not be made
                self._healthy = answered
            names = {node.name for node in self._healthy}
        return [node.name for node in nodes if node.name not in names]


def _nodes(path: Path) -> list[Node]:
    """The nodes of a job's list."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Node(words[0], words[-1]) for words in lines if words]
