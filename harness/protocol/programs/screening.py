"""Screening of candidates, and how far to trust it: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import (
    AtomRange,
    BackendName,
    DeviceName,
    MessagesName,
    ParameterGroup,
    Parameters,
    PrecisionName,
)
from harness.protocol.programs.assessment import ASSESSMENT_EVENTS, Trust
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
    NotNegative,
    Part,
    PositiveCount,
    Seconds,
)
from harness.protocol.records import Positive as MeasuredPositive
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import NonNegativeInt as ParameterNotNegative
from harness.protocol.types import Positive, check_unique

FilterName = Literal["charge_balance", "no_duplicates"]
ScoreColumn = Literal[
    "energy_ev_per_atom", "beyond_ev_per_atom", "spread_ev_per_atom", "force_max_ev_per_a", "distance"
]


class Candidates(ParameterGroup):
    """What is screened."""

    kind: Literal["prototypes", "random"] = "prototypes"
    """Crystals of prototypes, or the paper's random structures."""
    elements: tuple[str, ...] = ()
    """Symbols of the elements of crystals; none: all that the model knows, up to plutonium."""
    volumes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.94, 1.0, 1.06, 1.12)
    """Volumes of a crystal, in units of the one that its radii suggest."""
    filters: Annotated[tuple[FilterName, ...], AfterValidator(check_unique)] = ()
    """What crystals have to pass."""
    streams: ParameterCount = 1
    """Streams of random structures."""
    per_stream: ParameterCount = 15_000
    """Structures of a stream."""
    atoms: AtomRange = (2, 500)
    """Atoms of a random structure, fewest and most."""
    max_neighbours: ParameterCount | None = None
    """Neighbours of an atom at most; null: the model's limit."""


class Keep(ParameterGroup):
    """Of which candidates the results are kept."""

    what: Literal["all", "top", "within"] = "top"
    """All; the `count` best by a column; or those whose column lies between low and high."""
    by: ScoreColumn = "beyond_ev_per_atom"
    """The column."""
    count: ParameterCount = 1000
    """Candidates that are kept of the best."""
    highest: bool = False
    """Whether the highest values are the best."""
    low: float | None = None
    """Lower bound of the column; null: none."""
    high: float | None = None
    """Upper bound of the column; null: none."""
    most_distance: Positive | None = None
    """Candidates further from the training sets are not kept; null: no limit."""

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        """Raise ValueError for bounds in the wrong order."""
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low:g}, expected at most high, {self.high:g}")
        return self


class ScreeningParameters(Parameters):
    """A stream of candidates through a model on every rank."""

    workload: Candidates
    """What is screened."""
    checkpoint: str | None = "painn-64"
    """The model: a file, or the name of a shipped one; null for an untrained one of the sizes of `model`."""
    model: ModelParameters = ModelParameters()
    """Sizes of an untrained model."""
    candidates: ParameterCount | None = None
    """About how many candidates, in parts evenly spread over the space; null: all."""
    part: ParameterCount = 4096
    """Candidates of a part."""
    keep: Keep = Keep()
    """Of which candidates the results are kept."""
    energy_only: bool = False
    """Whether forces are left out."""
    distance: bool = False
    """Whether the distance of each candidate from the training sets is told."""
    known_limit: ParameterCount = 200
    """Structures of each training set that the distance is taken from."""
    edges: ParameterCount = 20_000
    """Edges of a batch, about."""
    ahead: ParameterNotNegative = 2
    """Batches that are prepared in advance."""
    commit_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between writes of results."""
    trust: Trust | None = None
    """How far to trust the results is found out by rank 0; null: it is not."""
    judges: bool = False
    """Whether the case screens nothing, and finds out how far to trust the screening that it comes after."""
    messages: MessagesName = "plain"
    """Whether messages go through tensors of edges, or through one operator where there is one."""
    precision: PrecisionName = "fp32"
    """Precision of the model."""
    compile: bool = True
    """Whether the model is compiled."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of an untrained model."""
    timeout_s: Positive = 3600.0
    """Time that a rank waits for the others before it gives the run up."""


class FoundParts(EventRecord, tag="found"):
    """Parts that an earlier attempt has finished, and its files that were of no use."""

    parts: Count
    files: Count
    useless: list[str] | None = None


class RankWork(EventRecord, tag="rank"):
    """What one rank has done: counts, seconds by what they were spent on, memory."""

    rank: Count
    candidates: Count
    evaluated: Count
    atoms: NotNegative
    edges: NotNegative
    make_s: Seconds
    """In the thread that makes candidates."""
    device_s: Seconds
    wall_s: Seconds
    memory_bytes: Bytes
    """The median of the samples."""
    memory_peak_bytes: Bytes
    memory_last_bytes: Bytes
    left_out: Counts
    batches: Count | None = None
    wait_s: Seconds | None = None
    """Wait of evaluation for candidates."""
    transfer_s: Seconds | None = None
    write_s: Seconds | None = None
    warm_up_s: Seconds | None = None
    """Of the first batch, compilation included, evaluated once more before; in no other of these."""
    why_eager: str | None = None
    memory_first_bytes: Bytes | None = None
    unranked: Counts | None = None
    """Candidates that the model cannot know anything of, by reason; they have no results."""

    def __post_init__(self) -> None:
        if self.evaluated > self.candidates:
            raise ValueError(f"evaluated is {self.evaluated}, expected at most candidates, {self.candidates}")


class Proof(EventRecord, tag="proof"):
    """That every candidate was taken once: counts, and the checksum over the indices."""

    parts: Count
    candidates: Count
    evaluated: Count
    checksum: str
    expected: str
    before: bool | None = None
    """Whether an earlier attempt has done the work."""


class BestCandidate(EventRecord, tag="best"):
    """One of the best candidates."""

    place: PositiveCount
    candidate: Count
    energy_ev_per_atom: Energy
    force_max_ev_per_a: Error | None = None
    formula: str | None = None
    prototype: str | None = None
    volume: str | None = None
    stream: str | None = None
    atoms: str | None = None
    beyond_ev_per_atom: Energy | None = None
    spread_ev_per_atom: Error | None = None
    distance: NotNegative | None = None


class ScreeningModel(Part):
    """The model that screens, and what runs it."""

    checkpoint: str | None = None
    config: Config | None = None
    precision: str | None = None
    parameters: Count | None = None
    columns: list[str] | None = None
    compiled: bool | None = None
    device: str | None = None
    threads: PositiveCount | None = None
    messages: str | None = None
    why_plain: str | None = None


class ScreeningWorkload(Part):
    """The space of candidates."""

    name: str | None = None
    total: Count | None = None
    cutoff_angstrom: NotNegative | None = None
    max_neighbours: Count | None = None
    prototypes: Count | None = None
    elements: list[AtomicNumber] | None = None
    volumes: list[MeasuredPositive] | None = None
    filters: list[str] | None = None
    streams: Count | None = None
    per_stream: Count | None = None
    atoms: list[Count] | None = None


class Screened(Part):
    """What of the space is screened."""

    parts: Count
    part: Count
    candidates: Count


class ScreeningFacts(Facts):
    """Facts of a screening."""

    workload: ScreeningWorkload | None = None
    screened: Screened | None = None
    model: ScreeningModel | None = None
    judged: str | None = None
    """The folder of the screening that is judged."""


EVENTS = (FoundParts, RankWork, Proof, BestCandidate, *ASSESSMENT_EVENTS)
