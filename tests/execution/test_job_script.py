"""Job scripts: their exact text, and the properties that all of them have.

golden/<system>.sh is the script of one scaling job. After an intended change, regenerate the files and review the diff:
`python -m tests.execution.test_job_script`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import harness
from harness.config.resources import find_resource, list_resources
from harness.config.suite import load_suite
from harness.config.system import ResolvedSystem, load_system
from harness.drills.cluster import Cluster
from harness.execution.job_script import JobScriptWriter
from harness.execution.setup_script import render_setup_run, render_setup_script
from harness.planning.expand import Plan, expand_suite
from harness.planning.jobs import Job, pack_jobs
from harness.protocol.case import Case
from harness.protocol.registry import PROGRAMS
from tests.conftest import require_program, require_slurm
from tests.execution.test_run_case import make_job
from tests.support.cluster import wait_until

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = {"account": "abc123"}
SYSTEMS = ("aurora", "frontier", "local", "pbs", "perlmutter", "slurm")
CAMPAIGN = Path("/campaign")


def load_shipped_system(name: str, **settings: str) -> ResolvedSystem:
    path = find_resource("systems", name)
    declared = load_system(path, {}).definition.settings
    return load_system(path, {key: value for key, value in (SETTINGS | settings).items() if key in declared})


def load_plan(suite: str, system: str, **settings: str) -> Plan:
    site = load_shipped_system(system, **settings)
    return expand_suite(load_suite(find_resource("suites", suite), site.definition.overlay or system), site)


def pack(plan: Plan, folder: Path = CAMPAIGN) -> list[Job]:
    return pack_jobs(plan, plan.cases, folder)


def render_golden(system: str) -> str:
    """Return the script of the largest job, without paths and versions, which differ between machines."""
    plan = load_plan("scaling", system)
    job = max(pack(plan), key=lambda job: (job.nodes, job.cases[0].ranks, job.name))
    text = JobScriptWriter(plan, CAMPAIGN).render(job)
    text = text.replace(sys.executable, "/environment/bin/python").replace(
        str(Path(sys.executable).parent), "/environment/bin"
    )
    return text.replace(f"gfm-harness {harness.__version__} ", "gfm-harness VERSION ")


@pytest.fixture(scope="module")
def all_scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[Plan, Job]]:
    """Write the scripts of all shipped suites on all systems; return the plan and the job of each script."""
    scripts: dict[Path, tuple[Plan, Job]] = {}
    for system in SYSTEMS:
        for suite in list_resources("suites"):
            plan = load_plan(suite, system, spare_nodes="2", nccl_plugin="/sw/librccl-net.so", archive="$HOME/a.tar.gz")
            folder = tmp_path_factory.mktemp(plan.campaign_name)
            writer = JobScriptWriter(plan, folder)
            scripts |= {writer.write(job): (plan, job) for job in pack(plan, folder)}
    return scripts


def test_slurm_is_asked_for_other_nodes_than_faulty_ones(tmp_path: Path) -> None:
    plan = load_plan("scaling", "slurm")
    [job, *_] = pack(plan, tmp_path)
    writer = JobScriptWriter(plan, tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "faulty_nodes").write_text("n2 NVRM: Xid\nn5 NVRM: Xid\n")
    assert "\n#SBATCH --exclude=n2,n5\n" in writer.render(job)
    (tmp_path / "jobs" / "faulty_nodes").unlink()
    assert "--exclude=" not in writer.render(job)


@pytest.mark.parametrize("system", SYSTEMS)
def test_scaling_script_equals_its_golden_file(system: str) -> None:
    assert render_golden(system) == (GOLDEN / f"{system}.sh").read_text()


@pytest.mark.slow
def test_every_script_passes_shellcheck_and_bash(all_scripts: dict[Path, tuple[Plan, Job]], tmp_path: Path) -> None:
    require_program("shellcheck")
    assert {plan.campaign_name for plan, _ in all_scripts.values()} == {
        f"{suite}-{system}" for suite in list_resources("suites") for system in SYSTEMS
    }
    files = [str(path) for path in all_scripts]
    # scripts of one campaign differ only in their cases, and shellcheck is slow
    campaigns = {
        plan.campaign_name: [p for p, (other, _) in all_scripts.items() if other is plan]
        for plan, _ in all_scripts.values()
    }
    checked_files = [str(path) for paths in campaigns.values() for path in {paths[0], paths[-1]}]
    files += [
        str(get_trial_launcher(path, c))
        for path, (_, job) in all_scripts.items()
        for c in job.cases
        if PROGRAMS[c.program].is_driver
    ]
    checked_files += [name for name in files if name.endswith("launch.sh")]
    for system in SYSTEMS:
        path = tmp_path / f"setup-{system}.sh"
        path.write_text(render_setup_script(load_shipped_system(system)))
        run = tmp_path / f"setup-run-{system}.sh"
        run.write_text(f"#!/usr/bin/env bash\n{render_setup_run(load_shipped_system(system))}")
        files += [str(path), str(run)]
        checked_files.append(str(path))
    result = subprocess.run(["shellcheck", "--shell=bash", *checked_files], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[:5000]
    for name in files:
        assert subprocess.run(["bash", "-n", name], check=False).returncode == 0, name


def test_scripts_contain_no_unfilled_placeholder(all_scripts: dict[Path, tuple[Plan, Job]]) -> None:
    for path in all_scripts:
        text = path.read_text()
        assert not re.search(r"\{\{|\{%|%\}|\bNone\b|\bsettings\.|\bUndefined\b", text), path
        assert "\n\n\n" not in text


def test_walltime_is_the_sum_of_cases_and_overhead(
    all_scripts: dict[Path, tuple[Plan, Job]],
) -> None:
    for path, (plan, job) in all_scripts.items():
        request = re.search(r"^#(?:SBATCH --time|PBS -l walltime)=(\d+):(\d\d):00$", path.read_text(), re.MULTILINE)
        if plan.system.definition.scheduler != "local":
            assert request, path
            minutes = sum(case.walltime_minutes for case in job.cases) + plan.system.definition.overhead_minutes
            assert int(request[1]) * 60 + int(request[2]) == minutes


def test_every_case_starts_with_its_nodes_and_ranks(all_scripts: dict[Path, tuple[Plan, Job]]) -> None:
    for path, (plan, job) in all_scripts.items():
        lines = path.read_text().replace(" \\\n", " ").splitlines()
        runs = [line for line in lines if line.startswith("run_case ")]
        assert [line.split()[1] for line in runs] == [case.folder_name for case in job.cases]
        for line, case in zip(runs, job.cases, strict=True):
            nodes, ranks, ranks_per_node = case.nodes, case.ranks, case.ranks_per_node
            if PROGRAMS[case.program].is_driver:
                nodes = case.parameters["nodes_per_trial"]
                ranks = nodes * ranks_per_node
            seconds = round(case.walltime_minutes * 60)
            assert shlex.split(line)[3:6] == [str(nodes), str(ranks_per_node), str(seconds)]
            assert line.endswith(f'"$python" -P -m harness.reference "$campaign"/{case.folder_name}')
            launch_text = line
            if PROGRAMS[case.program].is_driver:
                assert "srun" not in line
                assert "mpiexec" not in line
                assert not case.nodes % nodes
                launch_text = get_trial_launcher(path, case).read_text().replace(" \\\n", " ")
            match plan.system.definition.scheduler:
                case "slurm":
                    assert f"srun --nodes={nodes} --ntasks={ranks} --ntasks-per-node={ranks_per_node} " in launch_text
                    assert f'--nodelist="$(first {nodes})"' in launch_text
                case "pbs":
                    assert (
                        f"env WORLD_SIZE={ranks} mpiexec -n {ranks} --ppn {ranks_per_node} "
                        f'--hostfile "$(first {nodes})" ' in launch_text
                    )
                case _:
                    assert ("mpiexec -n" in launch_text) == (ranks > 1)


def get_trial_launcher(script: Path, case: Case) -> Path:
    """Return the script with which a search starts its trials."""
    return script.parent.parent / case.folder_name / "launch.sh"


def test_job_requests_nodes_of_its_largest_case_and_spares(
    all_scripts: dict[Path, tuple[Plan, Job]],
) -> None:
    for path, (plan, job) in all_scripts.items():
        request = re.search(r"^#(?:SBATCH --nodes|PBS -l select)=(\d+)\b", path.read_text(), re.MULTILINE)
        if request:
            assert int(request[1]) == max(case.nodes for case in job.cases) + 2
        else:
            assert plan.system.definition.scheduler == "local"


def test_aurora_binds_twelve_ranks_to_free_cores() -> None:
    """The first core of each socket, 0 and 52, is reserved for the operating system."""
    text = render_golden("aurora")
    [binding, *_] = re.findall(r"--cpu-bind=list:(\S+)", text)
    ranges = [tuple(map(int, part.split("-"))) for part in binding.split(":")]
    assert len(ranges) == 12
    assert all(last - first == 7 for first, last in ranges)
    assert all(last < first for (_, last), (first, _) in pairwise(ranges))
    assert not [core for core in (0, 52) if any(first <= core <= last for first, last in ranges)]
    assert ranges[5][1] < 52 < ranges[6][0]
    assert ranges[-1][1] < 104


def test_perlmutter_allocates_gpus_in_the_job() -> None:
    """A job step sees only the GPUs that its job requested, and the node check counts them."""
    assert "\n#SBATCH --gpus-per-node=4\n" in render_golden("perlmutter")


def test_perlmutter_selects_the_gpu_memory() -> None:
    plan = load_plan("scaling", "perlmutter", memory="hbm80g")
    assert '\n#SBATCH --constraint="gpu&hbm80g"\n' in JobScriptWriter(plan, CAMPAIGN).render(pack(plan)[0])


def test_walltime_limits_depend_on_the_node_count() -> None:
    aurora, frontier = load_shipped_system("aurora"), load_shipped_system("frontier")
    assert [aurora.get_max_minutes(n) for n in (512, 513, 1025, 2048)] == [360, 720, 1080, 1440]
    assert [frontier.get_max_minutes(n) for n in (91, 92, 184)] == [120, 360, 720]


@pytest.fixture(scope="module")
def planning_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a Slurm with as many nodes as the largest job needs; all but one are only planned."""
    require_slurm()
    with Cluster(
        tmp_path_factory.mktemp("planner"), nodes=1, cpus=128, gpus=8, features=("nvme", "gpu"), partition="batch",
        planned_nodes=9500, settings={"EnforcePartLimits": "ALL"},
    ) as running:  # fmt: skip
        yield running


