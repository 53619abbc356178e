"""Screening of candidates, and assessment of its results: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import (
    AtomRange,
    BackendName,
    DeviceName,
    MessageBackendName,
    ParameterGroup,
    Parameters,
    PrecisionName,
)
from harness.protocol.programs.assessment import ASSESSMENT_EVENTS, Assessment
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    AtomicNumber,
    Bytes,
    Config,
    Count,
    Counts,
    Energy,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Part,
    Positive,
    PositiveCount,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

FilterName = Literal["no_elements", "no_noble_gases", "charge_balance", "no_intermetallics", "no_duplicates"]
DEFAULT_FILTERS: tuple[FilterName, ...] = ("no_elements", "no_noble_gases", "charge_balance", "no_duplicates")
ScoreColumn = Literal[
    "energy_ev_per_atom", "residual_energy_ev_per_atom", "spread_ev_per_atom", "force_max_ev_per_angstrom", "distance",
    "risk_ev_per_atom",
]  # fmt: skip


class Candidates(ParameterGroup):
    """The candidates to screen."""

    kind: Literal["prototypes", "random"] = "prototypes"
    """Crystals with the structure of a prototype, or the random structures of the paper."""
    elements: tuple[str, ...] = ()
    """Symbols of the elements of crystals; empty: all elements up to plutonium that the head of the hull, or else the
    model, knows."""
    volumes: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.94, 1.0, 1.06, 1.12)
    """Volumes of a crystal, relative to an estimate from atomic radii."""
    filters: Annotated[tuple[FilterName, ...], AfterValidator(check_unique)] = DEFAULT_FILTERS
    """Filters that crystals have to pass, in this order. Compounds of metals alone pass the charge balance, unless
    `no_intermetallics` removes them; so do single elements, the references of the hull, unless `no_elements` does."""
    streams: PositiveInt = 1
    """Number of streams of random structures."""
    per_stream: PositiveInt = 15_000
    """The number of random structures in each stream."""
    atoms: AtomRange = (2, 500)
    """Minimum and maximum number of atoms of a random structure."""
    max_neighbours: PositiveInt | None = None
    """Maximum number of neighbours of an atom; null: the limit of the model."""


class Selection(ParameterGroup):
    """The candidates whose results are retained."""

    mode: Literal["all", "top", "within"] = "top"
    """All candidates, the `count` best ones by a column, or those with a value of the column between min and max."""
    column: ScoreColumn = "residual_energy_ev_per_atom"
    """The column that selects candidates."""
    count: PositiveInt = 1000
    """Number of the best candidates to keep."""
    descending: bool = False
    """Whether the highest values are the best."""
    min: float | None = None
    """Lower bound of the column; null: no bound."""
    max: float | None = None
    """Upper bound of the column; null: no bound."""
    max_distance: PositiveFloat | None = None
    """Maximum distance of a candidate from the training sets; null: no limit."""

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        """Raise ValueError for bounds in the wrong order."""
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g}, expected at most max, {self.max:g}")
        return self


class ScreeningParameters(Parameters):
    """Screening of a stream of candidates by a model on every rank."""

    workload: Candidates
    """The candidates to screen."""
    checkpoint: str | None = "painn-64"
    """The model: a file, or the name of a shipped model; null for an untrained model with the sizes in `model`."""
    model: ModelParameters = ModelParameters()
    """Sizes of an untrained model."""
    max_candidates: PositiveInt | None = None
    """Approximate number of candidates, in parts that are evenly spaced over all candidates; null: all of them."""
    part_size: PositiveInt = 4096
    """The number of candidates in a part, which one rank scores at a time."""
    retention: Selection = Selection()
    """The candidates whose results are retained."""
    hull_head: str | None = "OMat24"
    """The head whose energies above the convex hull rank the best crystals; null: they are ranked by the column."""
    reference_phases: str | None = None
    """File of the hull's phases: crystals in a format of ASE, which the head evaluates, or a CSV file with the columns
    formula and energy_ev_per_atom, at the head's level of theory; null: the shipped crystals calculated with PBE."""
    energy_only: bool = False
    """Whether forces are not computed."""
    distance: bool = False
    """Whether the distance of each candidate from the training sets is computed."""
    risk: bool = False
    """Whether the risk of each candidate is computed, and candidates above its threshold are dropped."""
    reference_structures_per_dataset: PositiveInt = 200
    """Structures of each training set from which the distance is computed."""
    edges_per_batch: PositiveInt = 20_000
    """Approximate number of edges per batch."""
    prefetch_batches: NonNegativeInt = 2
    """Batches that are prepared in advance."""
    write_interval_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between writes of results."""
    assessment: Assessment | None = None
    """Assessment of the results by rank 0; null: no assessment."""
    assess_only: bool = False
    """Whether the case only assesses the results of the screening that it depends on."""
    message_backend: MessageBackendName = "fused"
    """Whether messages are computed as tensors of edges, or by the fused operator where there is one for the backbone
    and the device; results are equal except for rounding."""
    precision: PrecisionName = "fp32"
    """Precision of the model."""
    compile: bool = True
    """Whether the model is compiled."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    seed: NonNegativeInt = 0
    """Seed of an untrained model."""
    timeout_s: PositiveFloat = 3600.0
    """Seconds that a rank waits for the others before the run fails."""

    @model_validator(mode="after")
    def check_risk(self) -> Self:
        """Raise ValueError if the risk lacks the forces or the checkpoint that it needs."""
        if self.risk and self.energy_only:
            raise ValueError("risk needs forces, expected `energy_only: false`")
        if self.risk and self.checkpoint is None:
            raise ValueError("risk needs a checkpoint to which it was fitted, and checkpoint is null")
        return self


