"""A lightweight sampler of telemetry for machines without Omnistat.

The sampler is a thread in the first rank of each node and in each rank with a GPU. It writes telemetry/<node>-<local
rank>.jsonl in the form of Omnistat's raw export: host memory, busy cores, disk and network; the energy of CPUs with
readable RAPL (running average power limit) counters; energy, power, utilisation, memory, temperature and clock of the
rank's NVIDIA GPU if pynvml is installed. Sensors that do not exist are omitted. A failure ends the sampling, not the
run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from harness.host.locks import hold_lock

INTERVAL_VARIABLE, FOLDER_VARIABLE = "GFM_HARNESS_SAMPLER_S", "GFM_HARNESS_TELEMETRY"
TELEMETRY = "telemetry"
# Samples are buffered for this many seconds; a kill loses no more than that.
BUFFER_S = 20.0
RAPL = Path("/sys/class/powercap")
Key = tuple[tuple[str, str], ...]  # name and labels of a metric
Reading = tuple[str, Mapping[str, str], float]  # name, labels and value of a metric
Reader = Callable[[], Iterable[Reading]]


class NodeSampler(threading.Thread):
    """A thread that calls all readers at a fixed interval, and appends their readings to one file.

    Args:
        path: The file.
        interval_s: The interval in seconds.
        readers: Functions that return readings: name, labels and value.
    """

    def __init__(self, path: Path, interval_s: float, readers: Iterable[Reader]) -> None:
        super().__init__(name="sampler", daemon=True)
        self._path, self._every_s, self._readers = path, interval_s, tuple(readers)
        self._stopped = threading.Event()
        self._buffer: dict[Key, tuple[list[int], list[float]]] = {}

    def run(self) -> None:
        """Sample until `stop` is called; a full disk or a sensor that fails ends the thread silently."""
        with suppress(Exception), self._path.open("ab") as out, hold_lock(self._path):  # another process may write too
            written = time.monotonic()
            try:
                while not self._stopped.wait(self._sample()):
                    if time.monotonic() - written > BUFFER_S:
                        self._write(out.fileno())
                        written = time.monotonic()
                self._sample()
            finally:
                self._write(out.fileno())

    def stop(self) -> None:
        """Take a last sample, and write the buffer."""
        self._stopped.set()
        if self.is_alive():
            self.join(2.0)

    def _sample(self) -> float:
        """Read every sensor once, and return the seconds until the next sample."""
        now = time.time()
        milliseconds = round(1e3 * now)
        cost: Reading = ("harness_sampler_cpu_seconds", {}, time.thread_time())
        for name, labels, value in [*(reading for reader in self._readers for reading in reader()), cost]:
            if math.isfinite(value):
                times, values = self._buffer.setdefault((("__name__", name), *labels.items()), ([], []))
                times.append(milliseconds)
                values.append(value)
        return max(0.0, self._every_s - (time.time() - now))

    def _write(self, handle: int) -> None:
        node = platform.node()
        lines = [
            json.dumps({"metric": {**dict(key), "instance": node}, "values": values, "timestamps": times},
                       separators=(",", ":"))
            for key, (times, values) in self._buffer.items()
        ]  # fmt: skip
        self._buffer.clear()
        if lines:
            os.write(handle, "".join(f"{line}\n" for line in lines).encode())


def start(folder: Path, local_rank: int, *, on_gpu: bool) -> NodeSampler | None:
    """Start the sampler of this rank if the job asks for sampling, and return it.

    The first rank of a node samples the node; every rank that computes on a GPU samples its GPU. Child processes write
    into the same folder.

    Args:
        folder: The folder of the case.
        local_rank: The rank within the node.
        on_gpu: Whether the rank computes on a GPU.

    Returns:
        The sampler, or None if this rank has nothing to sample or cannot write.
    """
    try:
        interval_s = float(os.environ.get(INTERVAL_VARIABLE) or 0.0)
    except ValueError:
        return None
    if not interval_s > 0.0:
        return None
    readers: list[Reader] = list(iter_node_readers()) if local_rank == 0 else []
    if on_gpu:
        readers += iter_gpu_readers(local_rank)
    if not readers:
        return None
    target = Path(os.environ.setdefault(FOLDER_VARIABLE, str(folder.resolve() / TELEMETRY)))
    with suppress(OSError):
        target.mkdir(exist_ok=True)
        sampler = NodeSampler(target / f"{platform.node()}-{local_rank}.jsonl", interval_s, readers)
        sampler.start()
        return sampler
    return None


def iter_node_readers() -> Iterator[Reader]:
    """Yield the readers of a node's sensors, without GPUs."""
    yield read_host
    packages = sorted(RAPL.glob("intel-rapl:*")) if RAPL.is_dir() else []
    zones = [zone for zone in packages if os.access(zone / "energy_uj", os.R_OK)]
    if zones:
        yield Rapl(zones)


