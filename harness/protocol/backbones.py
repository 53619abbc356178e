"""The table of backbones, with the properties of each network that the rest of the harness needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BackboneName = Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"]
GREY = "#59636e"


@dataclass(frozen=True)
class Backbone:
    """A network that converts atoms to features.

    Attributes:
        title: the name of the network in papers.
        network: `module:class`. The class is built from a ModelConfig, and converts a batch and the vectors [e, 3] of
            its edges to features [n, hidden_dim].
        colour: the colour in figures, from the palette of Okabe and Ito, https://jfly.uni-koeln.de/color/.
        marker: the marker in figures.
        hyperparameters: the hyperparameters that only some backbones, including this one, have, and their defaults.
        needs_triplets: whether the network reads the angles between edges.
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
        {"num_radial": 6, "norm_epsilon": 1e-8, "hydragnn": None},
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
# The colour and marker of a search over all backbones, and of a backbone that is not in the table.
MIXED = Backbone("all backbones", "", GREY, "x")
# The hyperparameters that only some backbones have.
SPECIFIC_HYPERPARAMETERS = frozenset(name for backbone in BACKBONES.values() for name in backbone.hyperparameters)


def find_backbone(name: object) -> Backbone:
    """Return the backbone with this name, or MIXED for an unknown name."""
    return next((backbone for key, backbone in BACKBONES.items() if key == name), MIXED)


def get_backbone_title(name: str) -> str:
    """Return the name of a backbone in papers, or the name itself for an unknown backbone."""
    return next((backbone.title for key, backbone in BACKBONES.items() if key == name), name)


def describe_architecture(config: Mapping[str, Any]) -> str:
    """Return `PaiNN`, or `HydraGNN's PaiNN`, from the configuration of a model, and `unknown` without a backbone."""
    title = get_backbone_title(config.get("backbone", "unknown"))
    return f"HydraGNN's {title}" if config.get("hydragnn") else title
