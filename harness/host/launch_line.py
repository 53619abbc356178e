"""The options of a launch command: nodes, ranks, CPUs and accelerators, for srun and the mpiexec of MPI libraries.

A CPU is a logical processor, as in Linux and Slurm; a physical core has one or more.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("srun", "mpiexec", "mpirun")
# The quantity that each option sets.
SRUN = {
    "--nodes": "nodes", "-N": "nodes", "--ntasks": "ranks", "-n": "ranks", "--ntasks-per-node": "ranks_per_node",
    "--cpus-per-task": "cpus_per_rank", "-c": "cpus_per_rank", "--gpus-per-node": "accelerators",
    "--gpus-per-task": "accelerators_per_rank",
}  # fmt: skip
MPIEXEC = {
    "-n": "ranks", "--n": "ranks", "-np": "ranks", "--np": "ranks", "--ppn": "ranks_per_node",
    "-ppn": "ranks_per_node", "-perhost": "ranks_per_node", "-N": "ranks_per_node", "--npernode": "ranks_per_node",
    "-npernode": "ranks_per_node", "--depth": "cpus_per_rank", "-d": "cpus_per_rank",
}  # fmt: skip
PER_NODE = re.compile(r"(?:^|,)ppr:(\d+):node")
# A short option with its number attached, as in `srun -n4`.
ATTACHED_NUMBER = re.compile(r"(-[A-Za-z])(\d+)")
MASK = re.compile(r"(0[xX])?[0-9a-fA-F]+")
# Lists that the shell completes, such as `list:$cpus`, do not match.
CPU_LISTS = re.compile(r"(?:\w+,)*(list|map_cpu|mask_cpu):([\w,:*-]+)")
# The values of `--cpu-bind` and `--bind-to` with which a launcher binds no ranks, such as `verbose,none`.
NO_BINDING = re.compile(r"(?:\w+,)*(?:no|none)")


@dataclass(frozen=True)
class CpuBinding:
    """The CPUs to which an option binds the ranks of a node.

    Attributes:
        option: The option.
        cpus: The CPUs of each entry of the list; there is one entry for each rank of a node.
        is_cyclic: Whether the launcher returns to the first entry if there are more ranks than entries, as Slurm does.
    """

    option: str
    cpus: list[list[int]]
    is_cyclic: bool

    def find_cpus(self, local_rank: int) -> list[int]:
        """Return the CPUs of a rank of a node; none if the list has no entry for it."""
        index = local_rank % len(self.cpus) if self.is_cyclic else local_rank
        return self.cpus[index] if index < len(self.cpus) else []


@dataclass(frozen=True)
class LaunchLine:
    """The options of a launch command.

    Attributes:
        command: srun, mpiexec or mpirun.
        options: The options, each with its value, or with the word that follows it.
        numbers: The option and the value of each quantity: nodes, ranks, ranks_per_node, cpus_per_rank, accelerators,
            accelerators_per_rank.
        binding: The option that lists the CPUs of each rank of a node.
    """

    command: str
    options: Sequence[tuple[str, str]] = ()
    numbers: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    binding: CpuBinding | None = None

    def find_option(self, *names: str) -> str | None:
        """Return the value of the last option with one of these names, which is the one that counts."""
        return next((value for name, value in reversed(self.options) if name in names), None)


def parse_launch_line(text: str) -> LaunchLine | None:
    """Return the options of a launch command, or None if it contains no known launcher."""
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
    options = _list_options(words[start + 1 :])
    for option, value in options:
        count = value.rpartition(":")[2] if option.startswith("--gpus") else value  # such as `a100:4`
        if option in known and count.isdecimal():
            numbers[known[option]] = (option, int(count))
        elif option in ("--map-by", "-map-by") and (match := PER_NODE.search(value)):
            numbers["ranks_per_node"] = (option, int(match[1]))
        elif option in ("--cpu-bind", "--cpu_bind"):
            lists = CPU_LISTS.fullmatch(value)
            binding = _parse_binding(option, lists[1], lists[2]) if lists else None
    return LaunchLine(command, options, numbers, binding)


def _parse_binding(option: str, kind: str, text: str) -> CpuBinding:
    """Return the CPUs of ranks: lists separated by colons (PALS), or numbers or masks separated by commas (Slurm).

    In Slurm, `0x3*4` stands for four entries, and a number may be hexadecimal.
    """
    if kind == "list":
        return CpuBinding(option, [parse_cpu_list(group) for group in text.split(":")], is_cyclic=False)
    parse = _parse_cpu if kind == "map_cpu" else _parse_mask
    cpus = []
    for entry in text.split(","):
        value, _, count = entry.partition("*")
        cpus += [parse(value)] * (int(count) if count.isdecimal() else 1)
    return CpuBinding(option, cpus, is_cyclic=True)


def _parse_cpu(text: str) -> list[int]:
    """Return the CPU of a number, such as 10 for `10` or `0xa`; none if it is not a number."""
    if text.isdecimal():
        return [int(text)]
    return [int(text, 16)] if text.startswith("0x") and MASK.fullmatch(text) else []


def _parse_mask(text: str) -> list[int]:
    """Return the CPUs of a hexadecimal mask, such as 1 and 2 for 0x6; none if it is not a mask."""
    mask = int(text, 16) if MASK.fullmatch(text) else 0
    return [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]


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


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Return a list such as `1-8,105`, which `parse_cpu_list` parses."""
    ends: list[list[int]] = []
    for cpu in sorted(cpus):
        if ends and cpu == ends[-1][1] + 1:
            ends[-1][1] = cpu
        else:
            ends.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def parse_cpu_list(text: str) -> list[int]:
    """Return the CPUs of a list such as `1-8,105`; parts that are not numbers are left out."""
    cpus: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdecimal() and (high or low).isdecimal():
            cpus.extend(range(int(low), int(high or low) + 1))
    return cpus
