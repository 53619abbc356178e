"""Job scripts as they are handed to a scheduler: the very text, and what every one of them must keep.

golden/<system>.sh is the script of one scaling job. After a change that is meant, renew them and read the
difference: `python -m tests.execution.test_job_script`.
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
from harness.config import resources
from harness.config import suite as suites
from harness.config import system as systems
from harness.execution import environment
from harness.execution.job_script import Scripts
from harness.planning.expand import Plan, expand
from harness.planning.jobs import Job, pack
from harness.protocol.case import Case
from harness.protocol.registry import DRIVERS
from tests.conftest import needs
from tests.execution.test_run_case import make
from tests.support.cluster import Cluster, available
from tests.system.test_slurm import until

GOLDEN = Path(__file__).parent / "golden"
GIVEN = {"account": "abc123"}
SYSTEMS = ("aurora", "frontier", "local", "pbs", "perlmutter", "slurm")
CAMPAIGN = Path("/campaign")


def site(system: str, **given: str) -> systems.Site:
    own = systems.load(resources.find("systems", system), {}).system.settings
    kept = {name: value for name, value in (GIVEN | given).items() if name in own}
    return systems.load(resources.find("systems", system), kept)


def plan(suite: str, system: str, **given: str) -> Plan:
    where = site(system, **given)
    return expand(suites.load(resources.find("suites", suite), where.system.scale or system), where)


def jobs(of: Plan, folder: Path = CAMPAIGN) -> list[Job]:
    return pack(of, of.cases, folder)


def golden(system: str) -> str:
    """The script of the largest job, with what differs between machines and versions replaced."""
    of = plan("scaling", system)
    job = max(jobs(of), key=lambda job: (job.nodes, job.cases[0].ranks, job.name))
    text = Scripts(of, CAMPAIGN).render(job)
    text = text.replace(sys.executable, "/environment/bin/python").replace(
        str(Path(sys.executable).parent), "/environment/bin"
    )
    return text.replace(f"gfm-harness {harness.__version__} ", "gfm-harness VERSION ")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[Plan, Job]]:
    """Every job of every shipped suite on every system, as a file."""
    found: dict[Path, tuple[Plan, Job]] = {}
    for system in SYSTEMS:
        for suite in resources.names("suites"):
            of = plan(suite, system, spares="2", nccl_plugin="/sw/librccl-net.so", archive="$HOME/a.tar.gz")
            folder = tmp_path_factory.mktemp(of.campaign_name)
            scripts = Scripts(of, folder)
            found |= {scripts.write(job): (of, job) for job in jobs(of, folder)}
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_script_of_a_scaling_job(system: str) -> None:
    assert golden(system) == (GOLDEN / f"{system}.sh").read_text()


def test_every_script_and_setup_is_sound_bash(every: dict[Path, tuple[Plan, Job]], tmp_path: Path) -> None:
    needs("shellcheck")
    assert {of.campaign_name for of, _ in every.values()} == {
        f"{suite}-{system}" for suite in resources.names("suites") for system in SYSTEMS
    }
    files = [str(path) for path in every]
    # scripts of one campaign differ in cases alone, and a check of each takes a while
    campaigns = {of.campaign_name: [p for p, (o, _) in every.items() if o is of] for of, _ in every.values()}
    looked_at = [str(path) for paths in campaigns.values() for path in [*paths[:3], *paths[3:][-3:]]]
    files += [str(launch_of(path, c)) for path, (_, job) in every.items() for c in job.cases if c.program in DRIVERS]
    looked_at += [name for name in files if name.endswith("launch.sh")]
    for system in SYSTEMS:
        path = tmp_path / f"setup-{system}.sh"
        path.write_text(environment.commands(site(system)))
        files.append(str(path))
        looked_at.append(str(path))
    checked = subprocess.run(["shellcheck", "--shell=bash", *looked_at], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[:5000]
    for name in files:
        assert subprocess.run(["bash", "-n", name], check=False).returncode == 0, name


def test_nothing_is_left_to_be_filled_in(every: dict[Path, tuple[Plan, Job]]) -> None:
    for path in every:
        text = path.read_text()
        assert not re.search(r"\{\{|\{%|%\}|\bNone\b|\bsettings\.|\bUndefined\b", text), path
        assert "\n\n\n" not in text


def test_the_time_asked_for_is_that_of_the_cases_and_what_a_job_takes_beside_them(
    every: dict[Path, tuple[Plan, Job]],
) -> None:
    for path, (of, job) in every.items():
        asked = re.search(r"^#(?:SBATCH --time|PBS -l walltime)=(\d+):(\d\d):00$", path.read_text(), re.MULTILINE)
        if of.site.system.scheduler != "local":
            assert asked, path
            minutes = sum(case.minutes for case in job.cases) + of.site.system.overhead_minutes
            assert int(asked[1]) * 60 + int(asked[2]) == minutes


def test_every_case_is_started_on_its_nodes_with_its_ranks(every: dict[Path, tuple[Plan, Job]]) -> None:
    for path, (of, job) in every.items():
        lines = path.read_text().replace(" \\\n", " ").splitlines()
        runs = [line for line in lines if line.startswith("run_case ")]
        assert [line.split()[1] for line in runs] == [case.folder_name for case in job.cases]
        for line, case in zip(runs, job.cases, strict=True):
            n, ranks, each = case.nodes, case.ranks, case.ranks_per_node
            if case.program in DRIVERS:
                n = case.parameters["nodes_per_trial"]
                ranks = n * each
            assert shlex.split(line)[3:5] == [str(n), str(round(case.minutes * 60))]
            assert line.endswith(f'"$python" -P -m harness.reference "$campaign"/{case.folder_name}')
            started = line
            if case.program in DRIVERS:
                assert "srun" not in line
                assert "mpiexec" not in line
                assert not case.nodes % n
                started = launch_of(path, case).read_text().replace(" \\\n", " ")
            match of.site.system.scheduler:
                case "slurm":
                    assert f"srun --nodes={n} --ntasks={ranks} --ntasks-per-node={each} " in started
                    assert f'--nodelist="$(first {n})"' in started
                case "pbs":
                    assert (
                        f'env WORLD_SIZE={ranks} mpiexec -n {ranks} --ppn {each} --hostfile "$(first {n})" ' in started
                    )
                case _:
                    assert ("mpiexec -n" in started) == (ranks > 1)


def launch_of(script: Path, case: Case) -> Path:
    """What a driver starts its runs with."""
    return script.parent.parent / case.folder_name / "launch.sh"


def test_the_nodes_asked_for_are_those_of_the_largest_case_and_the_spares(
    every: dict[Path, tuple[Plan, Job]],
) -> None:
    for path, (of, job) in every.items():
        asked = re.search(r"^#(?:SBATCH --nodes|PBS -l select)=(\d+)\b", path.read_text(), re.MULTILINE)
        if asked:
            assert int(asked[1]) == max(case.nodes for case in job.cases) + 2
        else:
            assert of.site.system.scheduler == "local"


def test_aurora_binds_twelve_ranks_to_cores_that_the_system_leaves_free() -> None:
    """Core 0 of each socket, 0 and 52, is the operating system's."""
    text = golden("aurora")
    [bound, *_] = re.findall(r"--cpu-bind=list:(\S+)", text)
    ranges = [tuple(map(int, part.split("-"))) for part in bound.split(":")]
    assert len(ranges) == 12
    assert all(last - first == 7 for first, last in ranges)
    assert all(last < first for (_, last), (first, _) in pairwise(ranges))
    assert not [core for core in (0, 52) if any(first <= core <= last for first, last in ranges)]
    assert ranges[5][1] < 52 < ranges[6][0]
    assert ranges[-1][1] < 104


