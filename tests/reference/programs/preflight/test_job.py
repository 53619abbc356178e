"""Modules, variables and the binding of ranks differ from the job script: each difference is reported."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.host.launch_line import parse_launch_line
from harness.protocol.programs.preflight import RankBinding
from harness.reference.programs.preflight.checks import binding, environment
from harness.reference.programs.preflight.job_script import JobScript, parse_job_script
from tests.conftest import ROOT
from tests.reference.programs.preflight.contexts import make_context

GOLDEN = ROOT / "tests" / "execution" / "golden"
AURORA = "list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100"


def read_golden(system: str) -> JobScript:
    text = (GOLDEN / f"{system}.sh").read_text()
    return parse_job_script(text, text.split("run_case ")[2].split()[0])


def bind(local_rank: int, *cpus: int, **others: object) -> RankBinding:
    return RankBinding(host="n1", local_rank=local_rank, cpus=list(cpus), cores=list(cpus), **others)  # type: ignore[arg-type]


def make_script(*launch: str) -> JobScript:
    return JobScript((), (), {}, parse_launch_line(shlex.join(launch)))


def test_real_scripts_are_read() -> None:
    frontier, aurora = read_golden("frontier"), read_golden("aurora")
    assert "rocm/7.1.1" in frontier.modules
    assert frontier.unloaded_modules == ("darshan-runtime",)
    assert frontier.variables["OMP_NUM_THREADS"] == "7"
    assert "TRITON_CACHE_DIR" not in frontier.variables  # its value depends on the job
    assert frontier.launch is not None
    assert frontier.launch.find_option("--cpus-per-task") == "7"
    assert frontier.launch.find_option("--gpu-bind") == "closest"
    assert aurora.modules == ("frameworks",)
    assert aurora.launch is not None
    assert aurora.launch.find_option("--cpu-bind") == AURORA


def test_environment_of_the_job_script_is_ok() -> None:
    script = read_golden("frontier")
    modules = ":".join(name if "/" in name else f"{name}/1.0" for name in script.modules)
    assert environment.find_differences(script, script.variables | {"LOADEDMODULES": modules}) == []


def test_each_difference_of_the_environment_is_found() -> None:
    script = JobScript(
        ("rocm/7.1.1", "cce"), ("darshan",), {"OMP_NUM_THREADS": "7", "FI_MR_CACHE_MONITOR": "kdreg2"}, None
    )
    observed = {"LOADEDMODULES": "rocm/6.0:darshan/3", "OMP_NUM_THREADS": "1"}
    assert environment.find_differences(script, observed) == [
        "module rocm/7.1.1 is not loaded",
        "module cce is not loaded",
        "module darshan is loaded",
        "OMP_NUM_THREADS is '1', not '7'",
        "FI_MR_CACHE_MONITOR is not set",
    ]


def test_rank_reports_its_own_cores(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    try:
        os.sched_setaffinity(0, {core})
        reported = binding.check(make_context(tmp_path)).binding
    finally:
        os.sched_setaffinity(0, before)
    assert reported is not None
    assert reported.cpus == [core]
    assert reported.device is None


def test_binding_of_the_launch_line_is_ok() -> None:
    bindings = {0: bind(0, *range(1, 9), device="a"), 1: bind(1, *range(9, 17), device="b")}
    assert binding.judge_bindings(bindings, make_script("mpiexec", f"--cpu-bind={AURORA}")).verdict == "ok"
    assert binding.judge_bindings(bindings, make_script("srun", "-c7")).verdict == "ok"
    assert binding.judge_bindings({3: bind(3, 2)}, make_script("srun", "--cpu-bind=map_cpu:0,2")).verdict == "ok"
    repeated = make_script("srun", "--cpu-bind=mask_cpu:0x3*2,0xc0*2")
    assert binding.judge_bindings({1: bind(1, 0, 1), 2: bind(2, 6, 7)}, repeated).verdict == "ok"
    assert binding.judge_bindings({1: bind(1, 10)}, make_script("srun", "--cpu-bind=map_cpu:0x0,0xa")).verdict == "ok"
    unknown = make_script("mpiexec", "--cpu-bind=list:$cpus")
    assert binding.judge_bindings({0: bind(0, 1)}, unknown).verdict == "ok"


@pytest.mark.parametrize(
    ("bindings", "launch", "message"),
    [
        ((bind(0, *range(1, 9)), bind(1, *range(17, 25))), f"--cpu-bind={AURORA}", "has CPUs 17-24, not CPUs 9-16"),
        ((bind(0, 3), bind(1, 5)), "--cpu-bind=verbose,map_cpu:3,4", "rank 1 has CPU 5, not CPU 4"),
        ((bind(0, 0, 1), bind(1, 3)), "--cpu-bind=mask_cpu:0x3,c", "rank 1 has CPU 3, not CPUs 2-3"),
        ((bind(0, 0, 1, 2), bind(1, 2, 3, 4)), "--cpus-per-task=3", "ranks 0 and 1 share core 2"),
        ((bind(0, 0), bind(1, 1)), "--cpus-per-task=7", "rank 0 has 1 CPU, not 7"),
        ((bind(0, 0, device="a"), bind(1, 1, device="a")), "-n2", "ranks 0 and 1 share the accelerator a"),
        (
            (bind(0, 0, device="a", near_cpus=[8, 9]), bind(1, 1, device="b", near_cpus=[1])), "--gpu-bind=closest",
            "rank 0 on CPU 0 is far from its accelerator a",
        ),
    ],
    ids=["wrong CPUs", "wrong map", "wrong mask", "shared core", "too few CPUs", "shared device", "far device"],
)  # fmt: skip
def test_wrong_binding_is_a_failure(bindings: tuple[RankBinding, ...], launch: str, message: str) -> None:
    finding = binding.judge_bindings(dict(enumerate(bindings)), make_script("srun", launch))
    assert finding.verdict == "failed"
    assert message in finding.observed


@pytest.mark.parametrize(
    "launch",
    [
        "mpiexec -n 2", "mpiexec -n 2 --map-by ppr:2:node --bind-to none", "srun -n2 -c 4 --cpu-bind=verbose,none",
        "srun --cpu-bind=map_cpu:0,1 --cpu-bind=none",
    ],
)  # fmt: skip
def test_shared_cores_without_a_binding_are_not_called_ok(launch: str) -> None:
    finding = binding.judge_bindings({0: bind(0, 0, 1), 1: bind(1, 0, 1)}, make_script(*launch.split()))
    assert finding.verdict == "not checked"
    assert "ranks 0 and 1 share cores 0-1" in finding.observed


def test_ranks_are_compared_only_within_their_node() -> None:
    bindings = {
        rank: RankBinding(host=f"n{rank // 8}", local_rank=rank % 8, cpus=[rank % 8], cores=[rank % 8])
        for rank in range(800)
    }
    assert sum(1 for _ in binding.iter_pairs(bindings)) == 100 * (8 * 7 // 2)
    assert binding.judge_bindings(bindings, make_script("srun", "-c1")).verdict == "ok"


def test_device_without_an_identifier_is_not_taken_for_that_of_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks may see only its own accelerator, with number 0."""
    module = SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(name="GPU"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert binding.identify_device(torch.device("cuda", 0)) == (None, None)


@pytest.mark.parametrize(
    ("text", "loaded", "unloaded"),
    [
        ("module load gcc/12 cuda", ("gcc/12", "cuda"), ()),
        ("ml PrgEnv-gnu rocm", ("PrgEnv-gnu", "rocm"), ()),
        ("ml load gcc # a comment", ("gcc",), ()),
        ("ml gcc -darshan", ("gcc",), ("darshan",)),
        ("module load gcc || exit 1", ("gcc",), ()),
        ("module load gcc 2> /dev/null; echo x", ("gcc",), ()),
        ("module load gcc\nmodule unload gcc", (), ("gcc",)),
        ("module load rocm/$VERSION", (), ()),
        ("module load gcc\nmodule --force purge\nml --force purge\nml --quiet load cuda", ("cuda",), ()),
        ("module use /modules\nml list\nml purge\nmodule -q load\nml  # none\n", (), ()),
    ],
)
def test_modules_of_a_script_are_read(text: str, loaded: tuple[str, ...], unloaded: tuple[str, ...]) -> None:
    script = parse_job_script(f"{text}\n", "case")
    assert (script.modules, script.unloaded_modules) == (loaded, unloaded)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("export A='x\ny'\nexport B=1", {"B": "1"}),
        ("export A='x;y' B=2; echo C=3", {"A": "x;y", "B": "2"}),
        ("export A=x#y  # not B=2", {"A": "x#y"}),
        ("export A=~/cache B=$HOME C=`pwd`", {}),
        ('export A=/x\nexport B=1\nexport A="$A:/y"', {"B": "1"}),
    ],
    ids=["several lines", "command", "comment", "expansions", "changed value"],
)
def test_variables_with_literal_values_are_read(text: str, expected: dict[str, str]) -> None:
    assert parse_job_script(f"{text}\n", "case").variables == expected
