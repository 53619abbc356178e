"""The pool of nodes of a job, in which each trial reserves nodes; nodes that fail the health check are dropped."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.reference.errors import InputError

# The file of healthy nodes, with lines `name` or `name host`, and the shell command that updates it.
NODE_LIST, NODE_CHECK = "GFM_HARNESS_HEALTHY_NODES", "GFM_HARNESS_CHECK_NODES"
CHECK_S = 180.0


@dataclass(frozen=True)
class Node:
    """A node of the job.

    Attributes:
        name: The name that the scheduler uses.
        host: The address that the ranks of a trial use.
    """

    name: str
    host: str


@dataclass
class NodePool:
    """The healthy nodes of a job, or slots on a machine without a scheduler; trials never share a node.

    Attributes:
        nodes_per_trial: Number of nodes of a trial.
        slots: Maximum number of concurrent trials on a machine without a scheduler.
        path: The file of healthy nodes; None without a scheduler.
        check: The shell command that updates this file, or "".
    """

    nodes_per_trial: int
    slots: int
    path: Path | None = None
    check: str = ""
    _healthy: list[Node] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_environment(
        cls, nodes_per_trial: int, slots: int, environment: Mapping[str, str] = os.environ
    ) -> NodePool:
        """Return the healthy nodes of the job, or `slots` without a job; raise InputError if there are too few."""
        file = environment.get(NODE_LIST)
        if not file:
            return cls(nodes_per_trial, slots)
        path = Path(file)
        pool = cls(nodes_per_trial, slots, path, environment.get(NODE_CHECK, ""), _read_nodes(path))
        if pool.capacity < 1:
            raise InputError(f"healthy nodes: {len(pool._healthy)}, needed for a trial: {nodes_per_trial}")
        return pool

    @property
    def capacity(self) -> int:
        """The number of trials that can run at once."""
        return len(self._healthy) // self.nodes_per_trial if self.path else self.slots

    def acquire(self) -> list[Node]:
        """Reserve nodes for one trial, none without a scheduler; raise InputError if too few are free."""
        if self.path is None:
            return []
        with self._lock:
            free = [node for node in self._healthy if node.name not in self._busy]
            if len(free) < self.nodes_per_trial:
                raise InputError(f"free nodes: {len(free)}, needed for a trial: {self.nodes_per_trial}")
            nodes = free[: self.nodes_per_trial]
            self._busy |= {node.name for node in nodes}
            return nodes

    def release(self, nodes: list[Node]) -> None:
        """Return the nodes of a trial to the pool."""
        with self._lock:
            self._busy -= {node.name for node in nodes}

    def drop_unhealthy(self, nodes: list[Node]) -> list[str]:
        """Run the health check, drop all nodes that fail it, and return the names of those in `nodes` that fail it."""
        if not nodes or not self.check or self.path is None:
            return []
        with self._lock:
            subprocess.run(["bash", "-c", self.check], timeout=CHECK_S, check=False, stdout=subprocess.DEVNULL)
            healthy = _read_nodes(self.path)
            if healthy:  # an empty list means that the check itself failed
                self._healthy = healthy
            healthy_names = {node.name for node in self._healthy}
        return [node.name for node in nodes if node.name not in healthy_names]


def _read_nodes(path: Path) -> list[Node]:
    """Return the nodes in the file of healthy nodes."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Node(words[0], words[-1]) for words in lines if words]
