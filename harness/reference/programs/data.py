"""Convert one dataset to a store, or time reading from all stores in every mode on all ranks (suites/data.yaml).

`convert` writes store/<slug>.bp in the folder of the case; `read` reads the stores of the cases on which it depends.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import psutil

from harness.protocol.case import upgrade_case
from harness.protocol.events import CaseLog
from harness.protocol.programs.data import CopyFloor, DataFacts, DataParameters, Reading, ReadSample
from harness.protocol.records import Failure, Progress
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.collection import TRAINING_SPLIT
from harness.reference.datasets.conversion.convert import convert, find_official_files, plan_conversion
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.splits import SPLIT_NAMES
from harness.reference.distributed import launch
from harness.reference.distributed.launch import RankInfo, describe_error
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.collectives import abort_on_error, get_mpi_world
from harness.reference.storage.memory.distributed import DistributedStore
from harness.reference.storage.open import ReadMode, open_samples
from harness.reference.storage.samples import ConcatenatedSamples, Samples
from harness.reference.storage.schema import Sample
from harness.reference.storage.structure_codec import EDGE_KEYS, REQUIRED_KEYS

if TYPE_CHECKING:
    from mpi4py import MPI


def run(parameters: DataParameters, log: CaseLog, folder: Path) -> None:
    """Convert one dataset, or read all stores in every mode."""
    if parameters.action == "convert":
        convert_dataset(parameters, log, folder)
    else:
        benchmark_modes(parameters, list_earlier_stores(folder), launch.detect_rank(os.environ), log)


def convert_dataset(parameters: DataParameters, log: CaseLog, folder: Path) -> None:
    """Convert a dataset to a store in the folder of the case."""
    entry = find_source(parameters.dataset)
    rules = ConversionRules(
        cutoff=parameters.cutoff,
        max_neighbours=parameters.max_neighbours,
        max_force=parameters.max_force,
        split_seed=parameters.seed,
        strict=parameters.strict,
    )
    target = folder / "store" / f"{entry.slug}.bp"
    shutil.rmtree(target, ignore_errors=True)  # an earlier attempt may have left a store without logging its facts
    workers = parameters.workers or len(os.sched_getaffinity(0))
    plan = plan_conversion(entry, find_official_files(parameters.dataset_folder, entry), target, rules, workers)

    def report(done: int, total: int, activity: str) -> None:
        log.write(Progress(done=done, total=total, activity=activity))

    log.record_facts(msgspec.convert(convert(plan, report), DataFacts))


def list_earlier_stores(folder: Path) -> list[Path]:
    """Return the stores of the cases on which this case depends, in the order of their heads."""
    needed = upgrade_case(json.loads((folder / "case.json").read_text(encoding="utf-8")))["depends_on"]
    stores = [path for name in needed for path in (folder.resolve().parent / name / "store").glob("*.bp")]
    if not stores:
        raise InputError("no store: this case reads the stores of the conversions on which it depends")
    return sorted(stores, key=lambda path: find_source(path.stem).branch)


USABLE_SHARE = 0.6  # the share of the free memory that the samples may occupy
COMPARED_SAMPLES = 32  # number of samples whose bytes must be equal in every mode


def benchmark_modes(config: DataParameters, stores: Sequence[Path], rank_info: RankInfo, log: CaseLog) -> None:
    """Open the stores in every mode that fits into memory, and log the times of batches in rounds; collective.

    Raises:
        InputError: Two modes return different samples, or no mode fits into memory.
    """
    comm = get_mpi_world(rank_info)
    with abort_on_error(comm):
        try:
            _benchmark(config, stores, log, comm)
        except Exception as error:
            if comm.size > 1:  # abort_on_error then ends this process without logging the error
                log.write(Failure(message=describe_error(error)))
            raise


def _benchmark(config: DataParameters, stores: Sequence[Path], log: CaseLog, comm: MPI.Comm) -> None:
    from mpi4py import MPI  # imported here, as it starts MPI, which conversions do not need

    datasets: dict[ReadMode, ConcatenatedSamples] = {}
    open_costs: dict[ReadMode, tuple[float, int]] = {}
    modes, skipped = select_fitting_modes(config.read_modes, stores, comm)
    if skipped:
        log.record_facts(DataFacts(unavailable_modes=skipped))
    for mode in modes:
        before, started = _measure_memory(), time.perf_counter()
        datasets[mode] = ConcatenatedSamples([_open_store(store, mode, config, comm) for store in stores])
        open_s = comm.allreduce(time.perf_counter() - started, MPI.MAX)
        open_costs[mode] = open_s, comm.allreduce(_measure_memory() - before, MPI.MAX)
    _check_equal(datasets)
    sample_bytes = _compute_mean_count_bytes(datasets[modes[0]], config)
    nodes = len(set(comm.allgather(MPI.Get_processor_name())))
    floor = CopyFloor(
        us_per_sample=_time_copy_us(sample_bytes, config.batch_size), description="copying as many bytes in memory"
    )

    def describe(mode: ReadMode) -> Reading:
        reading = Reading(
            read_mode=mode, open_s=open_costs[mode][0], rss_bytes=open_costs[mode][1], ranks=comm.size, nodes=nodes,
            datasets=[s.stem for s in stores], data_origins=[_read_origin(s) for s in stores],
            split=SPLIT_NAMES[TRAINING_SPLIT], samples=len(datasets[modes[0]]),
            bytes_per_sample_mean=sample_bytes, floor=floor,
        )  # fmt: skip
        if mode == "distributed":
            opened = [s for s in datasets[mode].parts if isinstance(s, DistributedStore)]
            reading.replica_ranks, reading.backend = config.replica_ranks or comm.size, opened[0].backend.name
        return reading

    log.record_facts(DataFacts(reading=[describe(mode) for mode in modes]))
    for number in range(config.rounds):
        log.write(Progress(done=number, total=config.rounds, activity="rounds"))
        for mode, samples in datasets.items():
            _time_round(mode, number, samples=samples, config=config, comm=comm, log=log)
    for samples in datasets.values():
        samples.close()


def select_fitting_modes(
    modes: Sequence[ReadMode], stores: Sequence[Path], comm: MPI.Comm
) -> tuple[list[ReadMode], list[str]]:
    """Return the modes that together fit into a node's memory, and why each other mode does not fit; collective."""
    from mpi4py import MPI

    sizes = [BPFile(store).nbytes(TRAINING_SPLIT, list_training_keys(store)) for store in stores]
    total, local_ranks = sum(sizes), comm.Split_type(MPI.COMM_TYPE_SHARED).size
    copies = {"on_demand": 0.0, "preload": local_ranks, "shared": 1.0, "distributed": local_ranks / comm.size}
    available = comm.allreduce(psutil.virtual_memory().available, MPI.MIN) * USABLE_SHARE
    fitting: list[ReadMode] = []
    skipped = []
    for mode in modes:
        needed = total * copies[mode]
        if needed > available:
            skipped.append(
                f"{mode} needs {needed / 1e9:.1f} GB of a node's memory, {available / 1e9:.1f} are available"
            )
        else:
            available -= needed
            fitting.append(mode)
    if not fitting:
        raise InputError(f"no mode fits into memory: {'; '.join(skipped)}")
    return fitting, skipped


