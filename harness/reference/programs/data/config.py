"""What one case of suites/data.yaml is."""

from __future__ import annotations

from dataclasses import dataclass

from harness.reference.datasets.splitting.splits import SEED
from harness.reference.storage.open import Mode

MODES: tuple[Mode, ...] = ("on_demand", "preload", "shared", "distributed")


@dataclass(frozen=True)
class DataConfig:
    """One case; lengths in angstrom, forces in eV/angstrom.

    modes, width, store_backend, batch_size, batches, rounds: of `read`; a round goes through all modes once.
    """

    task: str
    dataset: str
    source: str = ""
    cutoff: float | None = None
    max_neighbours: int | None = None
    max_force: float = 1000.0
    strict: bool = False
    workers: int | None = None
    modes: tuple[Mode, ...] = MODES
    width: int | None = None
    store_backend: str = "auto"
    batch_size: int = 256
    batches: int = 20
    rounds: int = 5
    seed: int = SEED