@pytest.mark.slow
def test_real_slurm_accepts_every_script(all_scripts: dict[Path, tuple[Plan, Job]], planning_cluster: Cluster) -> None:
    scripts = [path for path, (plan, _) in all_scripts.items() if plan.system.definition.scheduler == "slurm"]
    assert len(scripts) > 20
    for path in scripts:
        result = planning_cluster.run("sbatch", "--test-only", str(path))
        assert result.returncode == 0, f"{path}: {result.stderr}"
    too_large = scripts[0].read_text().replace("#SBATCH --nodes=", "#SBATCH --nodes=999")
    (planning_cluster.folder / "large.sh").write_text(too_large)
    assert planning_cluster.run("sbatch", "--test-only", "large.sh").returncode != 0


@pytest.mark.slow
def test_campaign_in_a_folder_with_special_characters_runs_on_real_slurm(
    planning_cluster: Cluster, tmp_path: Path
) -> None:
    job = make_job(tmp_path, "slurm", spare_nodes="0")
    planning_cluster.call("sbatch", str(job.script))
    wait_until("all cases have ended", lambda: job.exit_codes == ["0", "0", "0"], 120)
    assert "three-seed_3" in job.script.with_suffix(".log").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in SYSTEMS:
        (GOLDEN / f"{name}.sh").write_text(render_golden(name))
