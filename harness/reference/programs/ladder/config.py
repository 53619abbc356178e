"""What one case of the ladder is, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.options import build
from harness.reference.programs.ladder.stages import LADDER, Products, Stage, mixed_precision


@dataclass(frozen=True)
class LadderConfig:
    """One case of the ladder.

    checkpoint: the model's file, or the name of a shipped one; None makes an untrained model of `model`'s sizes,
    with a gate fixed by hand so that open_heads branches share the weight.
    max_neighbours holds for the random workload alone; elsewhere the model's own limit does. A round is one pass of
    every stage over all batches.
    workload: "random" (the paper's), "crystals" (shipped), or "file": the first structures of a file that ASE reads.
    batch_size: "auto" for as many structures as free memory holds, of the stage that takes most. products: of
    mixed_precision.
    """

    workload: str
    precision: str
    structures: str | None = None
    stages: tuple[str, ...] = tuple(s.name for s in LADDER)
    checkpoint: str | None = None
    model: dict[str, object] = field(default_factory=dict)
    open_heads: int = 4
    batch_size: int | Literal["auto"] = 16
    batches: int = 2
    rounds: int = 6
    atoms: tuple[int, int] = (2, 100)
    max_neighbours: int | None = 20
    products: Products = "bf16"
    device: str = "cpu"
    seed: int = 0

    @property
    def climbed(self) -> tuple[Stage, ...]:
        """The stages asked for, in the order of the ladder."""
        asked = [s for s in LADDER if s.name in self.stages]
        mixed = partial(mixed_precision, products=self.products)
        return tuple(replace(s, make=mixed) if s.name == "mixed_precision" else s for s in asked)


def configure(parameters: dict[str, object]) -> LadderConfig:
    """The case's parameters, checked; raises InputError for what the ladder does not know."""
    config = build(LadderConfig, parameters)
    precision(config.precision)
    if not 1 <= config.atoms[0] <= config.atoms[1]:
        raise InputError(f"atoms: expected a range such as 2..100, got {config.atoms[0]}..{config.atoms[1]}")
    known = [s.name for s in LADDER]
    for name in config.stages:
        if name not in known:
            raise InputError(f"unknown stage {name!r}; there are {', '.join(known)}")
    return config