class EarlierParts(EventRecord, tag="earlier_parts"):
    """The parts that an earlier attempt finished, its intact files, and a message about each damaged one."""

    parts: Count
    files: Count
    unusable_files: list[str] | None = None


class RankWork(EventRecord, tag="rank_summary"):
    """The work of one rank: counts, seconds by activity, and memory."""

    rank: Count
    candidates: Count
    evaluated: Count
    atoms: NonNegative
    edges: NonNegative
    generation_s: Seconds
    """Time in the thread that generates candidates."""
    device_s: Seconds
    wall_s: Seconds
    memory_median_bytes: Bytes
    """Median of the sampled memory of the process."""
    memory_peak_bytes: Bytes
    memory_last_bytes: Bytes
    excluded: Counts
    batches: Count | None = None
    wait_s: Seconds | None = None
    """Time for which the evaluation waits for candidates."""
    transfer_s: Seconds | None = None
    write_s: Seconds | None = None
    warm_up_s: Seconds | None = None
    """Time of an additional evaluation of the first batch, with compilation; the other times do not include it."""
    eager_reason: str | None = None
    memory_first_bytes: Bytes | None = None
    outside_coverage: Counts | None = None
    """Candidates outside of the model's coverage or above the threshold of the risk, by reason; no results."""

    def __post_init__(self) -> None:
        if self.evaluated > self.candidates:
            raise ValueError(f"evaluated is {self.evaluated}, expected at most candidates, {self.candidates}")


class Verification(EventRecord, tag="verification"):
    """The proof that every candidate was processed exactly once: counts, and the checksum of the indices."""

    parts: Count
    candidates: Count
    evaluated: Count
    checksum: str
    expected: str
    finished_earlier: bool | None = None
    """Whether an earlier attempt had finished the work."""


class BestCandidate(EventRecord, tag="best"):
    """One of the best candidates."""

    position: PositiveCount
    candidate: Count
    energy_ev_per_atom: Energy
    energy_above_hull_mev_per_atom: Energy | None = None
    """By the head of the hull, before relaxation."""
    suspicious: bool | None = None
    """Whether the energy is so far below the hull that it is more likely an error of the model."""
    force_max_ev_per_angstrom: Error | None = None
    formula: str | None = None
    chemistry: str | None = None
    """`element`, `intermetallic`, `charge-balanced` or `not charge-balanced`."""
    prototype: str | None = None
    volume: str | None = None
    stream: str | None = None
    atoms: str | None = None
    residual_energy_ev_per_atom: Energy | None = None
    spread_ev_per_atom: Error | None = None
    distance: NonNegative | None = None
    risk_ev_per_atom: Error | None = None
    energy_low_ev_per_atom: Energy | None = None
    """Lower end of the interval that contains the label with the coverage of the risk."""
    energy_high_ev_per_atom: Energy | None = None
    """Upper end of this interval."""


class ScreeningModel(Part):
    """The model of the screening, and the settings with which it runs."""

    checkpoint: str | None = None
    config: Config | None = None
    precision: str | None = None
    parameters: Count | None = None
    columns: list[str] | None = None
    compiled: bool | None = None
    device: str | None = None
    threads: PositiveCount | None = None
    message_backend: str | None = None
    unfused_reason: str | None = None
    default_sums_reason: str | None = None


class ScreeningWorkload(Part):
    """All candidates that the workload defines."""

    name: str | None = None
    total: Count | None = None
    cutoff_angstrom: NonNegative | None = None
    max_neighbours: Count | None = None
    prototypes: Count | None = None
    elements: list[AtomicNumber] | None = None
    volumes: list[Positive] | None = None
    filters: list[str] | None = None
    streams: Count | None = None
    per_stream: Count | None = None
    atoms: list[Count] | None = None


class ScreeningScope(Part):
    """The candidates that are screened, and the parts in which they are."""

    parts: Count
    part_size: Count
    candidates: Count


class ScreeningHull(Part):
    """The convex hull that ranks the best crystals."""

    head: str
    """The head that evaluates candidates and reference phases."""
    reference_phases: str
    """The file of the reference phases, or the shipped crystals."""
    phases: Count
    """Reference phases, without the simple crystals of each element."""


class ScreeningFacts(Facts):
    """The candidates, model and hull of a screening, and the part of the candidates that it processes."""

    workload: ScreeningWorkload | None = None
    scope: ScreeningScope | None = None
    model: ScreeningModel | None = None
    hull: ScreeningHull | None = None
    assessed_folder: str | None = None
    """The folder of the screening whose results are assessed."""


EVENTS = (EarlierParts, RankWork, Verification, BestCandidate, *ASSESSMENT_EVENTS)
