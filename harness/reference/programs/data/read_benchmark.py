"""How long a random sample takes in each mode of reading, the modes in turn, all ranks at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mpi4py import MPI

from harness.protocol.events import CaseLog
from harness.protocol.programs.data import CopyFloor, DataFacts, DataParameters, Reading, ReadSample
from harness.protocol.records import Failure, Progress
from harness.reference.datasets.collection import EDGE_KEYS, REQUIRED_KEYS, TRAINING_SPLIT
from harness.reference.distributed.launch import RankInfo, describe_error
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.collectives import abort_on_error, get_mpi_world
from harness.reference.storage.memory.distributed import DistributedStore
from harness.reference.storage.open import ReadMode, open_samples
from harness.reference.storage.samples import ConcatenatedSamples, Samples, concatenate_samples
from harness.reference.storage.schema import Record

SHARE_OF_MEMORY = 0.6  # of what is free
COMPARED = 32  # samples of which every mode must give the same bytes


def benchmark_modes(config: DataParameters, stores: Sequence[Path], place: RankInfo, log: CaseLog) -> None:
    """Open the stores in every mode, take batches in rounds, and log them.

    Raises InputError if two modes give different samples.
    """
    comm = get_mpi_world(place)
    with abort_on_error(comm):
        try:
            _benchmark(config, stores, log, comm)
        except Exception as error:
            if comm.size > 1:  # the next line is this process's last
                log.write(Failure(message=describe_error(error)))
            raise


def _benchmark(config: DataParameters, stores: Sequence[Path], log: CaseLog, comm: MPI.Comm) -> None:
    opened: dict[ReadMode, ConcatenatedSamples] = {}
    opening: dict[ReadMode, tuple[float, int]] = {}
    modes, skipped = modes_that_fit(config.modes, stores, comm)
    if skipped:
        log.record_facts(DataFacts(out_of_reach=skipped))
    for mode in modes:
        before, began = _memory(), time.perf_counter()
        opened[mode] = concatenate_samples([_opened(store, mode, config, comm) for store in stores])
        open_s = comm.allreduce(time.perf_counter() - began, MPI.MAX)
        opening[mode] = open_s, comm.allreduce(_memory() - before, MPI.MAX)
    _compare(opened)
    size = _mean_bytes(opened[modes[0]], config)
    nodes = len(set(comm.allgather(MPI.Get_processor_name())))
    floor = CopyFloor(us_per_sample=_copying_us(size, config.batch_size), what="copying as many bytes in memory")

    def describe(mode: ReadMode) -> Reading:
        reading = Reading(
            mode=mode, open_s=opening[mode][0], rss_bytes=opening[mode][1], ranks=comm.size, nodes=nodes,
            sets=[s.stem for s in stores], roles=[_role(s) for s in stores], split=TRAINING_SPLIT,
            samples=len(opened[modes[0]]), bytes_per_sample_mean=size, floor=floor,
        )  # fmt: skip
        if mode == "distributed":
            parts = [p for p in opened[mode].parts if isinstance(p, DistributedStore)]
            reading.width, reading.backend = config.width or comm.size, parts[0].backend.name
        return reading

    log.record_facts(DataFacts(reading=[describe(mode) for mode in modes]))
    for number in range(config.rounds):
        log.write(Progress(done=number, total=config.rounds, what="rounds"))
        for mode, samples in opened.items():
            _round(mode, number, samples=samples, config=config, comm=comm, log=log)
    for samples in opened.values():
        samples.close()


def modes_that_fit(
    modes: Sequence[ReadMode], stores: Sequence[Path], comm: MPI.Comm
) -> tuple[list[ReadMode], list[str]]:
    """The modes for which a node has memory, one after the other, and what to say of the others."""
    sizes = [BPFile(store).nbytes(TRAINING_SPLIT, wanted(store)) for store in stores]
    whole, here = sum(sizes), comm.Split_type(MPI.COMM_TYPE_SHARED).size
    copies = {"on_demand": 0.0, "preload": here, "shared": 1.0, "distributed": here / comm.size}
    room = comm.allreduce(psutil.virtual_memory().available, MPI.MIN) * SHARE_OF_MEMORY
    found: list[ReadMode] = []
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


def _opened(store: Path, mode: ReadMode, config: DataParameters, comm: MPI.Comm) -> Samples:
    return open_samples(
        store, TRAINING_SPLIT, mode, comm=comm, width=config.width, keys=wanted(store), backend=config.store_backend
    )


def wanted(store: Path) -> list[str]:
    """What training reads of a sample, as far as the store has it."""
    with BPFile(store) as file:
        return [key for key in (*REQUIRED_KEYS, "forces", *EDGE_KEYS) if key in file.keys(TRAINING_SPLIT)]


def _round(
    mode: str, number: int, *, samples: ConcatenatedSamples, config: DataParameters, comm: MPI.Comm, log: CaseLog
) -> None:
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
            ReadSample(
                mode=mode, round=number, seconds=float(slowest[k]), batch=config.batch_size,
                bytes=float(mean[k]) / comm.size, ranks=comm.size,
            )
        )  # fmt: skip


def _compare(opened: dict[ReadMode, ConcatenatedSamples]) -> None:
    """Raise InputError unless every mode gives the same bytes."""
    first, *others = opened
    picked = np.linspace(0, len(opened[first]) - 1, COMPARED).astype(np.int64)
    expected = opened[first].get(picked)
    for mode in others:
        for index, a, b in zip(picked.tolist(), expected, opened[mode].get(picked), strict=True):
            if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
                raise InputError(f"sample {index} is not the same when read in modes {first} and {mode}")


def _mean_bytes(samples: ConcatenatedSamples, config: DataParameters) -> float:
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
