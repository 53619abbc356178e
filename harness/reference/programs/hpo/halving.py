"""Asynchronous successive halving: a trial is stopped at a rung (a number of epochs) if it is not among the best there.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar, "A system for massively parallel hyperparameter tuning",
MLSys 2020 (arXiv 1810.05934). No trial waits for others.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field


@dataclass
class Halving:
    """The rungs after min_epochs, eta min_epochs, eta^2 min_epochs, ... epochs; at each, the best 1/eta continue.

    A trial is compared with the trials that have reached the rung earlier, so the first ones always continue. A trial
    that reaches a rung again, after a restart of the search, replaces its earlier objective.

    Attributes:
        eta: At a rung, one in eta trials continues.
        min_epochs: Number of epochs at the first rung.
    """

    eta: int
    min_epochs: int
    _rungs: dict[int, dict[int, float]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def is_rung(self, epochs: int) -> bool:
        """Return whether there is a rung after this number of epochs."""
        rung = self.min_epochs
        while rung < epochs:
            rung *= self.eta
        return rung == epochs

    def should_continue(self, trial: int, epochs: int, objective: float) -> bool:
        """Return whether a trial with this objective after this number of epochs should be trained further."""
        if not self.is_rung(epochs):
            return True
        with self._lock:
            objectives = self._rungs.setdefault(epochs, {})
            objectives[trial] = objective
            count = max(1, math.ceil(len(objectives) / self.eta))
            return len(objectives) < self.eta or sum(other > objective for other in objectives.values()) < count
