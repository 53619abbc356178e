"""Rotations of a network with biases of vectors, as HydraGNN had before August 2026: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.protocol.parameters import Parameters
from harness.protocol.programs.model import Depth, Width
from harness.protocol.records import Config, Count, Error, EventRecord, Facts, NonNegative, PositiveCount
from harness.protocol.types import PositiveInt, check_unique


class VectorBiasParameters(Parameters):
    """How far biases of vectors keep energies and forces from turning with a structure, over the size of the biases."""

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
    """Factors of all biases of vectors; 1: as they were initialised or saved, 0: none."""
    rotations: PositiveInt = 100
    """Random rotations of each structure."""
    seeds: PositiveInt = 6
    """Models with other random weights, or, of a checkpoint, sets of other rotations."""
    checkpoint: str | None = None
    """A checkpoint whose vectors have biases, such as one that was converted from HydraGNN; null: untrained models of
    the sizes below."""
    hidden_dim: Width = 64
    """Width of untrained models."""
    num_conv_layers: Annotated[Depth, Field(ge=2)] = 3
    """Layers of untrained models."""
    max_neighbours: PositiveInt = 20
    """Maximum number of neighbours of an atom in untrained models."""


class RotationErrors(EventRecord, tag="rotation_errors"):
    """Differences of the predictions for a turned structure from those for the structure itself, one per rotation."""

    seed: Count
    scale: NonNegative
    kind: Literal["crystal", "molecule"]
    structure: str
    atoms: PositiveCount
    energy_errors_ev: list[Error]
    force_errors_ev_per_angstrom: list[Error]
    """The largest component of the difference from the turned forces."""
    force_scale_ev_per_angstrom: NonNegative
    """The largest component of the forces."""


class VectorBiasFacts(Facts):
    """Facts of a study of biases of vectors."""

    checkpoint: str | None = None
    """Where the weights are from; null: they are untrained."""
    config: Config | None = None
    biases: Count | None = None
    """How many biases of vectors the model has."""
    bias_rms: NonNegative | None = None
    """Their root mean square at scale 1."""


EVENTS = (RotationErrors,)