def _read_origin(store: Path) -> str:
    """Return the origin of the data in a store, such as "official" or "stand-in for MPTrj"."""
    with BPFile(store) as file:
        about = file.attributes.get("about")
    return str(about["role"]) if isinstance(about, dict) else "unknown"


def _open_store(store: Path, mode: ReadMode, config: DataParameters, comm: MPI.Comm) -> Samples:
    return open_samples(
        store,
        TRAINING_SPLIT,
        mode,
        comm=comm,
        width=config.replica_ranks,
        keys=list_training_keys(store),
        backend=config.store_backend,
    )


def list_training_keys(store: Path) -> list[str]:
    """Return the keys that training reads and that the store has."""
    with BPFile(store) as file:
        return [key for key in (*REQUIRED_KEYS, "forces", *EDGE_KEYS) if key in file.keys(TRAINING_SPLIT)]


def _time_round(
    mode: str, number: int, *, samples: ConcatenatedSamples, config: DataParameters, comm: MPI.Comm, log: CaseLog
) -> None:
    """Time batches of random samples, which differ from rank to rank."""
    from mpi4py import MPI

    rng = np.random.default_rng((config.seed, number, comm.rank))
    batches = rng.integers(0, len(samples), (config.batches, config.batch_size))
    seconds, sizes = np.zeros(config.batches), np.zeros(config.batches)
    samples.get(batches[0])
    comm.Barrier()
    for k, indices in enumerate(batches):
        started = time.perf_counter()
        records = samples.get(indices)
        seconds[k] = time.perf_counter() - started
        sizes[k] = sum(map(_count_bytes, records))
    slowest, total = np.zeros_like(seconds), np.zeros_like(sizes)
    comm.Allreduce(seconds, slowest, MPI.MAX)
    comm.Allreduce(sizes, total, MPI.SUM)
    for k in range(config.batches):
        log.write(
            ReadSample(
                read_mode=mode, round=number, duration_s=float(slowest[k]), batch_size=config.batch_size,
                bytes=float(total[k]) / comm.size, ranks=comm.size,
            )
        )  # fmt: skip


def _check_equal(datasets: dict[ReadMode, ConcatenatedSamples]) -> None:
    """Raise InputError unless every mode returns the same bytes."""
    first, *others = datasets
    indices = np.linspace(0, len(datasets[first]) - 1, COMPARED_SAMPLES).astype(np.int64)
    expected = datasets[first].get(indices)
    for mode in others:
        for index, a, b in zip(indices.tolist(), expected, datasets[mode].get(indices), strict=True):
            if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
                raise InputError(f"sample {index} is not the same when read in modes {first} and {mode}")


def _compute_mean_count_bytes(samples: ConcatenatedSamples, config: DataParameters) -> float:
    indices = np.random.default_rng(config.seed).integers(0, len(samples), 1000)
    return float(np.mean([_count_bytes(record) for record in samples.get(indices)]))


def _count_bytes(sample: Sample) -> int:
    return sum(values.nbytes for values in sample.values())


def _time_copy_us(sample_bytes: float, count: int) -> float:
    """Return the microseconds for copying one sample of this size in memory, measured on `count` samples at once."""
    source = np.ones((count, max(1, int(sample_bytes))), dtype=np.uint8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) / count * 1e6


def _measure_memory() -> int:
    """Return the memory of this process in bytes; on Linux, shared pages count in proportion to their processes."""
    memory: Any = psutil.Process().memory_full_info()
    return int(getattr(memory, "pss", memory.rss))
