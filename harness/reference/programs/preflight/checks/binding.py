"""CPUs and accelerators of the ranks: each rank reports its own, and rank 0 compares them with the launch line.

A CPU is a logical processor, as in Linux and Slurm; a physical core has one or more.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

import torch

from harness.host.launch_line import NO_BINDING, LaunchLine, format_cpu_list, parse_cpu_list
from harness.protocol.programs.preflight import Finding, RankBinding
from harness.protocol.text import pluralize
from harness.reference.profiling.timing import get_device_name
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes
from harness.reference.programs.preflight.checks.devices import find_device_kind
from harness.reference.programs.preflight.job_script import JobScript, read_job_script

CPUS = Path("/sys/devices/system/cpu")
PCI = Path("/sys/bus/pci/devices")
BIND_OPTIONS = ("--cpu-bind", "--cpu_bind", "--bind-to", "-bind-to")  # with which launchers bind ranks to CPUs
EXPECTED = "CPUs and an accelerator of its own for every rank, as in the launch line"
ADVICE = "Correct the binding options of `launch` in the system's file, and the task plugin of the scheduler."
MAX_PROBLEMS = 4  # that a message lists
NumberedBinding = tuple[int, RankBinding]  # a rank and its binding


def check(context: CheckContext) -> Outcome:
    """Return the CPUs and the accelerator that this rank may use, which rank 0 judges."""
    cpus = sorted(os.sched_getaffinity(0))
    binding = RankBinding(
        host=os.environ.get("SLURMD_NODENAME", platform.node()), local_rank=context.rank_info.local_rank, cpus=cpus,
        cores=sorted({find_core(cpu) for cpu in cpus}),
    )  # fmt: skip
    kind = context.config.device or find_device_kind()
    module = torch.get_device_module(kind)
    if kind != "cpu" and module.device_count():
        device = torch.device(kind, context.rank_info.local_rank % module.device_count())
        binding.device_name = get_device_name(device)
        binding.device, binding.near_cpus = identify_device(device)
    return Outcome(finding=Finding(verdict="ok", expected=EXPECTED, observed=""), binding=binding)


def find_core(cpu: int) -> int:
    """Return the first CPU of the physical core to which a CPU belongs."""
    try:
        siblings = (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="utf-8")
    except OSError:
        return cpu
    return min(parse_cpu_list(siblings.strip()), default=cpu)


def identify_device(device: torch.device) -> tuple[str | None, list[int] | None]:
    """Return an identifier of an accelerator, and the CPUs near it; None for what is not known.

    The number of a device is no identifier, since a launcher may show each rank only its own, with number 0.
    """
    properties = torch.get_device_module(device).get_device_properties(device)
    numbers = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    known = [number for number in numbers if number is not None]
    address = "{:04x}:{:02x}:{:02x}.0".format(*known) if len(known) == len(numbers) else ""
    identifier = str(getattr(properties, "uuid", "")) or address
    try:
        near = parse_cpu_list((PCI / address / "local_cpulist").read_text(encoding="utf-8").strip())
    except OSError:
        near = []
    return identifier or None, near or None


def judge(context: CheckContext, outcomes: Outcomes) -> Finding:
    """Compare the bindings of all ranks with each other and with the launch line of the job script."""
    failed = next((o.finding for o in outcomes.values() if o.finding.verdict != "ok"), None)
    if failed is not None:
        return failed
    bindings = {rank: outcome.binding for rank, outcome in outcomes.items() if outcome.binding is not None}
    return judge_bindings(bindings, read_job_script(context.case_folder))


def judge_bindings(bindings: Mapping[int, RankBinding], script: JobScript | None) -> Finding:
    """Return the finding on the bindings of ranks, by rank."""
    launch = script.launch if script is not None else None
    problems = find_device_problems(bindings, launch)
    overlaps = find_overlaps(bindings)
    if launch is not None and has_binding(launch):
        problems += overlaps + find_unmet_requests(bindings, launch)
    sizes = sorted({len(binding.cores) for binding in bindings.values()})
    cores = f"{' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} physical cores"
    observed = f"{pluralize(len(bindings), 'rank')} with {cores} each, none shared"
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        return Finding(
            verdict="failed", expected=EXPECTED, observed="; ".join(problems[:MAX_PROBLEMS] + more), advice=ADVICE
        )
    if overlaps:
        return Finding(
            verdict="not checked", expected=EXPECTED, observed=f"the launch line binds no ranks, and {overlaps[0]}",
            advice="Bind the ranks in `launch` of the system's file, unless sharing cores is intended.",
        )  # fmt: skip
    return Finding(verdict="ok", expected=EXPECTED, observed=observed)


def has_binding(launch: LaunchLine) -> bool:
    """Return whether a launch line binds ranks to CPUs; `--cpu-bind=none` or `--bind-to none` overrides the others."""
    how = launch.find_option(*BIND_OPTIONS)
    if how is not None:
        return NO_BINDING.fullmatch(how) is None
    return "cpus_per_rank" in launch.numbers or launch.find_option("--map-by", "-map-by") is not None


def iter_pairs(bindings: Mapping[int, RankBinding]) -> Iterator[tuple[NumberedBinding, NumberedBinding]]:
    """Yield each pair of ranks of the same node, with their bindings."""
    nodes: dict[str, list[NumberedBinding]] = defaultdict(list)
    for rank, binding in bindings.items():
        nodes[binding.host].append((rank, binding))
    for ranks in nodes.values():
        yield from combinations(ranks, 2)


def find_overlaps(bindings: Mapping[int, RankBinding]) -> list[str]:
    """Return a message for each pair of ranks of a node that share a physical core."""
    problems = []
    for (a, first), (b, second) in iter_pairs(bindings):
        if shared := set(first.cores) & set(second.cores):
            problems.append(f"ranks {a} and {b} share {format_cpus(shared, 'core')}")
    return problems


def find_unmet_requests(bindings: Mapping[int, RankBinding], launch: LaunchLine) -> list[str]:
    """Return a message for each rank with fewer CPUs than the launch line requests, or others than it lists."""
    problems = []
    _, requested = launch.numbers.get("cpus_per_rank", ("", 0))
    for rank, binding in bindings.items():
        if len(binding.cpus) < requested:
            problems.append(f"rank {rank} has {pluralize(len(binding.cpus), 'CPU')}, not {requested}")
        if launch.binding is not None:
            expected = set(launch.binding.find_cpus(binding.local_rank))
            if expected != set(binding.cpus):
                problems.append(f"rank {rank} has {format_cpus(binding.cpus)}, not {format_cpus(expected)}")
    return problems


def find_device_problems(bindings: Mapping[int, RankBinding], launch: LaunchLine | None) -> list[str]:
    """Return a message for each pair of ranks with the same accelerator, and for each rank that is far from its own."""
    problems = [
        f"ranks {a} and {b} share the accelerator {first.device}"
        for (a, first), (b, second) in iter_pairs(bindings)
        if first.device is not None and first.device == second.device
    ]
    if launch is not None and launch.find_option("--gpu-bind") == "closest":
        problems += [
            f"rank {rank} on {format_cpus(binding.cpus)} is far from its accelerator {binding.device}"
            for rank, binding in bindings.items()
            if binding.near_cpus and not set(binding.near_cpus) & set(binding.cpus)
        ]
    return problems


def format_cpus(cpus: Iterable[int], noun: str = "CPU") -> str:
    """Return CPUs, or what the noun names, as text such as `CPU 3`, `CPUs 1-8,53` or `no CPUs`."""
    text = format_cpu_list(cpus)
    return f"{noun} {text}" if text.isdecimal() else f"{noun}s {text}" if text else f"no {noun}s"