def read_host() -> Iterator[Reading]:
    """Yield memory, busy cores, disk and network traffic of this node."""
    memory = psutil.virtual_memory()
    yield "omnistat_host_mem_total_bytes", {}, memory.total
    yield "omnistat_host_mem_available_bytes", {}, memory.available
    yield "omnistat_host_cpu_aggregate_core_utilization", {}, _measure_busy_cores()
    disks = psutil.disk_io_counters()
    if disks is not None:
        yield "omnistat_host_io_read_local_total_bytes", {}, disks.read_bytes
        yield "omnistat_host_io_write_local_total_bytes", {}, disks.write_bytes
    for interface, count in psutil.net_io_counters(pernic=True).items():
        if interface != "lo":
            yield "omnistat_network_rx_bytes", {"interface": interface}, count.bytes_recv
            yield "omnistat_network_tx_bytes", {"interface": interface}, count.bytes_sent


def _measure_busy_cores() -> float:
    """Return the mean number of busy cores since the last call; the first call returns 0."""
    return psutil.cpu_percent() / 100.0 * (psutil.cpu_count() or 1)


class Rapl:
    """A reader of the energy of CPU packages and their memory that corrects for counters that wrap around."""

    def __init__(self, zones: Iterable[Path]) -> None:
        self._zones = {
            zone: (_read_text(zone / "name"), int(_read_text(zone / "max_energy_range_uj"))) for zone in zones
        }
        self._last: dict[Path, int] = {}
        self._wraps: dict[Path, int] = dict.fromkeys(self._zones, 0)

    def __call__(self) -> Iterator[Reading]:
        """Yield the joules of each package and of its memory; only differences between samples are meaningful."""
        for zone, (name, largest) in self._zones.items():
            # core and uncore are parts of a package; psys is the whole platform
            kind = "cpu" if name.startswith("package") else "memory" if name == "dram" else None
            if kind is None:
                continue
            value = int(_read_text(zone / "energy_uj"))
            self._wraps[zone] += value < self._last.get(zone, 0)
            self._last[zone] = value
            joules = (value + self._wraps[zone] * largest) / 1e6
            yield f"harness_{kind}_energy_joules", {"package": zone.name.removeprefix("intel-rapl:")}, joules


def iter_gpu_readers(local_rank: int) -> Iterator[Reader]:
    """Yield the reader of this rank's GPU; none without pynvml (package nvidia-ml-py) or without a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        index = find_local_gpu(local_rank, pynvml.nvmlDeviceGetCount())
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:
        return
    label = {"card": str(index)}
    sensors: dict[str, Callable[[], float]] = {
        "energy_joules": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
        "power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_used_percentage": lambda: _compute_percentage(pynvml.nvmlDeviceGetMemoryInfo(gpu)),
        "temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        "clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    }

    def read() -> Iterator[Reading]:
        for name, value in sensors.items():
            with suppress(pynvml.NVMLError):  # not every GPU has every sensor
                yield f"harness_gpu_{name}", label, float(value())

    yield read


def find_local_gpu(local_rank: int, count: int) -> int:
    """Return the machine-wide index of the GPU that a rank uses.

    CUDA_VISIBLE_DEVICES may restrict the GPUs; UUIDs in it are ignored.

    Args:
        local_rank: The rank within the node.
        count: Number of GPUs of the machine.
    """
    numbers = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [int(number) for number in numbers if number.isdecimal() and int(number) < count] or list(range(count))
    return visible[local_rank % len(visible)]


def _compute_percentage(memory: Any) -> float:
    return float(100.0 * memory.used / memory.total)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
