"""Memory spread over ranks, as a distributed store needs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Units = NDArray[np.int64]


class Backend(ABC):
    """Memory of all ranks of a communicator that each can read, in units of eight bytes; collective to make."""

    name: str
    thread_safe: bool

    @abstractmethod
    def allocate(self, comm: Any, units: int) -> Units:
        """This rank's part, to be filled before `open`."""

    @abstractmethod
    def open(self) -> None:
        """Let all ranks read; collective."""

    @abstractmethod
    def fetch(self, out: Units, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Copy parts of other ranks' memory one after the other into out, which has just their length."""

    @abstractmethod
    def close(self) -> None:
        """Give all memory back; collective."""
