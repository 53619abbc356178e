"""A search for hyperparameters: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harness.protocol.backbones import BackboneName
from harness.protocol.errors import did_you_mean
from harness.protocol.parameters import ParameterGroup, Parameters
from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.train import TrainParameters
from harness.protocol.records import Count, Error, EventRecord, Facts, NotNegative, Number, Part, Rate, Seconds, Time
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import Positive

Objective = Literal["accuracy", "throughput"]


class Range(ParameterGroup):
    """Numbers from low to high, both included; whole ones if both are whole."""

    low: int | float
    """The least value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Whether every decade is equally likely."""


class HalvingParameters(ParameterGroup):
    """Successive halving: after least_epochs, eta times as many, ... the best 1/eta of trials go on."""

    eta: Annotated[int, Field(ge=2)]
    """One trial in so many goes on."""
    least_epochs: ParameterCount
    """Epochs after which trials are compared first."""


def check_space(space: dict[str, Any]) -> dict[str, Any]:
    """Return the space unchanged; raise ValueError for a name that training does not know, and for an empty range."""
    known = {*ModelParameters.model_fields, *TrainParameters.model_fields} - {"model", "sets", "stores"}
    for name, choices in space.items():
        if name not in known:
            raise ValueError(f"unknown hyperparameter {name!r}{did_you_mean(name, known)}")
        if isinstance(choices, Range) and (choices.low >= choices.high or (choices.log and choices.low <= 0)):
            logarithm = " of a logarithm" * choices.log
            raise ValueError(f"{name}: from {choices.low:g} to {choices.high:g} is no range{logarithm}")
    return space


Choice = int | float | str
Space = Annotated[dict[str, Range | Annotated[list[Choice], Field(min_length=1)]], AfterValidator(check_space)]


class HpoParameters(Parameters):
    """A search for hyperparameters, whose trials are runs of `train`."""

    space: Annotated[Space, Field(min_length=1)]
    """Hyperparameters: ranges, or lists of choices."""
    own_space: Space = Field(default_factory=dict)
    """Hyperparameters of this search alone; they replace those of `space`."""
    backbone: BackboneName = "painn"
    """Backbone of every trial, unless it is searched."""
    trial: TrainParameters = TrainParameters()
    """Parameters of every trial."""
    evaluations: ParameterCount = 200
    """Trials that are to end, in whatever way."""
    nodes_per_trial: ParameterCount = 1
    """Nodes of a trial, on a machine with a scheduler."""
    at_once: ParameterCount = 1
    """Trials at a time, on a machine without one."""
    trial_minutes: Positive = 60.0
    """Time after which a trial counts as hung."""
    minutes: Positive | None = None
    """Time of the whole search: no trial begins that might not end within it; null: no limit."""
    initial_points: ParameterCount = 10
    """Points that are tried at random first."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("accuracy",)
    """What is maximised."""
    warm_start: tuple[str, ...] = ()
    """Tables of earlier results, for the optimizer to start from."""
    halving: HalvingParameters | None = None
    """Early end of trials that lag behind; null: none."""
    seed: int = 42
    """Seed of the optimizer."""


class TrialEvent(EventRecord, tag="trial"):
    """A trial that has ended, well or not."""

    trial: Count
    configuration: dict[str, str | bool | Number]
    """Its hyperparameters."""
    backbone: str
    state: str
    objective: Number | None
    began_s: Time
    ended_s: Time
    nodes: list[str]
    node_hours: NotNegative
    folder: str
    reason: str | None = None
    """Why it did not end well."""
    energy_mae_ev_per_atom: Error | None = None
    """Validation errors of its best epoch."""
    force_mae_ev_per_a: Error | None = None
    graphs_per_s: Rate | None = None
    epochs: Count | None = None

    def __post_init__(self) -> None:
        if self.began_s > self.ended_s:
            raise ValueError(f"began_s is {self.began_s:g}, expected at most ended_s, {self.ended_s:g}")
        if self.objective is not None:
            for name in ("energy_mae_ev_per_atom", "force_mae_ev_per_a", "graphs_per_s"):
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
    """Rows of earlier results: those that the optimizer was told, and those left out, by reason."""

    files: list[str] | None = None
    told: Count | None = None
    failed: Count | None = None
    outside: Count | None = None


class SearchFact(Part):
    """The search as it was asked for."""

    space: dict[str, SearchedValues] | None = None
    backbone: str | None = None
    trial: dict[str, Any] | None = None
    evaluations: Count | None = None
    nodes_per_trial: Count | None = None
    at_once: Count | None = None
    trial_minutes: NotNegative | None = None
    minutes: NotNegative | None = None
    initial_points: Count | None = None
    objectives: list[str] | None = None
    warm_start: list[str] | None = None
    halving: dict[str, Count] | None = None
    seed: int | None = None


class Overhead(Part):
    """Time of the optimizer, and of the whole search."""

    optimizer_s: Seconds
    search_s: Seconds | None = None


class HpoFacts(Facts):
    """Facts of a search."""

    warm_start: WarmStart | None = None
    search: SearchFact | None = None
    overhead: Overhead | None = None
    ended_early: str | None = None
    """Why fewer trials have ended than were asked for."""


EVENTS = (TrialEvent,)
