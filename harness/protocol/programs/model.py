"""The hyperparameters of a model, with the names that cases and checkpoints use."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.protocol.backbones import BACKBONES, SPECIFIC_HYPERPARAMETERS, BackboneName
from harness.protocol.parameters import ParameterGroup

RadialType = Literal["bessel", "gaussian", "chebyshev"]
DistanceTransform = Literal["none", "Agnesi", "Soft"]
Repulsion = Literal["zbl"]
FeatureNorm = Literal["rms"]
# The settings that name a checkout of HydraGNN and the Python interpreter that runs its code.
HYDRAGNN_FOLDER_SETTING, HYDRAGNN_PYTHON_SETTING = "hydragnn_folder", "hydragnn_python"
# The upper bounds are far above the sizes of any useful model: larger values would only exhaust memory.
Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=0, le=256)]


class HydraGNNOptions(ParameterGroup):
    """Options of HydraGNN's variant of a network."""

    activation: Literal["relu", "silu"] = "relu"
    """The activation function after each layer and in the heads."""
    conditioning: bool = True
    """Whether each layer mixes the charge and the spin multiplicity into the features of atoms."""
    vector_bias: bool = False
    """Whether the linear layers of vector features have biases, as in HydraGNN before August 2026. Such a bias is a
    fixed direction in space, so that forces do not rotate with the structure."""


class ModelParameters(ParameterGroup):
    """Hyperparameters of a model, with the names that the paper uses in its search spaces (arXiv 2604.15380).

    A hyperparameter that only some backbones have is null for the others.
    """

    backbone: BackboneName = "painn"
    """The message-passing network that computes the features of atoms."""
    hidden_dim: Width = 64
    """Number of features of an atom."""
    num_conv_layers: Annotated[int, Field(ge=1, le=256)] = 3
    """Number of message-passing layers."""
    cutoff: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Radius within which atoms are neighbours, angstrom."""
    max_neighbours: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Maximum number of neighbours of an atom, which are the nearest ones; the energy jumps where the order of
    distances changes at the limit. Null: no limit."""
    num_sharedlayers: Depth = 2
    """Number of the first hidden layers of each head, which HydraGNN calls shared."""
    dim_sharedlayers: Width = 50
    """Width of the first hidden layers of each head."""
    num_headlayers: Depth = 2
    """Number of the remaining hidden layers of each head."""
    dim_headlayers: Width = 128
    """Width of the remaining hidden layers of each head."""
    readout: Literal["sum", "extensive"] = "extensive"
    """How a head computes the energy of n atoms from the pooled sum P: E = f(P), as HydraGNN does, or E = n f(P / n),
    which is extensive."""
    num_radial: Annotated[int, Field(ge=1, le=128)] | None = None
    """Number of radial basis functions (PaiNN, PNAEq, DimeNet, MACE)."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Constant that is added under the square root when the norm of a vector is computed (PaiNN, PNAEq)."""
    hydragnn: HydraGNNOptions | None = None
    """Options of HydraGNN's variant of the network (PaiNN, PNAEq); null: the network of the original paper."""
    adaptive_neighbours: Annotated[float, Field(ge=4, le=1000)] | None = None
    """Number of neighbours that an atom has where density is uniform: its own cutoff shrinks below the model's so that
    neighbours fade out before they are dropped, and the energy is continuous (PaiNN). Null: one cutoff for all atoms,
    with the limit max_neighbours."""
    repulsion: Repulsion | None = None
    """Pair repulsion at short distances, where learnt interactions fade out, in the energies of all heads (PaiNN): zbl,
    the universal potential of Ziegler, Biersack and Littmark. Null: none."""
    repulsion_core: Annotated[float, Field(gt=0, le=2)] | None = None
    """Distance up to which the repulsion acts alone, in units of the sum of the covalent radii of two atoms (PaiNN)."""
    repulsion_end: Annotated[float, Field(gt=0, le=2)] | None = None
    """Distance where the repulsion ends and learnt interactions are complete, in the same units (PaiNN)."""
    feature_norm: FeatureNorm | None = None
    """Normalization that bounds the features of an atom (PaiNN): rms divides them by sqrt(1 + mean square). Null:
    none."""
    num_filters: Width | None = None
    """Number of filters of a continuous convolution (SchNet)."""
    num_gaussians: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Number of Gaussian basis functions of the distance (SchNet)."""
    num_spherical: Annotated[int, Field(ge=2, le=16)] | None = None
    """Number of spherical harmonics of the angular basis (DimeNet)."""
    envelope_exponent: Annotated[int, Field(ge=1, le=64)] | None = None
    """Exponent of the envelope that makes the basis vanish at the cutoff (DimeNet)."""
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
    """Kind of radial basis (MACE)."""
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
        """Raise ValueError if the backbone is set explicitly and lacks one of the hyperparameters that are set."""
        if "backbone" in self.model_fields_set:
            specific = BACKBONES[self.backbone].hyperparameters
            for name in sorted(SPECIFIC_HYPERPARAMETERS - set(specific)):
                if getattr(self, name) is not None:
                    known = f"it has {', '.join(specific)}" if specific else "it has no specific ones"
                    raise ValueError(f"{name} is not a hyperparameter of the backbone {self.backbone!r}; {known}")
        return self

    @model_validator(mode="after")
    def check_options(self) -> Self:
        """Raise ValueError for options that exclude each other."""
        for name in ("adaptive_neighbours", "repulsion", "feature_norm"):
            if self.hydragnn is not None and getattr(self, name) is not None:
                raise ValueError(f"{name}: HydraGNN's variants of networks have no such option")
        if self.adaptive_neighbours is not None and self.max_neighbours is not None:
            raise ValueError("adaptive_neighbours: expected max_neighbours to be null, as each is a limit of its own")
        for name in ("repulsion_core", "repulsion_end"):
            if getattr(self, name) is not None and self.repulsion is None:
                raise ValueError(f"{name}: expected a repulsion, such as `repulsion: zbl`")
        core, end = self.repulsion_core, self.repulsion_end
        if core is not None and end is not None and core >= end:
            raise ValueError(f"repulsion_core: expected a distance below that of repulsion_end ({end:g}), got {core:g}")
        return self


def require_hydragnn_training(model: ModelParameters, store_folder: str) -> None:
    """Raise ValueError if HydraGNN's training program cannot train this model, or if the case names no store."""
    if model.backbone != "painn":
        raise ValueError(f"implementation: hydragnn trains painn only, not {model.backbone}")
    if model.cutoff != 5.0 or model.max_neighbours not in (None, 20):
        raise ValueError("model: the stores of hydragnn have the 20 nearest neighbours within 5 angstrom")
    if not store_folder:
        raise ValueError(
            "store_folder: hydragnn trains on a store, and not on shipped sets; `harness data convert` makes one"
        )
