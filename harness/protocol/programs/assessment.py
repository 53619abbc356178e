"""Assessment of the reliability of a screening's results: parameters and events."""

from __future__ import annotations

from harness.protocol.parameters import Fraction, ParameterGroup
from harness.protocol.records import (
    AtomicNumber,
    Count,
    Counts,
    Energy,
    Error,
    EventRecord,
    NonNegative,
    Number,
    Positive,
    Share,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt


class Assessment(ParameterGroup):
    """Assessment of a screening's results on a sample of its candidates."""

    sample: PositiveInt = 1000
    """Number of candidates in the sample, which is drawn at random without repetition; all if there are fewer."""
    reference_structures_per_dataset: PositiveInt = 200
    """Structures of each training set from which the distance of the candidates is computed."""
    false_alarm: Fraction = 0.05
    """Share of held-out structures that may be flagged, which determines the threshold of the distance."""
    n_labels: NonNegativeInt = 50
    """Number of candidates to label with reference calculations."""
    label_time_limit_s: PositiveFloat = 120.0
    """Maximum time of all reference calculations."""
    dropout: Fraction = 0.1
    """Share of the pooled features that dropout removes."""
    dropout_samples: PositiveInt = 16
    """Number of predictions per candidate, each with other features removed."""
    ensemble: tuple[str, ...] = ()
    """Checkpoints of the other members of an ensemble."""
    n_relaxations: NonNegativeInt = 10
    """Number of the best candidates to relax, of which no two differ only in volume."""
    relax_steps: PositiveInt = 200
    """Maximum number of steps of a relaxation."""
    seed: NonNegativeInt = 0
    """Seed of all random choices."""


class Calibration(EventRecord, tag="calibration"):
    """The distance from the training sets above which structures are flagged, false alarms, and detected structures."""

    threshold: NonNegative
    flagged_fraction: Share
    """Flagged share of the structures that determined the threshold."""
    false_alarms: Share
    """Flagged share of the other held-out structures."""
    calibration_structures: Count
    test_structures: Count
    ood_structures: Count
    """Implausible structures of each kind."""
    detected: dict[str, Share]
    """Flagged share of the implausible structures, by kind."""


class Uncertainty(EventRecord, tag="uncertainty"):
    """Median spread of the energies over the heads, over dropout and over an ensemble, for a part of the sample.

    Candidates without a spread, such as one over fewer than two values, do not count; without any other, it is null.
    """

    kind: str
    """`flagged` or `not flagged` candidates."""
    candidates: Count
    heads_ev_per_atom: Error | None
    dropout_ev_per_atom: Error | None
    ensemble_ev_per_atom: Error | None
    models: Count | None = None
    """Models of the ensemble."""
    with_spread: Counts | None = None
    """Number of candidates with a spread over `heads`, `dropout` and `ensemble`."""


class OutsideCoverage(EventRecord, tag="outside_coverage"):
    """Candidates of the sample that are outside of the model's coverage or have no finite embedding, by reason."""

    candidates: Count
    """All candidates of the sample."""
    reasons: Counts


class Unrelaxed(EventRecord, tag="unrelaxed"):
    """Best candidates that could not be relaxed, by reason."""

    candidates: Count
    reasons: Counts


class Overlap(EventRecord, tag="overlap"):
    """Wasserstein distance between structures of one kind and the training sets, along principal components."""

    kind: str
    structures: Count
    mean: NonNegative
    """Mean distance over components, in standard deviations of the training sets."""
    outside_range_fraction: Share
    wasserstein: list[NonNegative] | None = None
    """Distance along each component."""


class Elements(EventRecord, tag="elements"):
    """Numbers of candidates and of training structures that contain each element."""

    candidates: Counts
    unseen_elements: list[AtomicNumber]
    trained: Counts | None = None


class Embedding(EventRecord, tag="embedding"):
    """The first two principal components of the embeddings of some structures of one kind, for a figure."""

    kind: str
    x: list[Number]
    y: list[Number]


class SpotLabel(EventRecord, tag="label"):
    """One candidate with a calculated label, and the errors of the model."""

    head: str
    level_of_theory: str
    energy_error_ev_per_atom: Error
    force_error_ev_per_angstrom: Error
    flagged: bool
    formula: str | None = None
    distance: NonNegative | None = None
    risk_ev_per_atom: Error | None = None
    is_accepted: bool | None = None
    """Whether the risk is at most the threshold."""


class SampleRisk(EventRecord, tag="sample_risk"):
    """The risks of the candidates of the sample that are inside of the model's coverage."""

    candidates: Count
    threshold_ev_per_atom: NonNegative
    accepted_fraction: Share
    """Share of candidates with a risk of at most the threshold."""
    median_ev_per_atom: Error
    coverage: Share
    """Share of labels that the intervals should contain."""


class Unlabelled(EventRecord, tag="unlabelled"):
    """Labels that are missing, and candidates without a label that others replace."""

    reason: str
    """The number of labels, and why there are no more."""
    failed: Counts | None = None
    """Number of candidates whose calculation failed, by reason."""


class RelaxedCandidate(EventRecord, tag="relaxation"):
    """The relaxation of one of the best candidates: energies and volumes per atom before and after."""

    candidate: Count
    converged: bool
    steps: Count
    initial_energy_ev_per_atom: Energy
    final_energy_ev_per_atom: Energy
    initial_volume_angstrom3_per_atom: NonNegative
    final_volume_angstrom3_per_atom: NonNegative
    force_max_ev_per_angstrom: Error
    file: str | None = None
    energy_above_hull_mev_per_atom: Energy | None = None
    """By the head of the hull, after relaxation with it."""
    spacegroup: str | None = None
    duplicate_of: Count | None = None
    """The better candidate that relaxes to the same crystal."""
    formula: str | None = None
    chemistry: str | None = None
    prototype: str | None = None
    volume: str | None = None
    stream: str | None = None
    atoms: str | None = None


class StructureDrawing(EventRecord, tag="drawing"):
    """A projection of a relaxed crystal: its atoms as discs, from back to front, and the edges of its cell."""

    candidate: Count
    x: list[Number]
    """Centres of the discs in angstrom."""
    y: list[Number]
    radius: list[Positive]
    """Radii of the discs in angstrom."""
    colour: list[str]
    """Hexadecimal colours of the elements."""
    element: list[str]
    cell_x: list[Number]
    """The corners of the cell: four at its bottom and four at its top, each four in cyclic order."""
    cell_y: list[Number]


ASSESSMENT_EVENTS = (
    Calibration, Uncertainty, OutsideCoverage, Unrelaxed, Overlap, Elements, Embedding, SpotLabel, SampleRisk,
    Unlabelled, RelaxedCandidate, StructureDrawing,
)  # fmt: skip
