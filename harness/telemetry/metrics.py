"""Metrics of Omnistat and of the harness's sampler: their quantities, units and bounds.

Omnistat's names, labels and units are those of its documentation, https://rocm.github.io/omnistat/metrics.html (v1.14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.protocol.text import sanitize_line

Kind = Literal["gauge", "counter"]
# Sensors of a component's energy or power, best first; only one is used for each node.
SENSOR_PRIORITY = ("rocm", "nvml", "cray", "rapl")
COMPONENTS = ("node", "accelerator", "cpu", "memory")
DEVICE_LABELS = ("card", "accel", "package", "interface", "name")
MAX_NAME_LENGTH = 200


@dataclass(frozen=True)
class Quantity:
    """The quantity that a metric measures.

    Attributes:
        name: Name with its unit.
        kind: A counter accumulates; a gauge has a current value.
        device: The label that distinguishes devices; None for a quantity of the node.
        sensor: The interface that measures the quantity.
        scale: The factor that converts values of the metric to the unit in `name`.
    """

    name: str
    kind: Kind = "gauge"
    device: str | None = None
    sensor: str = ""
    scale: float = 1.0


QUANTITIES: dict[str, Quantity] = {
    "rocm_utilization_percentage": Quantity("accelerator_utilization_percent", device="card"),
    "rocm_vram_used_percentage": Quantity("accelerator_memory_percent", device="card"),
    "rocm_vram_total_bytes": Quantity("accelerator_memory_total_bytes", device="card"),
    "rocm_average_socket_power_watts": Quantity("accelerator_power_w", device="card", sensor="rocm"),
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
    "omnistat_vendor_energy_joules": Quantity("node_energy_j", "counter", sensor="cray"),
    "omnistat_vendor_power_watts": Quantity("node_power_w", sensor="cray"),
    "omnistat_vendor_cpu_energy_joules": Quantity("cpu_energy_j", "counter", sensor="cray"),
    "omnistat_vendor_cpu_power_watts": Quantity("cpu_power_w", sensor="cray"),
    "omnistat_vendor_memory_energy_joules": Quantity("memory_energy_j", "counter", sensor="cray"),
    "omnistat_vendor_memory_power_watts": Quantity("memory_power_w", sensor="cray"),
    "omnistat_vendor_accel_energy_joules": Quantity("accelerator_energy_j", "counter", "accel", "cray"),
    "omnistat_vendor_accel_power_watts": Quantity("accelerator_power_w", device="accel", sensor="cray"),
    "harness_gpu_energy_joules": Quantity("accelerator_energy_j", "counter", "card", "nvml"),
    "harness_gpu_power_watts": Quantity("accelerator_power_w", device="card", sensor="nvml"),
    "harness_gpu_utilization_percentage": Quantity("accelerator_utilization_percent", device="card"),
    "harness_gpu_memory_used_percentage": Quantity("accelerator_memory_percent", device="card"),
    "harness_gpu_temperature_celsius": Quantity("accelerator_temperature_c", device="card"),
    "harness_gpu_clock_mhz": Quantity("accelerator_clock_mhz", device="card"),
    "harness_cpu_energy_joules": Quantity("cpu_energy_j", "counter", "package", "rapl"),
    "harness_memory_energy_joules": Quantity("memory_energy_j", "counter", "package", "rapl"),
    "harness_sampler_cpu_seconds": Quantity("sampler_cpu_s", "counter"),
}  # fmt: skip

# Range of a gauge, or of a counter's increase in a second; values out of range come from faulty sensors.
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
JOB_INFO, COLLECTOR_INFO = "rmsjob_info", "omnistat_info"
# A wavefront of a CDNA GPU has 64 lanes; a fused multiply-add is two operations; MOPS counts units of 512 operations.
# Source: ROCm documentation, MI200 performance counters and metrics.
LANES, MATRIX_OPERATIONS = 64.0, 512.0
VECTOR = re.compile(r"SQ_INSTS_VALU_(ADD|MUL|TRANS|FMA)_F(16|32|64)")
MATRIX = re.compile(r"(?:SQ_INSTS_VALU_)?MFMA_MOPS_(F64|XF32|F32|BF16|F16)")
MEMORY = {"FETCH_SIZE", "WRITE_SIZE"}


def identify_quantity(labels: Mapping[str, str]) -> Quantity | None:
    """Return the quantity of a series; None if the harness does not use it.

    Hardware counters are converted to operations (`flop_f64`, of all lanes of a wavefront, active or not) and bytes of
    device memory (`memory_traffic_bytes`).
    """
    name = labels.get("__name__", "").strip()
    if name != HARDWARE_COUNTER:
        return QUANTITIES.get(name)
    counter = labels.get("name", "").strip()
    if counter in MEMORY:
        return Quantity("memory_traffic_bytes", "counter", "card", counter, 1024.0)
    if match := VECTOR.fullmatch(counter):
        operations = LANES * (2.0 if match[1] == "FMA" else 1.0)
        return Quantity(f"flop_f{match[2]}", "counter", "card", counter, operations)
    if match := MATRIX.fullmatch(counter):
        return Quantity(f"flop_{match[1].lower()}", "counter", "card", counter, MATRIX_OPERATIONS)
    return None


def get_bounds(quantity: Quantity) -> tuple[float, float]:
    """Return the valid range of a gauge, or of a counter's increase in a second."""
    if quantity.name.startswith("flop_"):
        return OPERATIONS_PER_S
    return BOUNDS.get(quantity.name, BYTES_PER_S)


def format_name(labels: Mapping[str, str]) -> str:
    """Return the name of a series in messages: `rocm_energy_joules of n1, card 0`."""
    name = labels.get("__name__", "").strip()
    device = "".join(f", {label} {labels[label]}" for label in DEVICE_LABELS if label in labels)
    return sanitize_line(f"{name} of {get_host(labels) or 'no node'}{device}")[:MAX_NAME_LENGTH]


def get_host(labels: Mapping[str, str]) -> str:
    """Return the name of the node that a series comes from, without domain and port."""
    return shorten_hostname(labels.get("instance", ""))


def shorten_hostname(host: str) -> str:
    """Return a host's name without domain and port."""
    return host.split(":", 1)[0].split(".", 1)[0]
