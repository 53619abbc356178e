"""The numbers in a launch command: nodes, ranks, cores and accelerators, for srun and the mpiexec of MPI libraries."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("srun", "mpiexec", "mpirun")
# The quantity that each option sets.
SRUN = {
    "--nodes": "nodes", "-N": "nodes", "--ntasks": "ranks", "-n": "ranks", "--ntasks-per-node": "ranks_per_node",
    "--cpus-per-task": "cores_per_rank", "-c": "cores_per_rank", "--gpus-per-node": "accelerators",
    "--gpus-per-task": "accelerators_per_rank",
}  # fmt: skip
MPIEXEC = {
    "-n": "ranks", "-np": "ranks", "--np": "ranks", "--ppn": "ranks_per_node", "-ppn": "ranks_per_node",
    "-perhost": "ranks_per_node", "--npernode": "ranks_per_node", "-npernode": "ranks_per_node",
    "--depth": "cores_per_rank", "-d": "cores_per_rank",
}  # fmt: skip
PER_NODE = re.compile(r"(?:^|,)ppr:(\d+):node")
# A short option with its number attached, as in `srun -n4`.
ATTACHED_NUMBER = re.compile(r"(-[A-Za-z])(\d+)")
CORE_LIST = re.compile(r"(?:verbose,)?(list|map_cpu|map_cores|rank_core):(.+)")


@dataclass(frozen=True)
class LaunchLine:
    """The numbers in a launch command, each with the option that sets it.

    Attributes:
        command: srun, mpiexec or mpirun.
        numbers: The option and the value of each quantity: nodes, ranks, ranks_per_node, cores_per_rank, accelerators,
            accelerators_per_rank.
        binding: The option that binds ranks to cores, and the cores of each rank of a node.
    """

    command: str
    numbers: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    binding: tuple[str, list[list[int]]] | None = None


def parse_launch_line(text: str) -> LaunchLine | None:
    """Return the numbers in a launch command, or None if it contains no known launcher."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    start = next((k for k, word in enumerate(words) if Path(word).name in COMMANDS), None)
    if start is None:
        return None
    command = Path(words[start]).name
    known = SRUN if command == "srun" else MPIEXEC
    numbers: dict[str, tuple[str, int]] = {}
    binding = None
    for option, value in _list_options(words[start + 1 :]):
        if option in known and value.isdecimal():
            numbers[known[option]] = (option, int(value))
        elif option == "--map-by" and (match := PER_NODE.search(value)):
            numbers["ranks_per_node"] = (option, int(match[1]))
        elif option in ("--cpu-bind", "--cpu_bind") and (cores := CORE_LIST.fullmatch(value)):
            separator = ":" if cores[1] == "list" else ","
            binding = (option, [parse_core_list(group) for group in cores[2].split(separator)])
    return LaunchLine(command, numbers, binding)


def _list_options(words: list[str]) -> list[tuple[str, str]]:
    """Return the options of a command, each with the text after `=`, its attached number, or else the next word."""
    options = []
    for k, word in enumerate(words):
        if attached := ATTACHED_NUMBER.fullmatch(word):
            options.append((attached[1], attached[2]))
        elif word.startswith("-"):
            name, has_value, value = word.partition("=")
            following = words[k + 1] if k + 1 < len(words) else ""
            options.append((name, value if has_value else following))
    return options


def parse_core_list(text: str) -> list[int]:
    """Return the cores of a list such as `1-8,105`; parts that are not numbers are left out."""
    cores: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdecimal() and (high or low).isdecimal():
            cores.extend(range(int(low), int(high or low) + 1))
    return cores
