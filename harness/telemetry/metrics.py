"""What the metrics of Omnistat, and those of the harness's own sampler, measure: tables.

Omnistat's names, labels and units are those of its documentation, https://rocm.github.io/omnistat/metrics.html (v1.14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.protocol.text import sanitize_line

Kind = Literal["gauge", "counter"]
# Who tells of a component's energy or power, best first; of one node only one of them is believed.
ORIGINS = ("rocm", "nvml", "cray", "rapl")
COMPONENTS = ("node", "accelerator", "cpu", "memory")


@dataclass(frozen=True)
class Quantity:
    """What a metric measures: a name with its unit, whether it accumulates, the label that tells devices apart, who
    tells, and what a value is multiplied with to come to that unit."""

    name: str
    kind: Kind = "gauge"
    device: str | None = None
    origin: str = ""
    scale: float = 1.0


QUANTITIES: dict[str, Quantity] = {
    "rocm_utilization_percentage": Quantity("accelerator_utilization_percent", device="card"),
    "rocm_vram_used_percentage": Quantity("accelerator_memory_percent", device="card"),
    "rocm_vram_total_bytes": Quantity("accelerator_memory_total_bytes", device="card"),
    "rocm_average_socket_power_watts": Quantity("accelerator_power_w", device="card", origin="rocm"),
    "rocm_energy_joules": Quantity("accelerator_energy_j", "counter", "card", "rocm"),
    "rocm_sclk_clock_mhz": Quantity("accelerator_clock_mhz", device="card"),
    "rocm_temperature_celsius": Quantity("accelerator_temperature_c", device="card"),
    "omnistat_host_mem_total_bytes": Quantity("host_memory_total_bytes"),
    "omnistat_host_mem_available_bytes": Quantity("host_memory_available_bytes"),
    "omnistat_host_cpu_aggregate_core_utilization": Quantity("busy_cores"),
    "omnistat_host_io_read_total_bytes": Quantity("read_bytes", "counter", "pid"),
    "omnistat_host_io_write_total_bytes": Quantity("written_bytes", "counter", "pid"),
    "omnistat_host_io_read_local_total_bytes": Quantity("local_read_bytes", "counter"),
    "omnistat_host_io_write_local_total_bytes": Quantity("local_written_bytes", "counter"),
    "omnistat_network_rx_bytes": Quantity("received_bytes", "counter", "interface"),
    "omnistat_network_tx_bytes": Quantity("sent_bytes", "counter", "interface"),
    "omnistat_vendor_energy_joules": Quantity("node_energy_j", "counter", origin="cray"),
    "omnistat_vendor_power_watts": Quantity("node_power_w", origin="cray"),
    "omnistat_vendor_cpu_energy_joules": Quantity("cpu_energy_j", "counter", origin="cray"),
    "omnistat_vendor_cpu_power_watts": Quantity("cpu_power_w", origin="cray"),
    "omnistat_vendor_memory_energy_joules": Quantity("memory_energy_j", "counter", origin="cray"),
    "omnistat_vendor_memory_power_watts": Quantity("memory_power_w", origin="cray"),
    "omnistat_vendor_accel_energy_joules": Quantity("accelerator_energy_j", "counter", "accel", "cray"),
    "omnistat_vendor_accel_power_watts": Quantity("accelerator_power_w", device="accel", origin="cray"),
    "harness_gpu_energy_joules": Quantity("accelerator_energy_j", "counter", "card", "nvml"),
    "harness_gpu_power_watts": Quantity("accelerator_power_w", device="card", origin="nvml"),
    "harness_gpu_utilization_percentage": Quantity("accelerator_utilization_percent", device="card"),
    "harness_gpu_memory_used_percentage": Quantity("accelerator_memory_percent", device="card"),
    "harness_gpu_temperature_celsius": Quantity("accelerator_temperature_c", device="card"),
    "harness_gpu_clock_mhz": Quantity("accelerator_clock_mhz", device="card"),
    "harness_cpu_energy_joules": Quantity("cpu_energy_j", "counter", "package", "rapl"),
    "harness_memory_energy_joules": Quantity("memory_energy_j", "counter", "package", "rapl"),
    "harness_sampler_cpu_seconds": Quantity("sampler_cpu_s", "counter"),
}  # fmt: skip

# What a device can show, in its unit; of a counter, what it can gain in a second. Beyond them a sensor is at fault.
WATTS, NODE_WATTS = (0.0, 5e3), (0.0, 5e4)
PERCENT, BYTES, BYTES_PER_S = (0.0, 100.5), (0.0, 1e18), (0.0, 1e13)
BOUNDS: dict[str, tuple[float, float]] = {
    "node_power_w": NODE_WATTS, "accelerator_power_w": WATTS, "cpu_power_w": WATTS, "memory_power_w": WATTS,
    "node_energy_j": NODE_WATTS, "accelerator_energy_j": WATTS, "cpu_energy_j": WATTS, "memory_energy_j": WATTS,
    "accelerator_utilization_percent": PERCENT, "accelerator_memory_percent": PERCENT,
    "accelerator_temperature_c": (-60.0, 250.0), "accelerator_clock_mhz": (0.0, 2e4), "busy_cores": (0.0, 1e5),
    "accelerator_memory_total_bytes": BYTES, "host_memory_total_bytes": BYTES, "host_memory_available_bytes": BYTES,
    "memory_traffic_bytes": (0.0, 1e15), "sampler_cpu_s": (0.0, 10.0),
}  # fmt: skip
OPERATIONS_PER_S = (0.0, 1e18)

HARDWARE_COUNTER = "omnistat_hardware_counter"
FIGURE_OF_MERIT = "omnistat_fom"
ANNOTATION = "rmsjob_annotations"
JOB, ABOUT = "rmsjob_info", "omnistat_info"
# A wavefront of the CDNA GPUs is 64 lanes; a fused multiply-add is two operations. MOPS counts 512 operations each.
# Source: ROCm documentation, MI200 performance counters and metrics.
LANES, MATRIX_UNIT = 64.0, 512.0
VECTOR = re.compile(r"SQ_INSTS_VALU_(ADD|MUL|TRANS|FMA)_F(16|32|64)")
MATRIX = re.compile(r"(?:SQ_INSTS_VALU_)?MFMA_MOPS_(F64|XF32|F32|BF16|F16)")
MEMORY = {"FETCH_SIZE", "WRITE_SIZE"}


def quantity_of(labels: Mapping[str, str]) -> Quantity | None:
    """What a series measures; None if the harness has no use for it.

    Hardware counters come as operations (`flop_f64`, of all lanes of a wavefront, active or not) and bytes of device
    memory (`memory_traffic_bytes`).
    """
    name = labels.get("__name__", "").strip()
    if name != HARDWARE_COUNTER:
        return QUANTITIES.get(name)
    counter = labels.get("name", "").strip()
    if counter in MEMORY:
        return Quantity("memory_traffic_bytes", "counter", "card", counter, 1024.0)
    if found := VECTOR.fullmatch(counter):
        operations = LANES * (2.0 if found[1] == "FMA" else 1.0)
        return Quantity(f"flop_f{found[2]}", "counter", "card", counter, operations)
    if found := MATRIX.fullmatch(counter):
        return Quantity(f"flop_{found[1].lower()}", "counter", "card", counter, MATRIX_UNIT)
    return None


def bounds_of(quantity: Quantity) -> tuple[float, float]:
    """Return the lowest and highest value of a gauge, or gain of a counter in a second, that is no fault."""
    if quantity.name.startswith("flop_"):
        return OPERATIONS_PER_S
    return BOUNDS.get(quantity.name, BYTES_PER_S)


def name_of(labels: Mapping[str, str]) -> str:
    """Return what a series is called in messages: `rocm_energy_joules of n1, card 0`."""
    name = labels.get("__name__", "").strip()
    others = (
        f", {label} {labels[label]}" for label in ("card", "accel", "package", "interface", "name") if label in labels
    )
    return sanitize_line(f"{name} of {host_of(labels) or 'no node'}{''.join(others)}")[:200]


def host_of(labels: Mapping[str, str]) -> str:
    """The node that a series is from, without domain and port."""
    return short(labels.get("instance", ""))


def short(host: str) -> str:
    """A host's name without domain and port."""
    return host.split(":", 1)[0].split(".", 1)[0]
