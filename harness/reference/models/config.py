"""The configuration of a model, with the names of the paper's search spaces (arXiv 2604.15380), without torch."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError

from harness.protocol.backbones import BACKBONES, BackboneName, find_backbone
from harness.protocol.parameters import describe_errors
from harness.protocol.programs.model import (
    DistanceTransform,
    ModelParameters,
    RadialType,
)
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.catalog import HEADS
from harness.reference.errors import InputError

__all__ = ["BackboneName", "DistanceTransform", "ModelConfig", "RadialType"]

# HydraGNN adds no epsilon in the norm of vectors, and its gradient is zero for a zero vector. This value has the same
# effect: it vanishes in every sum with other numbers.
HYDRAGNN_NORM_EPSILON = 1e-30
# Bonds at equilibrium are longer: that of N2, one of the shortest, has the relative length 0.77. Of 1,000 crystals near
# equilibrium (the shipped sample of Alexandria), 1% have a distance below 0.7, and 8% have one below 0.8.
REPULSION_END = 0.7
# Atoms of OMat24 are as close as 0.5, where the repulsion alone does not describe their forces.
REPULSION_CORE = 0.4


class ModelConfig(ModelParameters):
    """The configuration of a multi-task model: the parameters of a case or a checkpoint, completed by defaults.

    A hyperparameter of this backbone has a default value; one of other backbones is None.

    Raises:
        InputError: A value is out of range, or a hyperparameter belongs to another backbone.
    """

    model_config = ConfigDict(strict=True)

    heads: Annotated[int, Field(ge=1, le=len(HEADS))] = len(HEADS)
    """The number of heads, one for each dataset."""

    def __init__(self, **values: Any) -> None:
        backbone = values.setdefault("backbone", "painn")
        defaults = dict(find_backbone(backbone).hyperparameters)
        if values.get("hydragnn") is not None:
            defaults["norm_epsilon"] = HYDRAGNN_NORM_EPSILON
        if values.get("repulsion") is not None:
            defaults |= {"repulsion_core": REPULSION_CORE, "repulsion_end": REPULSION_END}
        missing = {name: value for name, value in defaults.items() if values.get(name) is None}
        try:
            super().__init__(**values | missing)
        except ValidationError as error:
            raise InputError(describe_errors(error, type(self))) from None

    @classmethod
    def from_parameters(cls, parameters: ModelParameters, **changes: Any) -> Self:
        """Return the configuration for the parameters of a case, with some values replaced."""
        return cls(**parameters.model_dump(exclude_unset=True) | changes)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values replaced."""
        return type(self)(**self.model_dump() | changes)

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """The widths of the hidden layers of a head; the layers that the paper calls shared come first."""
        return (self.dim_sharedlayers,) * self.num_sharedlayers + (self.dim_headlayers,) * self.num_headlayers

    @property
    def needs_triplets(self) -> bool:
        """Whether the backbone needs pairs of edges, for the angles between them."""
        return BACKBONES[self.backbone].needs_triplets

    @property
    def neighbour_spec(self) -> NeighbourSpec:
        """The definition of neighbours."""
        return NeighbourSpec(self.cutoff, self.max_neighbours, self.adaptive_neighbours)

    def limit_neighbours(self, limit: int | None) -> NeighbourSpec:
        """Return the definition of neighbours with another limit; adaptive cutoffs replace any limit."""
        return self.neighbour_spec if self.adaptive_neighbours else NeighbourSpec(self.cutoff, limit)

    @property
    def network(self) -> str:
        """The name of the network: that of the backbone, except for HydraGNN's PNAEq, which has different messages."""
        return "HydraGNN's pnaeq" if self.backbone == "pnaeq" and self.hydragnn is not None else self.backbone

    def asdict(self) -> dict[str, object]:
        """Return the values that apply to this backbone as plain data, as checkpoints store them."""
        return self.model_dump(exclude_none=True)
