"""The programs that a case may run, with the types of their parameters, events and facts; torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from harness.protocol import user_experiments
from harness.protocol.errors import UsageError
from harness.protocol.parameters import Parameters, parse_model
from harness.protocol.programs import (
    data,
    data_parallel,
    dynamics,
    hpo,
    imported,
    labels,
    ladder,
    models,
    precision,
    preflight,
    screening,
    train,
    training_steps,
    transfer,
    vector_biases,
)
from harness.protocol.records import EventRecord, Facts


@dataclass(frozen=True)
class LogTypes:
    """The events that a program may log in addition to the common ones, and its facts."""

    events: tuple[type[EventRecord], ...]
    facts: type[Facts]


@dataclass(frozen=True)
class Program:
    """A program that a case may run.

    Attributes:
        module: the module with the function run(config, log, folder).
        parameters: the type of the program's parameters.
        log: the types of the program's events and facts.
        runs_on_all_ranks: whether the program is started on every rank, not in a single process.
        is_driver: whether the program is a single process that starts other processes on the nodes of its job.
        implementations: the modules that run the program with other code, by value of the parameter `implementation`.
    """

    module: str
    parameters: type[Parameters]
    log: LogTypes
    runs_on_all_ranks: bool = False
    is_driver: bool = False
    implementations: Mapping[str, str] = field(default_factory=dict)

    def find_module(self, parameters: Parameters) -> str:
        """Return the module that runs a case with these parameters."""
        return self.implementations.get(getattr(parameters, "implementation", ""), self.module)


_FOLDER = "harness.reference.programs"
PROGRAMS: dict[str, Program] = {
    "ladder": Program(
        f"{_FOLDER}.ladder.program",
        ladder.LadderParameters,
        LogTypes(ladder.EVENTS, ladder.LadderFacts),
        implementations={"hydragnn": f"{_FOLDER}.ladder.hydragnn"},
    ),
    "train": Program(
        f"{_FOLDER}.train",
        train.TrainParameters,
        LogTypes(train.EVENTS, train.TrainFacts),
        runs_on_all_ranks=True,
        implementations={"hydragnn": f"{_FOLDER}.train_hydragnn"},
    ),
    "training_steps": Program(
        f"{_FOLDER}.training_steps",
        training_steps.TrainingStepsParameters,
        LogTypes(training_steps.EVENTS, training_steps.TrainingStepsFacts),
    ),
    "data_parallel": Program(
        f"{_FOLDER}.scaling.program",
        data_parallel.DataParallelParameters,
        LogTypes(data_parallel.EVENTS, data_parallel.DataParallelFacts),
        runs_on_all_ranks=True,
        implementations={"hydragnn": f"{_FOLDER}.scaling.hydragnn"},
    ),
    "data": Program(
        f"{_FOLDER}.data", data.DataParameters, LogTypes(data.EVENTS, data.DataFacts), runs_on_all_ranks=True
    ),
    "hpo": Program(f"{_FOLDER}.hpo.search", hpo.HpoParameters, LogTypes(hpo.EVENTS, hpo.HpoFacts), is_driver=True),
    "precision": Program(
        f"{_FOLDER}.precision.program",
        precision.PrecisionParameters,
        LogTypes(precision.EVENTS, precision.PrecisionFacts),
    ),
    "transfer": Program(
        f"{_FOLDER}.transfer.program",
        transfer.TransferParameters,
        LogTypes(transfer.EVENTS, transfer.TransferFacts),
        runs_on_all_ranks=True,
    ),
    "screening": Program(
        f"{_FOLDER}.screening.program",
        screening.ScreeningParameters,
        LogTypes(screening.EVENTS, screening.ScreeningFacts),
        runs_on_all_ranks=True,
    ),
    "labels": Program(
        f"{_FOLDER}.labels",
        labels.LabelsParameters,
        LogTypes(labels.EVENTS, labels.LabelsFacts),
        runs_on_all_ranks=True,
    ),
    "dynamics": Program(
        f"{_FOLDER}.dynamics.program", dynamics.DynamicsParameters, LogTypes(dynamics.EVENTS, dynamics.DynamicsFacts)
    ),
    "models": Program(
        f"{_FOLDER}.models.program", models.ModelsParameters, LogTypes(models.EVENTS, models.ModelsFacts)
    ),
    "preflight": Program(
        f"{_FOLDER}.preflight.program",
        preflight.PreflightParameters,
        LogTypes(preflight.EVENTS, preflight.PreflightFacts),
        runs_on_all_ranks=True,
    ),
    "vector_biases": Program(
        f"{_FOLDER}.vector_biases",
        vector_biases.VectorBiasParameters,
        LogTypes(vector_biases.EVENTS, vector_biases.VectorBiasFacts),
    ),
}
# The types of the logs that importers write, by format.
IMPORTED: dict[str, LogTypes] = {
    "hydragnn": LogTypes(imported.HYDRAGNN_EVENTS, imported.HydraGnnFacts),
    "omnistat": LogTypes((), imported.OmnistatFacts),
}


@cache
def load_programs() -> dict[str, Program]:
    """Return every program by name, with the programs of the user last."""
    added = {}
    for name, parameters in user_experiments.load_parameters(PROGRAMS).items():
        module = user_experiments.import_experiment(name, "program")
        added[name] = Program(module.__name__, parameters, _collect_log_types(module), runs_on_all_ranks=True)
    return PROGRAMS | added


def _collect_log_types(module: ModuleType) -> LogTypes:
    """Return the events and facts that a user's program defines or imports from its folder."""
    classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
    classes = [kind for kind in classes if not kind.__module__.startswith("harness.")]
    events = tuple(kind for kind in classes if issubclass(kind, EventRecord))
    return LogTypes(events, next((kind for kind in classes if issubclass(kind, Facts)), Facts))


@cache
def find_log_types(program: str) -> LogTypes | None:
    """Return the log types of a program; None if neither the harness nor the user has such a program."""
    if program in IMPORTED:
        return IMPORTED[program]
    known = PROGRAMS.get(program) or load_programs().get(program)
    return known.log if known else None


def parse_parameters(program: str, values: Any) -> Parameters:
    """Build the parameters of a program from plain data; raise UsageError with all problems on one line."""
    if not isinstance(values, dict):
        raise UsageError("parameters: expected a mapping")
    try:
        return parse_model(load_programs()[program].parameters, values)
    except ValueError as error:
        raise UsageError(str(error)) from None
