"""What a model is made of, by the names of the paper's search spaces (arXiv 2604.15380); without torch, so cheap."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError
from harness.reference.options import check_word

BackboneName = Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"]
Readout = Literal["sum", "extensive"]
RadialType = Literal["bessel", "gaussian", "chebyshev"]
DistanceTransform = Literal["none", "Agnesi", "Soft"]

# Backbone -> its own hyperparameters and what they are unless asked for.
OWN: dict[str, dict[str, Any]] = {
    "painn": {"num_radial": 6, "norm_epsilon": 1e-8},
    "pnaeq": {"num_radial": 6, "norm_epsilon": 1e-8},
    "egnn": {},
    "schnet": {"num_filters": 64, "num_gaussians": 50},
    "dimenet": {
        "num_radial": 6,
        "num_spherical": 7,
        "envelope_exponent": 5,
        "basis_emb_size": 8,
        "int_emb_size": 64,
        "out_emb_size": 256,
        "num_before_skip": 1,
        "num_after_skip": 2,
    },
    "mace": {
        "num_radial": 8,
        "radial_type": "bessel",
        "distance_transform": "none",
        "max_ell": 3,
        "node_max_ell": 1,
        "correlation": 2,
    },
}
# What may be None: no limit, or another backbone's.
OPTIONAL = {"max_neighbours", *(name for options in OWN.values() for name in options)}
# The least value of each number; words are those of the types below.
LEAST: dict[str, float] = {
    "hidden_dim": 1, "num_conv_layers": 1, "heads": 1, "max_neighbours": 1, "num_sharedlayers": 0, "num_headlayers": 0,
    "dim_sharedlayers": 1, "dim_headlayers": 1, "num_radial": 1, "num_filters": 1, "num_gaussians": 2,
    "num_spherical": 2, "envelope_exponent": 1, "basis_emb_size": 1, "int_emb_size": 1, "out_emb_size": 1,
    "num_before_skip": 0, "num_after_skip": 0, "max_ell": 1, "node_max_ell": 0, "correlation": 1,
}  # fmt: skip
# The largest value of each number, far above any model of use: what goes beyond would only exhaust memory.
MOST: dict[str, float] = {
    "hidden_dim": 65_536, "num_conv_layers": 256, "heads": len(HEADS), "max_neighbours": 100_000,
    "num_sharedlayers": 256, "num_headlayers": 256, "dim_sharedlayers": 65_536, "dim_headlayers": 65_536,
    "num_radial": 128, "num_filters": 65_536, "num_gaussians": 65_536, "num_spherical": 16, "envelope_exponent": 64,
    "basis_emb_size": 65_536, "int_emb_size": 65_536, "out_emb_size": 65_536, "num_before_skip": 256,
    "num_after_skip": 256, "max_ell": 4, "node_max_ell": 3, "correlation": 3,
}  # fmt: skip
MOST_CUTOFF = 100.0  # angstrom
WORDS: dict[str, tuple[str, ...]] = {
    "backbone": tuple(OWN),
    "readout": ("sum", "extensive"),
    "radial_type": ("bessel", "gaussian", "chebyshev"),
    "distance_transform": ("none", "Agnesi", "Soft"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a multi-task model; lengths in angstrom.

    The hyperparameters of one backbone alone are None for the others, and its usual value (OWN) unless given.
    max_neighbours: where an atom has more within the cutoff, the nearest count, and the energy jumps as their order
    changes. readout: "sum" feeds the pooled sum P to the head, E = f(P), as the original does; "extensive" takes
    E = n f(P / n), the same arithmetic, so that a supercell has exactly the energy of its cells.
    Raises InputError for a value out of range and for a hyperparameter of another backbone.
    """

    backbone: BackboneName = "painn"
    hidden_dim: int = 64
    num_conv_layers: int = 3
    cutoff: float = 5.0
    max_neighbours: int | None = None
    heads: int = 16
    num_sharedlayers: int = 2
    dim_sharedlayers: int = 50
    num_headlayers: int = 2
    dim_headlayers: int = 128
    readout: Readout = "extensive"
    num_radial: int | None = None
    norm_epsilon: float | None = None
    num_filters: int | None = None
    num_gaussians: int | None = None
    num_spherical: int | None = None
    envelope_exponent: int | None = None
    basis_emb_size: int | None = None
    int_emb_size: int | None = None
    out_emb_size: int | None = None
    num_before_skip: int | None = None
    num_after_skip: int | None = None
    radial_type: RadialType | None = None
    distance_transform: DistanceTransform | None = None
    max_ell: int | None = None
    node_max_ell: int | None = None
    correlation: int | None = None

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            given = getattr(self, name)
            if given is not None or name not in OPTIONAL:
                check_word(name, given, words)
        own = OWN[self.backbone]
        for name in sorted({n for options in OWN.values() for n in options}):
            if name in own and getattr(self, name) is None:
                object.__setattr__(self, name, own[name])
            elif name not in own and getattr(self, name) is not None:
                there = f"its own are {', '.join(own)}" if own else "it has none of its own"
                raise InputError(f"{name} is no hyperparameter of the backbone {self.backbone!r}; {there}")
        for name, least in LEAST.items():
            given = getattr(self, name)
            if given is None and name in OPTIONAL:
                continue
            if isinstance(given, bool) or not isinstance(given, int):
                raise InputError(f"{name} is {given!r}, expected a whole number")
            if not least <= given <= MOST[name]:
                bound = f"at least {least:g}" if given < least else f"at most {MOST[name]:g}"
                raise InputError(f"{name} is {given}, expected {bound}")
        for name, most in (("cutoff", MOST_CUTOFF), ("norm_epsilon", 1.0)):
            given = getattr(self, name)
            if given is None and name in OPTIONAL:
                continue
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= most:
                raise InputError(f"{name} is {given!r}, expected a number above 0 and up to {most:g}")

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """Widths of a head's hidden layers, the two shared ones of the paper first."""
        return (self.dim_sharedlayers,) * self.num_sharedlayers + (self.dim_headlayers,) * self.num_headlayers

    @property
    def needs_triplets(self) -> bool:
        """Whether the backbone reads the angles between edges."""
        return self.backbone == "dimenet"

    def asdict(self) -> dict[str, object]:
        """Plain data, as stored beside the weights: what holds for this backbone."""
        return {name: value for name, value in asdict(self).items() if value is not None}
