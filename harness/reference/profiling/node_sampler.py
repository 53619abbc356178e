"""A light sampler for machines where no Omnistat runs: a thread of the first rank of each node, and of each with a GPU.

It writes telemetry/<node>-<local rank>.jsonl in the form of Omnistat's raw export: host memory, busy cores, disk and
network; the energy of CPUs with readable RAPL counters; of the rank's own NVIDIA GPU, where pynvml is installed, its
energy, power, utilisation, memory, temperature and clock. What is not there is not written. Whatever fails in it ends
the sampling, not the run.
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

from harness.host.locks import locked

EVERY, FOLDER = "GFM_HARNESS_SAMPLER_S", "GFM_HARNESS_TELEMETRY"
TELEMETRY = "telemetry"
# A kill loses at most so many seconds of samples.
HELD_S = 20.0
RAPL = Path("/sys/class/powercap")
Key = tuple[tuple[str, str], ...]
Reading = tuple[str, Mapping[str, str], float]
Reader = Callable[[], Iterable[Reading]]


class Sampler(threading.Thread):
    """Reads all readers every so many seconds, and appends what they said to one file."""

    def __init__(self, path: Path, every_s: float, readers: Iterable[Reader]) -> None:
        super().__init__(name="sampler", daemon=True)
        self._path, self._every_s, self._readers = path, every_s, tuple(readers)
        self._over = threading.Event()
        self._held: dict[Key, tuple[list[int], list[float]]] = {}

    def run(self) -> None:
        """Sample until stopped; a full disk or a sensor that goes away ends it in silence."""
        with suppress(Exception), self._path.open("ab") as out, locked(self._path):  # another process may be at it
            written = time.monotonic()
            try:
                while not self._over.wait(self._take()):
                    if time.monotonic() - written > HELD_S:
                        self._write(out.fileno())
                        written = time.monotonic()
                self._take()
            finally:
                self._write(out.fileno())

    def stop(self) -> None:
        """Take a last sample and write what is held."""
        self._over.set()
        if self.is_alive():
            self.join(2.0)

    def _take(self) -> float:
        """Read everything once; return the seconds to the next time."""
        now = time.time()
        milliseconds = round(1e3 * now)
        own: Reading = ("harness_sampler_cpu_seconds", {}, time.thread_time())
        for name, labels, value in [*(reading for reader in self._readers for reading in reader()), own]:
            if math.isfinite(value):
                times, values = self._held.setdefault((("__name__", name), *labels.items()), ([], []))
                times.append(milliseconds)
                values.append(value)
        return max(0.0, self._every_s - (time.time() - now))

    def _write(self, handle: int) -> None:
        node = platform.node()
        lines = [
            json.dumps({"metric": {**dict(key), "instance": node}, "values": values, "timestamps": times},
                       separators=(",", ":"))
            for key, (times, values) in self._held.items()
        ]  # fmt: skip
        self._held.clear()
        if lines:
            os.write(handle, "".join(f"{line}\n" for line in lines).encode())


def start(folder: Path, local_rank: int, *, on_gpu: bool) -> Sampler | None:
    """This rank's sampler, running, where the job asks for one: of the node for its first rank, of the rank's own GPU
    for every rank that computes on one.

    Programs that this one starts write into the same folder.
    """
    try:
        every_s = float(os.environ.get(EVERY) or 0.0)
    except ValueError:
        return None
    if not every_s > 0.0:
        return None
    own: list[Reader] = list(node_readers()) if local_rank == 0 else []
    if on_gpu:
        own += gpu_readers(local_rank)
    if not own:
        return None
    place = Path(os.environ.setdefault(FOLDER, str(folder.resolve() / TELEMETRY)))
    with suppress(OSError):
        place.mkdir(exist_ok=True)
        sampler = Sampler(place / f"{platform.node()}-{local_rank}.jsonl", every_s, own)
        sampler.start()
        return sampler
    return None


def node_readers() -> Iterator[Reader]:
    """Those of what this node has beside GPUs."""
    yield host
    packages = sorted(RAPL.glob("intel-rapl:*")) if RAPL.is_dir() else []
    zones = [zone for zone in packages if os.access(zone / "energy_uj", os.R_OK)]
    if zones:
        yield Rapl(zones)


def host() -> Iterator[Reading]:
    """Memory, busy cores, disks and network of this node."""
    memory = psutil.virtual_memory()
    yield "omnistat_host_mem_total_bytes", {}, memory.total
    yield "omnistat_host_mem_available_bytes", {}, memory.available
    yield "omnistat_host_cpu_aggregate_core_utilization", {}, _busy_cores()
    disks = psutil.disk_io_counters()
    if disks is not None:
        yield "omnistat_host_io_read_local_total_bytes", {}, disks.read_bytes
        yield "omnistat_host_io_write_local_total_bytes", {}, disks.write_bytes
    for interface, count in psutil.net_io_counters(pernic=True).items():
        if interface != "lo":
            yield "omnistat_network_rx_bytes", {"interface": interface}, count.bytes_recv
            yield "omnistat_network_tx_bytes", {"interface": interface}, count.bytes_sent


def _busy_cores() -> float:
    """Cores at work since it was asked last; 0 the first time."""
    return psutil.cpu_percent() / 100.0 * (psutil.cpu_count() or 1)


class Rapl:
    """Energy of CPU packages and their memory, unwrapped: the kernel's counters start anew at a maximum."""

    def __init__(self, zones: Iterable[Path]) -> None:
        self._zones = {zone: (_text(zone / "name"), int(_text(zone / "max_energy_range_uj"))) for zone in zones}
        self._last: dict[Path, int] = {}
        self._turns: dict[Path, int] = dict.fromkeys(self._zones, 0)

    def __call__(self) -> Iterator[Reading]:
        """Joules of each package and of its memory, since the machine was started."""
        for zone, (name, largest) in self._zones.items():
            kind = {"p": "cpu", "d": "memory"}.get(name[:1])  # package-0, dram; core and uncore are parts of a package
            if kind is None:
                continue
            value = int(_text(zone / "energy_uj"))
            self._turns[zone] += value < self._last.get(zone, 0)
            self._last[zone] = value
            joules = (value + self._turns[zone] * largest) / 1e6
            yield f"harness_{kind}_energy_joules", {"package": zone.name.removeprefix("intel-rapl:")}, joules


def gpu_readers(local_rank: int) -> Iterator[Reader]:
    """Of the GPU that this rank computes on; none without pynvml (package nvidia-ml-py) or without a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = own_gpu(local_rank, pynvml.nvmlDeviceGetCount())
        gpu = pynvml.nvmlDeviceGetHandleByIndex(card)
    except Exception:
        return
    label = {"card": str(card)}
    sensors: dict[str, Callable[[], float]] = {
        "energy_joules": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
        "power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_used_percentage": lambda: _share(pynvml.nvmlDeviceGetMemoryInfo(gpu)),
        "temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        "clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    }

    def read() -> Iterator[Reading]:
        for name, value in sensors.items():
            with suppress(pynvml.NVMLError):  # not every card has every sensor
                yield f"harness_gpu_{name}", label, float(value())

    yield read


def own_gpu(local_rank: int, count: int) -> int:
    """The machine's number of the GPU that a rank takes: of those that CUDA_VISIBLE_DEVICES leaves it, the one with the
    rank's own number, or the only one."""
    words = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    left = [int(word) for word in words if word.isdecimal() and int(word) < count] or list(range(count))
    return left[local_rank % len(left)]


def _share(memory: Any) -> float:
    return float(100.0 * memory.used / memory.total)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
