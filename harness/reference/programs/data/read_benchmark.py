"""How long a random sample takes in each mode of reading, the modes in turn, all ranks at once.

Events besides those of every program:
    fact out_of_reach  modes left out for want of memory, in words
    fact reading  a list, one entry a mode: mode, ranks, width and backend (where distributed), sets, split, samples,
                  bytes_per_sample_mean, open_s, rss_bytes (of one rank; what ranks share counted in parts), floor
    sample        one batch: mode, round, seconds (slowest rank), batch (samples of one rank), bytes (of one rank)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mpi4py import MPI

from harness.protocol.events import EventLog
from harness.reference.datasets.collection import EDGES, NEEDED, TRAINING
from harness.reference.distributed.launch import Place, told
from harness.reference.errors import InputError
from harness.reference.programs.data.config import DataConfig
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.collectives import aborting, world
from harness.reference.storage.memory.distributed import DistributedStore
from harness.reference.storage.open import Mode, open_samples
from harness.reference.storage.samples import Merged, Samples, merged
from harness.reference.storage.schema import Record

SHARE_OF_MEMORY = 0.6  # of what is free
COMPARED = 32  # samples of which every mode must give the same bytes


def read_modes(config: DataConfig, stores: Sequence[Path], place: Place, log: EventLog) -> None:
    """Open the stores in every mode, take batches in rounds, and log them.

    Raises InputError if two modes give different samples.
    """
    comm = world(place)
    with aborting(comm):
        try:
            _measure(config, stores, log, comm)
        except Exception as error:
            if comm.size > 1:  # the next line is this process's last
                log.write("error", message=told(error))
            raise


def _measure(config: DataConfig, stores: Sequence[Path], log: EventLog, comm: MPI.Comm) -> None:
    opened: dict[Mode, Merged] = {}
    facts = []
    modes, skipped = within_reach(config.modes, stores, comm)
    if skipped:
        log.fact("out_of_reach", skipped)
    for mode in modes:
        before, began = _memory(), time.perf_counter()
        opened[mode] = merged([_opened(store, mode, config, comm) for store in stores])
        open_s = comm.allreduce(time.perf_counter() - began, MPI.MAX)
        facts.append({"mode": mode, "open_s": open_s, "rss_bytes": comm.allreduce(_memory() - before, MPI.MAX)})
    _compare(opened)
    size = _mean_bytes(opened[modes[0]], config)
    shared_facts = {
        "ranks": comm.size,
        "nodes": len(set(comm.allgather(MPI.Get_processor_name()))),
        "sets": [s.stem for s in stores],
        "roles": [_role(s) for s in stores],
        "split": TRAINING,
        "samples": len(opened[modes[0]]),
        "bytes_per_sample_mean": size,
        "floor": {"us_per_sample": _copying_us(size, config.batch_size), "what": "copying as many bytes in memory"},
    }
    if "distributed" in opened:
        parts = [p for p in opened["distributed"].parts if isinstance(p, DistributedStore)]
        of_distributed = {"width": config.width or comm.size, "backend": parts[0].backend.name}
        facts = [f | of_distributed if f["mode"] == "distributed" else f for f in facts]
    log.fact("reading", [{**f, **shared_facts} for f in facts])
    for number in range(config.rounds):
        log.write("progress", done=number, total=config.rounds, what="rounds")
        for mode, samples in opened.items():
            _round(mode, number, samples, config, comm, log)
    for samples in opened.values():
        samples.close()


def within_reach(modes: Sequence[Mode], stores: Sequence[Path], comm: MPI.Comm) -> tuple[list[Mode], list[str]]:
    """The modes for which a node has memory, one after the other, and what to say of the others."""
    sizes = [BPFile(store).nbytes(TRAINING, wanted(store)) for store in stores]
    whole, here = sum(sizes), comm.Split_type(MPI.COMM_TYPE_SHARED).size
    copies = {"on_demand": 0.0, "preload": here, "shared": 1.0, "distributed": here / comm.size}
    room = comm.allreduce(psutil.virtual_memory().available, MPI.MIN) * SHARE_OF_MEMORY
    found: list[Mode] = []
    skipped = []
    for mode in modes:
        if whole * copies[mode] > room:
            skipped.append(
                f"{mode} needs {whole * copies[mode] / 1e9:.1f} GB of a node's memory, {room / 1e9:.1f} are to be had"
            )
        else:
            room -= whole * copies[mode]
            found.append(mode)
    if not found:
        raise InputError(f"no mode of reading is within reach: {'; '.join(skipped)}")
    return found, skipped


def _role(store: Path) -> str:
    """What a report has to call the store's data."""
    with BPFile(store) as file:
        about = file.attributes.get("about")
    return str(about["role"]) if isinstance(about, dict) else "unknown"


