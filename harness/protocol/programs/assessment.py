"""How far a screening's results are to be trusted: parameters and events."""

from __future__ import annotations

from harness.protocol.parameters import ParameterGroup, Share
from harness.protocol.records import AtomicNumber, Count, Counts, Energy, Error, EventRecord, NotNegative, Number
from harness.protocol.records import Share as MeasuredShare
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import NonNegativeInt as ParameterNotNegative
from harness.protocol.types import Positive


class Trust(ParameterGroup):
    """How far a screening's results are to be trusted, found out on a sample of its candidates."""

    sample: ParameterCount = 1000
    """Candidates of the sample, drawn at random."""
    known_limit: ParameterCount = 200
    """Structures of each training set that are looked at."""
    false_alarm: Share = 0.05
    """Share of held-out structures that may be flagged."""
    labelled: ParameterNotNegative = 50
    """Candidates to calculate."""
    label_seconds: Positive = 120.0
    """Time for calculating them at most."""
    dropout: Share = 0.1
    """Share of the pooled features that is dropped."""
    draws: ParameterCount = 16
    """Draws of dropped features."""
    ensemble: tuple[str, ...] = ()
    """Further checkpoints."""
    relaxed: ParameterNotNegative = 10
    """Candidates to relax, of the best."""
    relax_steps: ParameterCount = 200
    """Steps of a relaxation at most."""
    seed: int = 0
    """Seed of everything that is drawn."""


class Calibration(EventRecord, tag="calibration"):
    """The threshold of the distance, its false alarms, and the strange structures that it detects."""

    threshold: NotNegative
    share: MeasuredShare
    """Of the structures that it was set on."""
    false_alarms: MeasuredShare
    calibrated_on: Count
    tested_on: Count
    strange: Count
    detected: dict[str, MeasuredShare]
    """By kind of strange structure."""


class Uncertainty(EventRecord, tag="uncertainty"):
    """Spread of heads, of dropout and of an ensemble over part of the sample, medians."""

    kind: str
    candidates: Count
    heads_ev_per_atom: Error | None
    dropout_ev_per_atom: Error | None
    ensemble_ev_per_atom: Error | None
    models: Count | None = None


class OutsideCoverage(EventRecord, tag="outside"):
    """Candidates of the sample that the model cannot know anything of, by reason."""

    candidates: Count
    reasons: Counts


class Unrelaxed(EventRecord, tag="unrelaxed"):
    """Best candidates that could not be relaxed, by reason."""

    of: Count
    reasons: Counts


class Overlap(EventRecord, tag="overlap"):
    """Distance of a kind of structures from the training sets, along principal components."""

    kind: str
    structures: Count
    mean: NotNegative
    beyond: MeasuredShare
    wasserstein: list[NotNegative] | None = None


class Elements(EventRecord, tag="elements"):
    """Structures in which every element occurs."""

    candidates: Counts
    never_seen: list[AtomicNumber]
    trained: Counts | None = None


class Embedding(EventRecord, tag="embedding"):
    """Two principal components of some structures of a kind, for a figure."""

    kind: str
    x: list[Number]
    y: list[Number]


class SpotLabel(EventRecord, tag="label"):
    """One candidate calculated, and how far the model was off."""

    head: str
    level: str
    off_ev_per_atom: Error
    force_off_ev_per_a: Error
    flagged: bool
    formula: str | None = None
    distance: NotNegative | None = None


class Unlabelled(EventRecord, tag="unlabelled"):
    """Why there are no labels, or not more."""

    why: str
    failed: Counts | None = None


class RelaxedCandidate(EventRecord, tag="relaxed"):
    """One of the best candidates, relaxed; energies and volumes per atom, before and after."""

    candidate: Count
    converged: bool
    steps: Count
    before_ev_per_atom: Energy
    after_ev_per_atom: Energy
    volume_before: NotNegative
    volume_after: NotNegative
    force_max_ev_per_a: Error
    file: str | None = None
    formula: str | None = None
    prototype: str | None = None
    volume: str | None = None
    stream: str | None = None
    atoms: str | None = None


ASSESSMENT_EVENTS = (
    Calibration, Uncertainty, OutsideCoverage, Unrelaxed, Overlap, Elements, Embedding, SpotLabel, Unlabelled,
    RelaxedCandidate,
)  # fmt: skip
