"""The models of a comparison, each in a process of its own, and the log of their failures."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from harness.protocol.events import CaseLog
from harness.protocol.programs.models import (
    ModelDefinition,
    ModelFailed,
    ModelLoaded,
    ModelsParameters,
    ModelUnavailable,
    PotentialPrecision,
)
from harness.reference.data.structure import Structure
from harness.reference.potentials.process import PotentialError, PotentialProcess, build_spec
from harness.reference.potentials.structures import build_supercells, select_crystal


@dataclass
class LoadedModel:
    """A model whose process has started.

    Attributes:
        name: The name of the model.
        definition: Its definition.
        process: Its process.
        cells: The supercells on which it is timed, from small to large.
        has_failed: Whether a measurement has failed, after which the model is excluded.
    """

    name: str
    definition: ModelDefinition
    process: PotentialProcess
    cells: list[Structure] = field(default_factory=list)
    has_failed: bool = False


class FailureGuard:
    """A context manager that suppresses the failure of a model in its block, logs it, and marks the model as failed."""

    def __init__(self, model: LoadedModel, step: str, log: CaseLog) -> None:
        self.model, self.step, self.log = model, step, log

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Log and suppress a PotentialError, and set `has_failed`; other exceptions propagate."""
        if not isinstance(error, PotentialError):
            return False
        self.model.has_failed = True
        self.log.write(ModelFailed(model=self.model.name, step=self.step, reason=str(error)))
        return True


def start_process(
    definition: ModelDefinition,
    precision: PotentialPrecision,
    config: ModelsParameters,
    log_file: Path,
    *,
    compiled: bool,
) -> PotentialProcess:
    """Start the process of a model in a precision; raise PotentialError if the model cannot be loaded."""
    spec = build_spec(definition, precision, config.device, compiled=compiled)
    return PotentialProcess(
        spec, python=definition.python, threads=config.threads, timeout_s=config.timeout_s, log=log_file
    )


def load_model(name: str, config: ModelsParameters, log: CaseLog, folder: Path, stack: ExitStack) -> LoadedModel | None:
    """Start a model, log its description, and build the supercells on which it is timed.

    Returns:
        The model; None if it cannot be used, after the reason has been logged.
    """
    definition, path = config.definitions[name], folder / f"{name}.log"
    try:
        process = stack.enter_context(
            start_process(definition, config.precision, config, path, compiled=config.compiled)
        )
    except PotentialError as error:
        where = f"{definition.place}: " if definition.place else ""
        log.write(
            ModelUnavailable(model=name, reason=f"{where}{error}")
            if error.is_unavailable
            else ModelFailed(model=name, step="loading", reason=f"{where}{error}")
        )
        return None
    description = process.description
    log.write(
        ModelLoaded(
            model=name,
            class_name=describe_class(definition),
            load_s=description["load_s"],
            properties=description["properties"],
            packages=description["packages"],
            python=description["python"],
            parameters=description["parameters"],
            dtype=description["dtype"],
        )
    )
    model = LoadedModel(name, definition, process)
    with FailureGuard(model, "first predictions", log):
        build = select_crystal(process)
        if build is None:
            raise PotentialError("it predicts none of the crystals on which models are timed")
        model.cells = build_supercells(build, config.sizes)
    return None if model.has_failed else model


def describe_class(definition: ModelDefinition) -> str:
    """Return the checkpoint or the class of a definition, for tables."""
    if definition.checkpoint is not None:
        return f"checkpoint {definition.checkpoint}"
    if definition.hydragnn is not None:
        return f"HydraGNN {Path(definition.hydragnn.checkpoint).name}"
    source = definition.torch_sim or definition
    return f"{source.module}.{source.class_name}"