def _opened(store: Path, mode: Mode, config: DataConfig, comm: MPI.Comm) -> Samples:
    return open_samples(
        store, TRAINING, mode, comm=comm, width=config.width, keys=wanted(store), backend=config.store_backend
    )


def wanted(store: Path) -> list[str]:
    """What training reads of a sample, as far as the store has it."""
    with BPFile(store) as file:
        return [key for key in (*NEEDED, "forces", *EDGES) if key in file.keys(TRAINING)]


def _round(mode: str, number: int, samples: Merged, config: DataConfig, comm: MPI.Comm, log: EventLog) -> None:
    """Time batches of random samples; each rank draws its own."""
    rng = np.random.default_rng((config.seed, number, comm.rank))
    drawn = rng.integers(0, len(samples), (config.batches, config.batch_size))
    seconds, sizes = np.zeros(config.batches), np.zeros(config.batches)
    samples.get(drawn[0])
    comm.Barrier()
    for k, indices in enumerate(drawn):
        began = time.perf_counter()
        records = samples.get(indices)
        seconds[k] = time.perf_counter() - began
        sizes[k] = sum(map(_bytes, records))
    slowest, mean = np.zeros_like(seconds), np.zeros_like(sizes)
    comm.Allreduce(seconds, slowest, MPI.MAX)
    comm.Allreduce(sizes, mean, MPI.SUM)
    for k in range(config.batches):
        log.write(
            "sample",
            mode=mode,
            round=number,
            seconds=slowest[k],
            batch=config.batch_size,
            bytes=mean[k] / comm.size,
            ranks=comm.size,
        )


def _compare(opened: dict[Mode, Merged]) -> None:
    """Raise InputError unless every mode gives the same bytes."""
    first, *others = opened
    picked = np.linspace(0, len(opened[first]) - 1, COMPARED).astype(np.int64)
    expected = opened[first].get(picked)
    for mode in others:
        for index, a, b in zip(picked.tolist(), expected, opened[mode].get(picked), strict=True):
            if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
                raise InputError(f"sample {index} is not the same when read in modes {first} and {mode}")


def _mean_bytes(samples: Merged, config: DataConfig) -> float:
    picked = np.random.default_rng(config.seed).integers(0, len(samples), 1000)
    return float(np.mean([_bytes(record) for record in samples.get(picked)]))


def _bytes(record: Record) -> int:
    return sum(values.nbytes for values in record.values())


def _copying_us(size: float, count: int) -> float:
    """Microseconds for one of `count` copies of so many bytes."""
    there = np.ones((count, max(1, int(size))), dtype=np.uint8)
    here = np.empty_like(there)
    laps = []
    for _ in range(20):
        began = time.perf_counter()
        np.copyto(here, there)
        laps.append(time.perf_counter() - began)
    return float(np.median(laps)) / count * 1e6


def _memory() -> int:
    """Memory of this process, what it shares with others in parts (elsewhere than on Linux: in full)."""
    found: Any = psutil.Process().memory_full_info()
    return int(getattr(found, "pss", found.rss))
