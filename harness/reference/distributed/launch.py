"""The rank of this process, from the environment variables of its launcher; torch is not imported, to save time."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TypeVar

from harness.reference.errors import InputError, get_first_line

# Slurm's last sixteen step ids denote steps without ranks: the batch script, the extern step, an interactive shell.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
REFERENCE = Path(__file__).parents[1]
Item = TypeVar("Item")


class LostRank(RuntimeError):
    """This process cannot continue because another rank has ended, failed or never started."""


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process.

    Attributes:
        rank: Rank in the run, 0 .. size - 1.
        size: Number of ranks.
        local_rank: Rank within this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def shard(items: Iterable[Item], rank: int, size: int) -> Sequence[Item]:
    """Return the share of one rank: every size-th item, starting with the item at index `rank`."""
    return list(items)[rank::size]


@dataclass(frozen=True)
class Launcher:
    """The environment variables in which a launcher describes a rank, in order of preference.

    Attributes:
        name: The launcher's name, for messages.
        required_variables: A process is a rank of this launcher only if all of these are set.
        rank: Variables that may hold the rank.
        size: Variables that may hold the number of ranks.
        local_rank: Variables that may hold the rank within the node.
        step: Variable with the step id, for a launcher that also starts steps without ranks.
    """

    name: str
    required_variables: tuple[str, ...]
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    step: str | None = None


# The innermost launcher comes first: mpiexec inside a Slurm step passes on the variables of that step.
# PALS (of HPE Cray) does not set the number of ranks with PMIx, so the job script exports WORLD_SIZE there.
LAUNCHERS: tuple[Launcher, ...] = (
    Launcher(
        name="Open MPI",
        required_variables=("OMPI_COMM_WORLD_RANK",),
        rank=("OMPI_COMM_WORLD_RANK",),
        size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
    ),
    Launcher(
        name="MPICH hydra",
        required_variables=("PMI_RANK", "MPI_LOCALRANKID"),
        rank=("PMI_RANK",),
        size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID",),
    ),
    Launcher(
        name="PALS",
        required_variables=("PALS_RANKID",),
        rank=("PALS_RANKID",),
        size=("PMI_SIZE", "PALS_SIZE", "WORLD_SIZE"),
        local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
    ),
    Launcher(
        name="Slurm",
        required_variables=("SLURM_STEP_ID", "SLURM_PROCID"),
        rank=("SLURM_PROCID",),
        size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=("SLURM_LOCALID",),
        step="SLURM_STEP_ID",
    ),
)


def detect_rank(environment: Mapping[str, str], ranks: int | None = None) -> RankInfo:
    """Return the rank of this process; without a launcher, this process is the only rank.

    Args:
        environment: The variables of this process.
        ranks: The number of ranks of the case; None accepts any number.

    Raises:
        InputError: The variables of a launcher are incomplete, contradict each other, or differ from the case.
    """
    rank_info, launcher = _read_environment(environment)
    if ranks is not None and rank_info.size != ranks:
        started = f"{launcher} started {rank_info.size}" if launcher else "no launcher started this process"
        raise InputError(f"the case has {ranks} ranks, but {started}; use the job script of the case to start it")
    return rank_info


def _read_environment(environment: Mapping[str, str]) -> tuple[RankInfo, str | None]:
    """Return the rank of this process and the name of its launcher, if any."""
    for launcher in LAUNCHERS:
        if _has_started(launcher, environment):
            info = RankInfo(
                rank=_read_number(launcher, launcher.rank, environment),
                size=_read_number(launcher, launcher.size, environment),
                local_rank=_read_number(launcher, launcher.local_rank, environment),
            )
            if not (0 <= info.rank < info.size and 0 <= info.local_rank < info.size):
                raise InputError(
                    f"the variables of {launcher.name} contradict each other: rank {info.rank} (local rank"
                    f" {info.local_rank}) of {info.size} ranks"
                )
            return info, launcher.name
    return RankInfo(), None


def _has_started(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    """Return whether the launcher started this process as a rank, and not as a batch script with a rank's variables."""
    if not all(environment.get(name) for name in launcher.required_variables):
        return False
    return launcher.step is None or _read_number(launcher, (launcher.step,), environment) < FIRST_SPECIAL_STEP


def _read_number(launcher: Launcher, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Return the integer in the first of these variables that is set."""
    name = next((n for n in names if environment.get(n)), None)
    if name is None:
        raise InputError(f"{launcher.name} started this process as a rank, but {' and '.join(names)} are not set")
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name} is {environment[name]!r}, expected a whole number") from None


def describe_error(error: Exception) -> str:
    """Format an error as one line, with its location in this package unless the user's input caused it."""
    if isinstance(error, InputError):
        return str(error)
    stack = traceback.extract_tb(error.__traceback__)
    paths = [Path(frame.filename) for frame in stack]
    is_program = [path.is_relative_to(REFERENCE) or "experiments" in path.parts for path in paths]
    frames = list(compress(stack, is_program)) or list(stack)
    location = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {get_first_line(error)}{location}"
