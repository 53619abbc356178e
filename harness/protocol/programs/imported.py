"""Logs that the importers write: events and facts."""

from __future__ import annotations

from harness.protocol.records import Count, EventRecord, Facts, NonNegative, Number, Rate, Seconds


class HydraEpoch(EventRecord, tag="epoch"):
    """Losses of an epoch, and the line of HydraGNN's log that contains them."""

    epoch: int
    loss: Number | None
    source: str
    line: Count
    validation_loss: Number | None = None
    test_loss: Number | None = None


class HydraTasks(EventRecord, tag="task_errors"):
    """Errors of HydraGNN's training tasks, such as energy, energy per atom and forces, on one split after an epoch."""

    epoch: int
    split: str
    errors: list[Number | None]
    source: str | None = None
    line: Count | None = None


class HydraTimer(EventRecord, tag="timer"):
    """The time of a region of code on one rank according to HydraGNN's timers."""

    rank: Count
    name: str
    duration_s: Seconds | None


class HydraSample(EventRecord, tag="sample"):
    """A throughput of inference that HydraGNN reports."""

    structures_per_s: Rate | None


class HydraRegion(EventRecord, tag="region"):
    """The time of a region of code on one rank according to HydraGNN's tracer."""

    rank: Count
    name: str
    calls: Count
    duration_s: Seconds


class HydraEnergy(EventRecord, tag="energy"):
    """The energy of a region of code on one rank according to HydraGNN's tracer."""

    tool: str
    rank: Count
    name: str
    calls: Count
    energy_j: NonNegative


class HydraGnnFacts(Facts):
    """Facts of an imported run."""

    notes: list[str] | None = None
    """Remarks about data that could not be read or were reconstructed."""


class OmnistatFacts(Facts):
    """The facts of an imported export of telemetry: none."""


HYDRAGNN_EVENTS = (HydraEpoch, HydraTasks, HydraTimer, HydraSample, HydraRegion, HydraEnergy)
