"""Reading batches of samples from a small ADIOS2 store, preloaded and on demand."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .sampling import Benchmark, find_first, skip_if_missing

SAMPLES, ROWS, BATCH, TIMES = 500, 64, 64, 100


@cache
def write_store() -> Any:
    """Write a store of 500 samples to a folder that is removed when the process ends."""
    with skip_if_missing():
        import numpy as np

        BPWriter = find_first("harness.reference.storage.adios.writer.BPWriter", "harness.reference.store.bp.BPWriter")
        Block = find_first("harness.reference.storage.schema.Block", "harness.reference.store.layout.Block")
        Column = find_first("harness.reference.storage.schema.Column", "harness.reference.store.layout.Column")
    folder = tempfile.TemporaryDirectory()
    values = np.random.default_rng(0).random(SAMPLES * ROWS)
    with BPWriter(Path(folder.name) / "a.bp", {"dataset": "none"}) as writer:
        writer.split("trainset").put(Block(SAMPLES, {"v": Column(values, ROWS)}))
    return folder


@cache
def open_store(mode: str) -> Any:
    with skip_if_missing():
        open_samples = find_first(
            "harness.reference.storage.open.open_samples", "harness.reference.store.modes.open_samples"
        )
    return open_samples(Path(write_store().name) / "a.bp", "trainset", mode, keys=["v"])


class Get(Benchmark):
    params = (["preload", "on_demand"],)
    param_names = ("mode",)

    def setup(self, mode: str) -> None:
        self.indices = [(37 * k) % SAMPLES for k in range(BATCH)]
        self.time_get(mode)

    def time_get(self, mode: str) -> None:
        for _ in range(TIMES):
            open_store(mode).get(self.indices)
