"""Cores and accelerators of the ranks: each rank reports its own, and rank 0 compares them with the launch line."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import torch

from harness.protocol.programs.preflight import Finding, RankBinding
from harness.protocol.text import pluralize
from harness.reference.profiling.timing import get_device_name
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes
from harness.reference.programs.preflight.checks.devices import find_device_kind
from harness.reference.programs.preflight.job_script import JobScript, read_job_script

CPUS = Path("/sys/devices/system/cpu")
PCI = Path("/sys/bus/pci/devices")
# Options with which launchers bind ranks to cores.
BINDING_OPTIONS = (
    "--cpu-bind", "--cpus-per-task", "-c", "--depth", "-d", "--bind-to", "--map-by", "-bind-to", "-map-by",
)  # fmt: skip
EXPECTED = "cores and an accelerator of its own for every rank, as in the launch line"
ADVICE = "Correct the binding options of `launch` in the system's file, and the task plugin of the scheduler."
MAX_PROBLEMS = 4  # that a message lists
Cores = frozenset[int]


def check(context: CheckContext) -> Outcome:
    """Return the cores and the accelerator that this rank may use, which rank 0 judges."""
    cores = sorted(os.sched_getaffinity(0))
    binding = RankBinding(
        host=os.environ.get("SLURMD_NODENAME", platform.node()), local_rank=context.rank_info.local_rank, cores=cores,
        physical_cores=sorted({find_physical_core(core) for core in cores}),
    )  # fmt: skip
    kind = context.config.device or find_device_kind()
    module = torch.get_device_module(kind)
    if kind != "cpu" and module.device_count():
        device = torch.device(kind, context.rank_info.local_rank % module.device_count())
        binding.device_name = get_device_name(device)
        binding.device, binding.near_cores = identify_device(device)
    return Outcome(finding=Finding(verdict="ok", expected=EXPECTED, observed=""), binding=binding)


def find_physical_core(core: int) -> int:
    """Return the first logical processor of the physical core to which a logical one belongs."""
    try:
        siblings = (CPUS / f"cpu{core}" / "topology" / "thread_siblings_list").read_text(encoding="utf-8")
    except OSError:
        return core
    return min(parse_core_list(siblings), default=core)


def parse_core_list(text: str) -> Cores:
    """Return the cores in a list such as `1-8,53`."""
    pairs = (part.partition("-") for part in text.strip().split(",") if part)
    return frozenset(core for first, _, last in pairs for core in range(int(first), int(last or first) + 1))


def identify_device(device: torch.device) -> tuple[str, list[int] | None]:
    """Return an identifier of an accelerator, and the cores near it if the kernel reports them."""
    properties = torch.get_device_module(device).get_device_properties(device)
    numbers = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    known = [number for number in numbers if number is not None]
    address = "{:04x}:{:02x}:{:02x}.0".format(*known) if len(known) == len(numbers) else ""
    identifier = str(getattr(properties, "uuid", "")) or address
    try:
        near = parse_core_list((PCI / address / "local_cpulist").read_text(encoding="utf-8")) if address else None
    except (OSError, ValueError):
        near = None
    return identifier or str(device), sorted(near) if near else None


def judge(context: CheckContext, outcomes: Outcomes) -> Finding:
    """Compare the bindings of all ranks with each other and with the launch line of the job script."""
    bindings = {rank: outcome.binding for rank, outcome in outcomes.items() if outcome.binding is not None}
    failed = next((o.finding for o in outcomes.values() if o.finding.verdict != "ok"), None)
    if failed is not None:
        return failed
    return judge_bindings(bindings, read_job_script(context.case_folder))


def judge_bindings(bindings: Mapping[int, RankBinding], script: JobScript | None) -> Finding:
    """Return the finding on the bindings of ranks, by rank."""
    binds = script is not None and any(script.find_option(option) is not None for option in BINDING_OPTIONS)
    problems = find_device_problems(bindings, script)
    overlaps = find_overlaps(bindings)
    if binds and script is not None:
        problems += overlaps + find_unmet_requests(bindings, script)
    sizes = sorted({len(binding.physical_cores) for binding in bindings.values()})
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


def find_overlaps(bindings: Mapping[int, RankBinding]) -> list[str]:
    """Return a message for each pair of ranks of a node that share a physical core."""
    problems = []
    for (a, first), (b, second) in combinations(bindings.items(), 2):
        shared = set(first.physical_cores) & set(second.physical_cores)
        if first.host == second.host and shared:
            problems.append(f"ranks {a} and {b} share the cores {format_cores(shared)}")
    return problems


def find_unmet_requests(bindings: Mapping[int, RankBinding], script: JobScript) -> list[str]:
    """Return a message for each rank with fewer cores than the launch line requests, or others than it lists."""
    problems = []
    requested = script.find_option("--cpus-per-task", "-c", "--depth", "-d")
    if requested is not None and requested.isdecimal():
        problems += [
            f"rank {rank} has {pluralize(len(binding.cores), 'core')}, not {requested}"
            for rank, binding in bindings.items()
            if len(binding.cores) < int(requested)
        ]
    listed = re.match(r"(?:verbose,)?list:(.+)", script.find_option("--cpu-bind") or "")
    lists = [parse_core_list(part) for part in listed[1].split(":")] if listed else []
    for rank, binding in bindings.items():
        if lists and (binding.local_rank >= len(lists) or lists[binding.local_rank] != set(binding.cores)):
            expected_cores = format_cores(lists[binding.local_rank]) if binding.local_rank < len(lists) else "no cores"
            problems.append(f"rank {rank} has the cores {format_cores(binding.cores)}, not {expected_cores}")
    return problems


def find_device_problems(bindings: Mapping[int, RankBinding], script: JobScript | None) -> list[str]:
    """Return a message for each pair of ranks with the same accelerator, and for each rank that is far from its own."""
    problems = [
        f"ranks {a} and {b} share the accelerator {first.device}"
        for (a, first), (b, second) in combinations(bindings.items(), 2)
        if first.device is not None and (first.host, first.device) == (second.host, second.device)
    ]
    if script is not None and script.find_option("--gpu-bind") == "closest":
        problems += [
            f"rank {rank} on the cores {format_cores(binding.cores)} is far from its accelerator {binding.device}"
            for rank, binding in bindings.items()
            if binding.near_cores and not set(binding.near_cores) & set(binding.cores)
        ]
    return problems


def format_cores(cores: Cores | set[int] | list[int]) -> str:
    """Return cores as a list such as `1-8,53`."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
