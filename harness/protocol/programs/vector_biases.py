"""The parameters, events and facts of the program `vector_biases`.

Vector biases are biases in the linear layers of a network that act on vector features. HydraGNN had them before August
2026. They are fixed directions in space, so that predicted forces do not rotate with the structure.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.protocol.parameters import Parameters
from harness.protocol.programs.model import Depth, Width
from harness.protocol.records import Config, Count, Error, EventRecord, Facts, NonNegative, PositiveCount
from harness.protocol.types import PositiveInt, check_unique


class VectorBiasParameters(Parameters):
    """Parameters of a measurement of how far vector biases of various sizes violate rotational symmetry."""

    scales: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2), AfterValidator(check_unique)] = (
        0.0,
        1e-6,
        1e-5,
        1e-4,
        1e-3,
        1e-2,
        0.1,
        1.0,
        10.0,
    )
    """Factors by which all vector biases are multiplied; 1: the initial or saved biases, 0: no biases."""
    rotations: PositiveInt = 100
    """Number of random rotations of each structure."""
    seeds: PositiveInt = 6
    """Number of seeds: of the rotations and, without a checkpoint, of the random weights."""
    checkpoint: str | None = None
    """A checkpoint of a model with vector biases, such as one that was converted from HydraGNN. Null: untrained models
    with the sizes below."""
    hidden_dim: Width = 64
    """Width of untrained models."""
    num_conv_layers: Annotated[Depth, Field(ge=2)] = 3
    """Number of layers of untrained models."""
    max_neighbours: PositiveInt = 20
    """Maximum number of neighbours of an atom in untrained models."""


class RotationErrors(EventRecord, tag="rotation_errors"):
    """Errors of the predictions for rotated structures, one per rotation.

    The predictions for the structure before rotation are the reference.
    """

    seed: Count
    scale: NonNegative
    kind: Literal["crystal", "molecule"]
    structure: str
    atoms: PositiveCount
    energy_errors_ev: list[Error]
    force_errors_ev_per_angstrom: list[Error]
    """The largest component of the difference from the rotated reference forces."""
    force_scale_ev_per_angstrom: NonNegative
    """The largest component of the reference forces."""


class VectorBiasFacts(Facts):
    """The facts about a model with vector biases."""

    checkpoint: str | None = None
    """The checkpoint of the weights; null: the weights are untrained."""
    config: Config | None = None
    biases: Count | None = None
    """The number of vector biases."""
    bias_rms: NonNegative | None = None
    """The root mean square of the vector biases at scale 1."""


EVENTS = (RotationErrors,)