def test_gpus_are_allocated_before_the_nodes_are_checked() -> None:
    """On Perlmutter a job step sees only the GPUs that its job asked for, and the check counts them."""
    assert "\n#SBATCH --gpus-per-node=4\n" in golden("perlmutter")


def test_a_kind_of_node_on_perlmutter() -> None:
    of = plan("scaling", "perlmutter", memory="hbm80g")
    assert '\n#SBATCH --constraint="gpu&hbm80g"\n' in Scripts(of, CAMPAIGN).render(jobs(of)[0])


def test_the_sites_walltime_limits_hold_by_node_count() -> None:
    aurora, frontier = site("aurora"), site("frontier")
    assert [aurora.minutes_allowed(n) for n in (512, 513, 1025, 2048)] == [360, 720, 1080, 1440]
    assert [frontier.minutes_allowed(n) for n in (91, 92, 184)] == [120, 360, 720]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm as large as the largest job, where nothing runs."""
    missing = available()
    if missing:
        needs(missing)
        pytest.skip(f"{missing} is missing")
    with Cluster(
        tmp_path_factory.mktemp("planner"), nodes=1, cpus=128, gpus=8, features=("nvme", "gpu"), partition="batch",
        planned_nodes=9500, settings={"EnforcePartLimits": "ALL"},
    ) as running:  # fmt: skip
        yield running


@pytest.mark.slow
def test_a_real_slurm_would_take_every_script(every: dict[Path, tuple[Plan, Job]], planner: Cluster) -> None:
    mine = [path for path, (of, _) in every.items() if of.site.system.scheduler == "slurm"]
    assert len(mine) > 20
    for path in mine:
        said = planner.run("sbatch", "--test-only", str(path))
        assert said.returncode == 0, f"{path}: {said.stderr}"
    too_large = mine[0].read_text().replace("#SBATCH --nodes=", "#SBATCH --nodes=999")
    (planner.folder / "large.sh").write_text(too_large)
    assert planner.run("sbatch", "--test-only", "large.sh").returncode != 0


@pytest.mark.slow
def test_a_campaign_in_a_folder_of_any_name_runs_on_a_real_slurm(planner: Cluster, tmp_path: Path) -> None:
    made = make(tmp_path, "slurm", spares="0")
    planner.call("sbatch", str(made.script))
    until("all cases have ended", lambda: made.ends == ["0", "0", "0"], 120)
    assert "three-seed_3" in made.script.with_suffix(".log").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in SYSTEMS:
        (GOLDEN / f"{name}.sh").write_text(golden(name))
