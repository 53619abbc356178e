"""Logs that the importers write: events and facts."""

from __future__ import annotations

from harness.protocol.records import Count, EventRecord, Facts, NonNegative, Number, Rate, Seconds


class HydraEpoch(EventRecord, tag="epoch"):
    """Losses of an epoch, and their place in HydraGNN's log."""

    epoch: int
    loss: Number | None
    source: str
    line: Count
    validation_loss: Number | None = None
    test_loss: Number | None = None


class HydraTasks(EventRecord, tag="task_errors"):
    """Errors of the tasks on one split after an epoch."""

    epoch: int
    split: str
    errors: list[Number | None]
    source: str | None = None
    line: Count | None = None


class HydraTimer(EventRecord, tag="timer"):
    """The time that a region of HydraGNN's timers took."""

    rank: Count
    name: str
    duration_s: Seconds | None


class HydraSample(EventRecord, tag="sample"):
    """A training throughput of a run of HydraGNN."""

    structures_per_s: Rate | None


class HydraRegion(EventRecord, tag="region"):
    """Time of a region of HydraGNN's profile."""

    rank: Count
    name: str
    calls: Count
    duration_s: Seconds


class HydraEnergy(EventRecord, tag="energy"):
    """Energy of a region of HydraGNN's profile."""

    tool: str
    rank: Count
    name: str
    calls: Count
    energy_j: NonNegative


class HydraGnnFacts(Facts):
    """Facts of an imported run."""

    notes: list[str] | None = None
    """Remarks about what could not be read or was reconstructed."""


class OmnistatFacts(Facts):
    """An imported export of telemetry has no facts."""


HYDRAGNN_EVENTS = (HydraEpoch, HydraTasks, HydraTimer, HydraSample, HydraRegion, HydraEnergy)
