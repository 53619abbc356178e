"""What one case of training steps is, checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.options import build


@dataclass(frozen=True)
class Stage:
    """One way to take a step."""

    name: str
    fused: bool = False
    compiled: bool = False


STAGES = (
    Stage("baseline"),
    Stage("torch_compile", compiled=True),
    Stage("fused_messages", fused=True, compiled=True),
)


@dataclass(frozen=True)
class StepsConfig:
    """One case: an untrained model of `model`'s sizes, in one precision, on batches of the random workload.

    atoms: least and most of a structure. max_neighbours: of an atom. A round is one step of every stage on every batch.
    """

    precision: str
    model: dict[str, object] = field(default_factory=dict)
    stages: tuple[str, ...] = tuple(s.name for s in STAGES)
    batch_size: int = 16
    batches: int = 1
    rounds: int = 6
    atoms: tuple[int, int] = (2, 100)
    max_neighbours: int | None = 20
    force_weight: float = 10.0
    device: str = "cpu"
    seed: int = 0


def configure(parameters: dict[str, object]) -> StepsConfig:
    """The case's parameters, checked; raises InputError for what the program does not know."""
    config = build(StepsConfig, parameters)
    precision(config.precision)
    if min(config.batch_size, config.batches, config.rounds) < 1:
        raise InputError("batch_size, batches, rounds: expected at least 1 of each")
    if not 1 <= config.atoms[0] <= config.atoms[1]:
        raise InputError(f"atoms: expected a range such as 2..100, got {config.atoms[0]}..{config.atoms[1]}")
    known = [s.name for s in STAGES]
    for name in config.stages:
        if name not in known:
            raise InputError(f"unknown stage {name!r}; there are {', '.join(known)}")
    return config
