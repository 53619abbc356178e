"""The programs of the reference implementation, and what a case may ask of each, without torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from harness.protocol.downstream import ScreeningParameters, TransferParameters
from harness.protocol.parameters import (
    DataParallelParameters,
    DataParameters,
    HpoParameters,
    LadderParameters,
    PrecisionParameters,
    TrainingStepsParameters,
    TrainParameters,
)
from harness.protocol.types import Strict

PROGRAMS: dict[str, type[Strict]] = {
    "ladder": LadderParameters,
    "train": TrainParameters,
    "training_steps": TrainingStepsParameters,
    "data_parallel": DataParallelParameters,
    "data": DataParameters,
    "hpo": HpoParameters,
    "precision": PrecisionParameters,
    "transfer": TransferParameters,
    "screening": ScreeningParameters,
}
# Programs that run as one process and start others on the nodes of their job.
DRIVERS = {"hpo"}


def partial(program: str) -> type[BaseModel]:
    """The program's parameters with none required: what a suite's `parameters` may hold."""
    fields: dict[str, Any] = {n: (_of(f), None) for n, f in PROGRAMS[program].model_fields.items()}
    return create_model(f"{program}_parameters", __base__=Strict, **fields)


def lists(program: str) -> type[BaseModel]:
    """A list of values for each of the program's parameters: what a suite's `matrix` may hold."""
    fields: dict[str, Any] = {
        n: (Annotated[list[_of(f)], Field(min_length=1)], None)  # type: ignore[misc]
        for n, f in PROGRAMS[program].model_fields.items()
    }
    return create_model(f"{program}_matrix", __base__=Strict, **fields)


def _of(field: Any) -> Any:
    """A field's type with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
