"""The backbones, with the properties of each network that other parts of the harness need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BackboneName = Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"]
GREY = "#59636e"


@dataclass(frozen=True)
class Backbone:
    """A message-passing network that computes the features of atoms.

    Attributes:
        title: the name of the network in papers.
        network: `module:class`. The class is built from a ModelConfig, and computes features [n, hidden_dim] from a
            batch and the vectors [e, 3] of its edges.
        colour: the colour in figures, from the palette of Okabe and Ito, https://jfly.uni-koeln.de/color/.
        marker: the marker in figures.
        hyperparameters: the default values of those hyperparameters that only some backbones have.
        needs_triplets: whether the network uses pairs of edges, for the angles between them.
        has_fused_messages: whether harness.reference.ops.messages can compute the messages of the network.
    """

    title: str
    network: str
    colour: str
    marker: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    needs_triplets: bool = False
    has_fused_messages: bool = False


BACKBONES: dict[BackboneName, Backbone] = {
    "painn": Backbone(
        "PaiNN",
        "harness.reference.models.backbones.painn:PaiNN",
        "#0072b2",
        "o",
        {
            "num_radial": 6,
            "norm_epsilon": 1e-8,
            "hydragnn": None,
            "adaptive_neighbours": None,
            "repulsion": None,
            "repulsion_core": None,
            "repulsion_end": None,
            "feature_norm": None,
        },
        has_fused_messages=True,
    ),
    "pnaeq": Backbone(
        "PNAEq",
        "harness.reference.models.backbones.pnaeq:PNAEq",
        "#56b4e9",
        "s",
        {"num_radial": 6, "norm_epsilon": 1e-8, "hydragnn": None},
        has_fused_messages=True,
    ),
    "egnn": Backbone("EGNN", "harness.reference.models.backbones.egnn:EGNN", "#009e73", "^"),
    "schnet": Backbone(
        "SchNet",
        "harness.reference.models.backbones.schnet:SchNet",
        "#e69f00",
        "D",
        {"num_filters": 64, "num_gaussians": 50},
    ),
    "dimenet": Backbone(
        "DimeNet++",
        "harness.reference.models.backbones.dimenet:DimeNetPlusPlus",
        "#cc79a7",
        "v",
        {
            "num_radial": 6,
            "num_spherical": 7,
            "envelope_exponent": 5,
            "basis_emb_size": 8,
            "int_emb_size": 64,
            "out_emb_size": 256,
            "num_before_skip": 1,
            "num_after_skip": 2,
        },
        needs_triplets=True,
    ),
    "mace": Backbone(
        "MACE",
        "harness.reference.models.backbones.mace:MACE",
        "#d55e00",
        "P",
        {
            "num_radial": 8,
            "radial_type": "bessel",
            "distance_transform": "none",
            "max_ell": 3,
            "node_max_ell": 1,
            "correlation": 2,
        },
    ),
}
# The colour and the marker for a search over all backbones, and for an unknown backbone.
MIXED = Backbone("all backbones", "", GREY, "x")
# The hyperparameters that only some backbones have.
SPECIFIC_HYPERPARAMETERS = frozenset(name for backbone in BACKBONES.values() for name in backbone.hyperparameters)


def find_backbone(name: object) -> Backbone:
    """Return the backbone with this name, or MIXED for an unknown name."""
    return next((backbone for key, backbone in BACKBONES.items() if key == name), MIXED)


def get_backbone_title(name: str) -> str:
    """Return the title of a backbone, or its name if the backbone is unknown."""
    return next((backbone.title for key, backbone in BACKBONES.items() if key == name), name)


def describe_architecture(config: Mapping[str, Any]) -> str:
    """Return the title of a model's network, such as `PaiNN` or `HydraGNN's PaiNN`; `unknown` without a backbone."""
    title = get_backbone_title(config.get("backbone", "unknown"))
    return f"HydraGNN's {title}" if config.get("hydragnn") else title
