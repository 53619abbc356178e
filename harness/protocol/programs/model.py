"""The hyperparameters of a model, with the names that cases and checkpoints use."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.protocol.backbones import BACKBONES, SPECIFIC_HYPERPARAMETERS, BackboneName
from harness.protocol.parameters import ParameterGroup

RadialType = Literal["bessel", "gaussian", "chebyshev"]
DistanceTransform = Literal["none", "Agnesi", "Soft"]
# The upper bounds are far above those of any useful model: larger values would only exhaust memory.
Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=0, le=256)]


class HydraGNNOptions(ParameterGroup):
    """The options of a network of HydraGNN."""

    activation: Literal["relu", "silu"] = "relu"
    """Activation after each layer and in the heads."""
    conditioning: bool = True
    """Whether charge and multiplicity are mixed into the features of atoms after each layer."""
    vector_bias: bool = False
    """Whether linear maps of vectors have biases, as in versions before August 2026. Biases are fixed directions in
    space, so that forces do not rotate with the structure."""


class ModelParameters(ParameterGroup):
    """Hyperparameters of a model, with the names of the paper's search spaces (arXiv 2604.15380).

    Hyperparameters that only some backbones have are null for the others.
    """

    backbone: BackboneName = "painn"
    """The network that converts atoms to features."""
    hidden_dim: Width = 64
    """Number of features of an atom."""
    num_conv_layers: Annotated[int, Field(ge=1, le=256)] = 3
    """Number of message-passing layers."""
    cutoff: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Radius within which atoms are neighbours, angstrom."""
    max_neighbours: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Maximum number of neighbours of an atom, the nearest ones; the energy is discontinuous where their order changes.
    Null: no limit."""
    num_sharedlayers: Depth = 2
    """Number of the first hidden layers of each head, which all tasks of the head share."""
    dim_sharedlayers: Width = 50
    """Width of the first hidden layers of each head."""
    num_headlayers: Depth = 2
    """Number of the other hidden layers of each head."""
    dim_headlayers: Width = 128
    """Width of the other hidden layers of each head."""
    readout: Literal["sum", "extensive"] = "extensive"
    """How a head computes the energy of n atoms from the pooled sum P: E = f(P), as HydraGNN does, or E = n f(P / n),
    which is extensive."""
    num_radial: Annotated[int, Field(ge=1, le=128)] | None = None
    """Number of radial basis functions (PaiNN, PNAEq, DimeNet, MACE)."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Constant that is added under the root of a norm of vectors (PaiNN, PNAEq)."""
    hydragnn: HydraGNNOptions | None = None
    """Options of HydraGNN's variant of the network (PaiNN, PNAEq); null: the network of the original paper."""
    num_filters: Width | None = None
    """Number of filters of a continuous convolution (SchNet)."""
    num_gaussians: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Number of Gaussians in which distances are expanded (SchNet)."""
    num_spherical: Annotated[int, Field(ge=2, le=16)] | None = None
    """Number of spherical harmonics of the angular basis (DimeNet)."""
    envelope_exponent: Annotated[int, Field(ge=1, le=64)] | None = None
    """Exponent of the envelope that takes the basis to zero at the cutoff (DimeNet)."""
    basis_emb_size: Width | None = None
    """Width to which the bases are embedded (DimeNet)."""
    int_emb_size: Width | None = None
    """Width of the triplet interaction (DimeNet)."""
    out_emb_size: Width | None = None
    """Width of the output blocks (DimeNet)."""
    num_before_skip: Depth | None = None
    """Number of residual layers before the skip connection (DimeNet)."""
    num_after_skip: Depth | None = None
    """Number of residual layers after the skip connection (DimeNet)."""
    radial_type: RadialType | None = None
    """Radial basis (MACE)."""
    distance_transform: DistanceTransform | None = None
    """Transformation of distances before the radial basis (MACE)."""
    max_ell: Annotated[int, Field(ge=1, le=4)] | None = None
    """Largest degree of spherical harmonics on edges (MACE)."""
    node_max_ell: Annotated[int, Field(ge=0, le=3)] | None = None
    """Largest degree of the features of an atom (MACE)."""
    correlation: Annotated[int, Field(ge=1, le=3)] | None = None
    """Body order of the product basis (MACE)."""

    @model_validator(mode="after")
    def check_backbone(self) -> Self:
        """Raise ValueError if the backbone is given and lacks one of the given hyperparameters."""
        if "backbone" in self.model_fields_set:
            specific = BACKBONES[self.backbone].hyperparameters
            for name in sorted(SPECIFIC_HYPERPARAMETERS - set(specific)):
                if getattr(self, name) is not None:
                    known = f"its own are {', '.join(specific)}" if specific else "it has none of its own"
                    raise ValueError(f"{name} is no hyperparameter of the backbone {self.backbone!r}; {known}")
        return self


def require_hydragnn_training(model: ModelParameters, store_folder: str) -> None:
    """Raise ValueError if HydraGNN's training program cannot train this model, or has no data in its format."""
    if model.backbone != "painn":
        raise ValueError(f"implementation: hydragnn trains painn only, not {model.backbone}")
    if model.cutoff != 5.0 or model.max_neighbours not in (None, 20):
        raise ValueError("model: the stores of hydragnn have the 20 nearest neighbours within 5 angstrom")
    if not store_folder:
        raise ValueError(
            "store_folder: hydragnn trains on a store, and not on shipped sets; `harness data convert` makes one"
        )
