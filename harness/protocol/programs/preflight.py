"""Checks of a machine before the first campaign: parameters, events and facts of the program `preflight`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.backbones import BACKBONES, BackboneName
from harness.protocol.parameters import BackendName, DeviceName, Parameters
from harness.protocol.programs.data_parallel import Network
from harness.protocol.programs.model import Width
from harness.protocol.records import (
    Bytes,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Number,
    Part,
    PositiveCount,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

ItemName = Literal[
    "ranks", "environment", "limits", "packages", "devices", "binding", "distributed", "disk", "locks", "adios2",
    "kernels", "backbones", "ladder", "training", "screening", "resume", "checkpoint", "telemetry", "mpi",
]  # fmt: skip
Verdict = Literal["ok", "failed", "not checked"]
# The items that need one accelerator and nothing else of the machine.
GPU_ITEMS: tuple[ItemName, ...] = ("devices", "kernels", "ladder", "training", "screening")
NODE_ITEMS: tuple[ItemName, ...] = tuple(
    name for name in get_args(ItemName) if name not in ("ladder", "training", "screening")
)
ITEM_SETS: dict[str, tuple[ItemName, ...]] = {"node": NODE_ITEMS, "gpu": GPU_ITEMS}
ItemNames = Annotated[tuple[ItemName, ...], Field(min_length=1), AfterValidator(check_unique)]


class PreflightParameters(Parameters):
    """Checks of one or several nodes, each in a separate process."""

    items: Literal["node", "gpu"] = "node"
    """What is checked: all that a campaign needs of a node, or only the calculations on one accelerator."""
    only: ItemNames | None = None
    """The items to check, instead of all of the set; null: all."""
    device: DeviceName | None = None
    """The device of the calculations; null: the first kind of accelerator that torch sees, or else the CPU."""
    backend: BackendName = "gloo"
    """Library by which ranks exchange gradients."""
    accelerators: NonNegativeInt = 0
    """The number of accelerators of a node; 0: any."""
    accelerator_memory_gb: PositiveFloat | None = None
    """The memory of each accelerator in gigabytes; null: any."""
    network: Network | None = None
    """The network with which the bandwidth of all-reduces is compared."""
    backbones: Annotated[tuple[BackboneName, ...], Field(min_length=1), AfterValidator(check_unique)] = tuple(BACKBONES)
    """The backbones of which a training step is compiled; the ranks share them."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1), AfterValidator(check_unique)] | None = None
    """The widths of the models of the calculations; null: 64 and 337 on an accelerator, 16 on the CPU."""
    structures: PositiveInt | None = None
    """Number of structures in a batch of the calculations; null: 16 on an accelerator, 4 on the CPU."""
    checkpoint: str | None = None
    """A model of the user that must load and predict: a file, or the name of a shipped model; null: none."""
    scratch_folder: str | None = None
    """A folder on the disk of the node, in which $NAME stands for a variable; null: that of temporary files."""
    time_limit_s: PositiveFloat = 240.0
    """Time after which an item fails and its processes are ended."""


class Measurement(Part):
    """A number that an item measured, and its reference value."""

    name: str
    value: Number
    unit: str
    reference: Number | None = None
    """The number with which the value is compared."""


class Finding(Part):
    """The result of a check on one rank, or of all ranks together."""

    verdict: Verdict
    expected: str
    observed: str
    advice: str | None = None
    """What to do, in one sentence, unless the verdict is ok."""
    measurements: list[Measurement] | None = None


class ItemResult(EventRecord, tag="preflight_item"):
    """The result of one item on all ranks that checked it."""

    item: ItemName
    verdict: Verdict
    expected: str
    observed: str
    duration_s: Seconds
    advice: str | None = None
    """What to do, in one sentence, unless the verdict is ok."""
    measurements: list[Measurement] | None = None


class CalculationResult(Part):
    """A calculation in one formulation, compared with the plain formulation of the same calculation.

    Errors are relative to the largest value of the plain formulation in FP64.
    """

    calculation: str
    formulation: str
    precision: str
    width: PositiveCount | None = None
    error: Error | None = None
    tolerance: NonNegative | None = None
    duration_s: Duration | None = None
    plain_s: Duration | None = None
    """The duration of the plain formulation in the same precision."""
    peak_bytes: Bytes | None = None
    """Peak memory of the calculation."""
    unavailable_reason: str | None = None


class Calculation(EventRecord, tag="preflight_calculation"):
    """A calculation that an item compared, and the rank on which it ran."""

    item: ItemName
    rank: Count
    result: CalculationResult


class RankBinding(Part):
    """The CPUs and the device of a rank as the rank itself observed them; a CPU is a logical processor."""

    host: str
    local_rank: Count
    cpus: list[Count]
    """The CPUs that the operating system allows."""
    cores: list[Count]
    """The first CPU of each physical core among them."""
    rank: Count | None = None
    device: str | None = None
    """An identifier of the accelerator that no other accelerator has."""
    device_name: str | None = None
    near_cpus: list[Count] | None = None
    """The CPUs near the accelerator."""


class PreflightFacts(Facts):
    """The facts of a preflight."""

    hosts: list[str] | None = None
    """Host names of the nodes, each once, in the order of their first ranks."""
    world_size: PositiveCount | None = None
    """Number of ranks that the launcher announced, whether or not all of them connected."""
    device: str | None = None
    device_name: str | None = None
    """The name of the device of the calculations."""
    torch: str | None = None
    items: list[ItemName] | None = None
    """The items in the order of their checks."""
    bindings: list[RankBinding] | None = None


EVENTS = (ItemResult, Calculation)
