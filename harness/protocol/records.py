"""The types of the fields of events and facts, and the events that every program writes.

A null field means the same as a missing one: optional fields are null by default, and null is not written. Numbers have
generous bounds that depend on their unit, so that absurd values are refused.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

LARGE = 1e100
Number = Annotated[float, Meta(ge=-LARGE, le=LARGE)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGE)]
Positive = Annotated[float, Meta(gt=0, le=LARGE)]
Seconds = Annotated[float, Meta(ge=0, le=3.2e8)]  # ten years
Duration = Annotated[float, Meta(gt=0, le=3.2e8)]  # seconds of something that was timed
Time = Annotated[float, Meta(ge=0, le=4.2e9)]  # Unix seconds, to the year 2100
Bytes = Annotated[float, Meta(ge=0, le=1e16)]
Rate = Annotated[float, Meta(ge=0, le=1e16)]
PositiveRate = Annotated[float, Meta(gt=0, le=1e16)]
Count = Annotated[int, Meta(ge=0, le=10**16)]
PositiveCount = Annotated[int, Meta(ge=1, le=10**16)]
Share = Annotated[float, Meta(ge=0, le=1.001)]  # rounding may exceed 1
AtomicNumber = Annotated[int, Meta(ge=0, le=118)]
Counts = dict[str, Count]
Error = NonNegative  # eV/atom, eV/angstrom, or relative
Energy = Number
Config = dict[str, Any]  # hyperparameters of a model, from harness.reference.models.config.ModelConfig.asdict


class Part(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A mapping that is an event, a fact, or a field of one; unknown fields are errors."""


class EventRecord(Part, kw_only=True, tag_field="event"):
    """One line of an event log."""

    time_s: Time | None = None
    """Unix time in seconds, which the log adds."""


class Start(EventRecord, tag="start"):
    """The first event of a run; a log without a version is of version 1."""

    version: PositiveCount | None = None
    program: str | None = None
    case: str | None = None
    """The id of the case."""
    pid: Count | None = None


class Progress(EventRecord, tag="progress"):
    """The progress of the run."""

    done: Count
    total: Count
    activity: str | None = None


class FactEvent(EventRecord, tag="fact"):
    """A fact, which holds for the whole case; its name determines the type of its value."""

    name: str
    value: Raw


class Done(EventRecord, tag="done"):
    """The case succeeded."""


class Failure(EventRecord, tag="error"):
    """The case failed."""

    message: str
    kind: str | None = None
    """The class of the error, if the program knows it."""


class Stall(EventRecord, tag="stall"):
    """The file system of the log did not answer, so that all times around this event are too long."""

    seconds: Duration
    """The seconds for which the log could not be written."""


class Facts(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The facts of a program, with a field for each; a program may log several facts in one call or one at a time."""


COMMON_EVENTS: tuple[type[EventRecord], ...] = (Start, Progress, FactEvent, Done, Failure, Stall)


class HeldOutErrors(Part):
    """Errors of a head on a test set; null if there are no values to average, or if one is not finite."""

    head: str
    dataset: str
    data_origin: str
    level_of_theory: str
    structures: Count
    energy_mae_ev_per_atom: Error | None
    force_mae_ev_per_angstrom: Error | None
    atoms: Count | None = None
    structures_with_unseen_elements: Count | None = None
    """Number of structures with elements that the head's training set lacks, which the errors do not include."""
    energy_rmse_ev_per_atom: Error | None = None
    force_rmse_ev_per_angstrom: Error | None = None
    composition_mae_ev_per_atom: Error | None = None
    """Error of a linear model of the composition that was fitted to the training set."""
    composition_rmse_ev_per_atom: Error | None = None
    mean_mae_ev_per_atom: Error | None = None
    """Error of the mean energy per atom of the training set."""
    zero_force_mae_ev_per_angstrom: Error | None = None
    """Error of predicting zero forces."""
    zero_force_rmse_ev_per_angstrom: Error | None = None


class ObservedTypes(Part):
    """The types that occurred in one pass over a batch, by their names in torch."""

    parameters: list[str] | None = None
    matrix_layers: str | list[str] | None = None
    """Types that matrix layers returned."""
    pooled: str | list[str] | None = None
    energies: str | list[str] | None = None
    loss: str | list[str] | None = None
    forces: str | list[str] | None = None
    autocast: str | None = None
    positions: str | None = None
    encoder_output: str | None = None


class Observed(ObservedTypes):
    """The types, the device and the software that a run observed."""

    precision: str | None = None
    """The requested precision."""
    device: str | None = None
    device_name: str | None = None
    threads: PositiveCount | None = None
    torch: str | None = None
    world_size: PositiveCount | None = None
    backend: str | None = None
    compiled: bool | None = None
    eager_reason: str | None = None
    """The reason why the model was not compiled."""
    message_backend: str | None = None
    unfused_reason: str | None = None
    """The reason why the fused operator did not compute the messages."""
    default_sums_reason: str | None = None
    """The reason why PyTorch's functions, not the C++ operators, computed sums over neighbours on a CPU."""
    precisions: dict[str, ObservedTypes] | None = None
    """The types for each precision, if a case runs several."""


class ImplementationSource(Part):
    """The code of another implementation that a case ran, and the Python environment in which it ran."""

    name: str
    folder: str
    """The checkout of the code."""
    commit: str | None = None
    changed_since_commit: bool | None = None
    interpreter: str | None = None
    python: str | None = None
    """Version of the interpreter."""
    packages: dict[str, str] | None = None


class RankPlace(Part):
    """The node and the device of a rank."""

    host: str
    rank: Count | None = None
    node: str | None = None
    local_rank: Count | None = None
    device: str | None = None
    cores: PositiveCount | None = None
    """The number of CPUs on which the rank may run."""
    cpus: str | None = None
    """These CPUs, such as `0-6,64`."""


class PhysicsCheck(EventRecord, tag="physics_check"):
    """A check of the physics of a model: the violation of a property of every exact potential, and the tolerance."""

    check: str
    structure: str
    value: NonNegative | None
    """The violation; null if it could not be measured."""
    tolerance: NonNegative
    unit: str
    passed: bool | None
    model: str | None = None
    """The potential that was checked, in a comparison of potentials."""
    stage: str | None = None
    """The stage that was checked, on a ladder."""
    precision: str | None = None
    """The precision that was checked, in a comparison of precisions."""
    reason: str | None = None
    """The reason why the violation could not be measured."""
