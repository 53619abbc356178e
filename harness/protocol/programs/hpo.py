"""A search for hyperparameters: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.protocol.backbones import BackboneName
from harness.protocol.errors import did_you_mean
from harness.protocol.parameters import ParameterGroup, Parameters
from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.train import TrainParameters
from harness.protocol.records import Count, Error, EventRecord, Facts, NonNegative, Number, Part, Rate, Seconds, Time
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt
from harness.protocol.upgrade import find_new_name

Objective = Literal["accuracy", "throughput"]


class Range(ParameterGroup):
    """Numbers from low to high, both included; integers if both are integers."""

    low: int | float
    """The smallest value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Whether values are sampled on a logarithmic scale."""


class HalvingParameters(ParameterGroup):
    """Successive halving: after min_epochs, eta * min_epochs, ... epochs the best 1/eta of the trials continue."""

    eta: Annotated[int, Field(ge=2)]
    """One trial in eta continues."""
    min_epochs: PositiveInt
    """Epochs before trials are compared for the first time."""


def check_space(space: dict[str, Any]) -> dict[str, Any]:
    """Return the space unchanged; raise ValueError for a name that training does not know or an empty range."""
    other = {"model", "hydragnn", "datasets", "store_folder", "implementation"}
    known = {*ModelParameters.model_fields, *TrainParameters.model_fields} - other
    for name, choices in space.items():
        if name not in known and (new := find_new_name(name, known)) is not None:
            raise ValueError(f"hyperparameter {name!r} is now called {new!r}")
        if name not in known:
            raise ValueError(f"unknown hyperparameter {name!r}{did_you_mean(name, known)}")
        if isinstance(choices, Range) and (choices.low >= choices.high or (choices.log and choices.low <= 0)):
            logarithm = " of a logarithm" * choices.log
            raise ValueError(f"{name}: from {choices.low:g} to {choices.high:g} is not a range{logarithm}")
    return space


Choice = int | float | str
Space = Annotated[dict[str, Range | Annotated[list[Choice], Field(min_length=1)]], AfterValidator(check_space)]


class HpoParameters(Parameters):
    """A search for hyperparameters, whose trials are runs of `train`."""

    space: Annotated[Space, Field(min_length=1)]
    """Hyperparameters: ranges, or lists of choices."""
    search_specific_space: Space = Field(default_factory=dict)
    """Additional hyperparameters of this search; they replace those of the same name in `space`."""
    backbone: BackboneName = "painn"
    """Backbone of every trial, unless the space contains it."""
    trial: TrainParameters = TrainParameters()
    """Parameters of every trial."""
    max_trials: PositiveInt = 200
    """Number of trials to evaluate, including those that fail."""
    nodes_per_trial: PositiveInt = 1
    """Nodes per trial, on a machine with a scheduler."""
    max_concurrent_trials: PositiveInt = 1
    """Concurrent trials, on a machine without a scheduler."""
    trial_timeout_minutes: PositiveFloat = 60.0
    """Minutes after which a trial counts as hung, and is ended."""
    time_limit_minutes: PositiveFloat | None = None
    """Minutes of the whole search, within which all trials must end; null: no limit."""
    initial_points: PositiveInt = 10
    """Number of random points before the optimizer chooses."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("accuracy",)
    """Quantities to optimize."""
    warm_start: tuple[str, ...] = ()
    """Tables of earlier results from which the optimizer starts."""
    halving: HalvingParameters | None = None
    """Early stopping of trials that are worse than others; null: no early stopping."""
    seed: NonNegativeInt = 42
    """Seed of the optimizer."""

    @model_validator(mode="after")
    def check_implementation(self) -> Self:
        """Raise ValueError for trials of another implementation."""
        if self.trial.implementation != "reference":
            raise ValueError(f"trial: program 'hpo' has no implementation {self.trial.implementation!r}")
        return self


class TrialEvent(EventRecord, tag="trial"):
    """A trial that has ended, successfully or not."""

    trial: Count
    configuration: dict[str, str | bool | Number]
    """The hyperparameters of the trial."""
    backbone: str
    state: str
    objective: Number | None
    start_time_s: Time
    end_time_s: Time
    nodes: list[str]
    node_hours: NonNegative
    folder: str
    reason: str | None = None
    """The reason if the trial did not succeed."""
    energy_mae_ev_per_atom: Error | None = None
    """Validation error of the energy in the best epoch."""
    force_mae_ev_per_angstrom: Error | None = None
    """Validation error of the forces in the best epoch; null if no forces are known."""
    structures_per_s: Rate | None = None
    epochs: Count | None = None

    def __post_init__(self) -> None:
        if self.start_time_s > self.end_time_s:
            raise ValueError(f"start_time_s is {self.start_time_s:g}, expected at most end_time_s, {self.end_time_s:g}")
        if self.objective is not None:
            for name in ("energy_mae_ev_per_atom", "structures_per_s"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is missing, and objective is {self.objective:g}")


class SearchedValues(Part):
    """The range or the choices of a hyperparameter."""

    low: Number | None = None
    high: Number | None = None
    log: bool | None = None
    values: list[Any] | None = None

    def __post_init__(self) -> None:
        if self.values is None:
            missing = next((name for name in ("low", "high", "log") if getattr(self, name) is None), None)
            if missing is not None:
                raise ValueError(f"{missing} is missing")


class WarmStart(Part):
    """Numbers of earlier trials that the optimizer received, and of those that were left out."""

    files: list[str] | None = None
    received: Count | None = None
    failed: Count | None = None
    outside_space: Count | None = None


class SearchFact(Part):
    """The search as it was requested."""

    space: dict[str, SearchedValues] | None = None
    backbone: str | None = None
    trial: dict[str, Any] | None = None
    max_trials: Count | None = None
    nodes_per_trial: Count | None = None
    max_concurrent_trials: Count | None = None
    trial_timeout_minutes: NonNegative | None = None
    time_limit_minutes: NonNegative | None = None
    initial_points: Count | None = None
    objectives: list[str] | None = None
    warm_start: list[str] | None = None
    halving: dict[str, Count] | None = None
    seed: int | None = None


class Overhead(Part):
    """The time of the optimizer, and the time of the whole search."""

    optimizer_s: Seconds
    search_s: Seconds | None = None


class HpoFacts(Facts):
    """The space and the start of a search, the cost of its trials beyond training, and why it ended early."""

    warm_start: WarmStart | None = None
    search: SearchFact | None = None
    overhead: Overhead | None = None
    early_stop_reason: str | None = None
    """The reason why fewer trials ended than were requested."""


EVENTS = (TrialEvent,)
