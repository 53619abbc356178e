"""Which of how many ranks this process is, as its launcher says in the environment; no torch, so that it is cheap."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.reference.errors import InputError

# The last sixteen step ids name what is no step of ranks: the batch script, the extern step, an interactive shell.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
REFERENCE = Path(__file__).parents[1]
Item = TypeVar("Item")


class LostRank(RuntimeError):
    """This process is well, but the run cannot go on: another rank has ended, failed or never come."""


@dataclass(frozen=True)
class Place:
    """rank: 0..size-1 over the whole run. local_rank: over the ranks of this node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def share(items: Iterable[Item], rank: int, size: int) -> Sequence[Item]:
    """What one rank of several takes."""
    return list(items)[rank::size]


@dataclass(frozen=True)
class Launcher:
    """Where a launcher leaves a rank's place: for each of the three the variables that may hold it, first choice first.

    All of `marks` must be set for the process to be a rank of this launcher. step: the variable with the number of the
    step, where not every step is one of ranks.
    """

    name: str
    marks: tuple[str, ...]
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    step: str | None = None


# The innermost launcher comes first: an mpiexec inside a Slurm step hands that step's variables on, not the reverse.
# PALS sets no world size with PMIx, so the job script exports WORLD_SIZE there.
LAUNCHERS: tuple[Launcher, ...] = (
    Launcher(
        name="Open MPI",
        marks=("OMPI_COMM_WORLD_RANK",),
        rank=("OMPI_COMM_WORLD_RANK",),
        size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
    ),
    Launcher(
        name="MPICH hydra",
        marks=("PMI_RANK", "MPI_LOCALRANKID"),
        rank=("PMI_RANK",),
        size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID",),
    ),
    Launcher(
        name="PALS",
        marks=("PALS_RANKID",),
        rank=("PALS_RANKID",),
        size=("PMI_SIZE", "PALS_SIZE", "WORLD_SIZE"),
        local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
    ),
    Launcher(
        name="Slurm",
        marks=("SLURM_STEP_ID", "SLURM_PROCID"),
        rank=("SLURM_PROCID",),
        size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=("SLURM_LOCALID",),
        step="SLURM_STEP_ID",
    ),
)


def find(environment: Mapping[str, str], planned: int | None = None) -> Place:
    """Return this process's place among the ranks, or the only one where no launcher is at work.

    Args:
        environment: the variables of this process.
        planned: how many ranks the case has; None: as many as there are.

    Raises InputError where a launcher's variables are incomplete, contradict one another, or what is planned.
    """
    place, launcher = _place(environment)
    if planned is not None and place.size != planned:
        started = f"{launcher} says that there are {place.size}" if launcher else "no launcher has started this one"
        raise InputError(f"the case has {planned} ranks, but {started}; its job script starts it as planned")
    return place


def _place(environment: Mapping[str, str]) -> tuple[Place, str | None]:
    """The place among the ranks, and the launcher that says so."""
    for launcher in LAUNCHERS:
        if _started(launcher, environment):
            place = Place(
                rank=_number(launcher, launcher.rank, environment),
                size=_number(launcher, launcher.size, environment),
                local_rank=_number(launcher, launcher.local_rank, environment),
            )
            if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.size):
                raise InputError(f"{launcher.name} says rank {place.rank}, local {place.local_rank}, of {place.size}")
            return place, launcher.name
    return Place(), None


def _started(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    """True if the launcher started this process as a rank, and not as a batch script with a rank's variables."""
    if not all(environment.get(mark) for mark in launcher.marks):
        return False
    return launcher.step is None or _number(launcher, (launcher.step,), environment) < FIRST_SPECIAL_STEP


def _number(launcher: Launcher, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """The whole number in the first of these variables that is set."""
    name = next((n for n in names if environment.get(n)), None)
    if name is None:
        raise InputError(f"started as a rank by {launcher.name}, but {' and '.join(names)} are not set")
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name} is {environment[name]!r}, expected a whole number") from None


def told(error: Exception) -> str:
    """An error in one line, with its place in the code unless it is the user's."""
    if isinstance(error, InputError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(REFERENCE)] or frames
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def first_line(error: Exception) -> str:
    """What the error says, shortened, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
