"""The table of backbones: what the rest of the harness needs to know about each network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BackboneName = Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"]
GREY = "#59636e"


@dataclass(frozen=True)
class Backbone:
    """A network from atoms to features.

    Attributes:
        title: its name as papers write it.
        network: module and class; takes a ModelConfig, and (batch, vector [e, 3]) to features [n, hidden_dim].
        colour, marker: how figures draw it; the colours are Okabe and Ito's, https://jfly.uni-koeln.de/color/.
        hyperparameters: hyperparameters that only this backbone has, and their default values.
        needs_triplets: whether it reads the angles between edges.
        has_fused_messages: whether harness.reference.ops.messages computes its messages.
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
        {"num_radial": 6, "norm_epsilon": 1e-8},
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
# How figures draw a search over all backbones, and a backbone that is not in the table.
MIXED = Backbone("all backbones", "", GREY, "x")
# The hyperparameters that only some backbones have.
SPECIFIC = frozenset(name for backbone in BACKBONES.values() for name in backbone.hyperparameters)


def find_backbone(name: object) -> Backbone:
    """Return the backbone of a name, or MIXED."""
    return next((backbone for key, backbone in BACKBONES.items() if key == name), MIXED)


def get_backbone_title(name: str) -> str:
    """Return a backbone's name as papers write it."""
    return next((backbone.title for key, backbone in BACKBONES.items() if key == name), name)
