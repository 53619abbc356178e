"""Batches of samples from a small BP store, from memory and on demand."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .given import Sampled, as_far_as_it_exists, find

SAMPLES, ROWS, BATCH, TIMES = 500, 64, 64, 100


@cache
def written() -> Any:
    """A store of 500 samples; its folder goes when the process ends."""
    with as_far_as_it_exists():
        import numpy as np

        BPWriter = find("harness.reference.storage.adios.writer.BPWriter", "harness.reference.store.bp.BPWriter")
        Block = find("harness.reference.storage.schema.Block", "harness.reference.store.layout.Block")
        Column = find("harness.reference.storage.schema.Column", "harness.reference.store.layout.Column")
    place = tempfile.TemporaryDirectory()
    values = np.random.default_rng(0).random(SAMPLES * ROWS)
    with BPWriter(Path(place.name) / "a.bp", {"dataset": "none"}) as writer:
        writer.split("trainset").put(Block(SAMPLES, {"v": Column(values, ROWS)}))
    return place


@cache
def opened(mode: str) -> Any:
    with as_far_as_it_exists():
        open_samples = find("harness.reference.storage.open.open_samples", "harness.reference.store.modes.open_samples")
    return open_samples(Path(written().name) / "a.bp", "trainset", mode, keys=["v"])


class Get(Sampled):
    params = (["preload", "on_demand"],)
    param_names = ("mode",)

    def setup(self, mode: str) -> None:
        self.wanted = [(37 * k) % SAMPLES for k in range(BATCH)]
        self.time_get(mode)

    def time_get(self, mode: str) -> None:
        for _ in range(TIMES):
            opened(mode).get(self.wanted)
