"""Asynchronous successive halving: trials that lag behind at a rung are stopped there.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar, "A system for massively parallel hyperparameter tuning",
MLSys 2020 (arXiv 1810.05934), in the form in which no trial waits for others.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field


@dataclass
class Halving:
    """Rungs after least_epochs, eta least_epochs, eta^2 least_epochs, ... epochs; the best 1/eta of each go on.

    A trial is held against those that came to the rung before it, so that the first ones always go on. One that comes
    to a rung again, as after a kill, takes its own place there.
    """

    eta: int
    least_epochs: int
    _rungs: dict[int, dict[int, float]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def is_rung(self, epochs: int) -> bool:
        """Whether trials are judged after so many epochs."""
        rung = self.least_epochs
        while rung < epochs:
            rung *= self.eta
        return rung == epochs

    def goes_on(self, trial: int, epochs: int, objective: float) -> bool:
        """Whether the trial of that number, come to so many epochs with this objective, is worth more."""
        if not self.is_rung(epochs):
            return True
        with self._lock:
            here = self._rungs.setdefault(epochs, {})
            here[trial] = objective
            allowed = max(1, math.ceil(len(here) / self.eta))
            return len(here) < self.eta or sum(other > objective for other in here.values()) < allowed
