"""Jobs and commands behave the same inside allocations, in any folder, for any user, without optional programs."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.config import suite, system
from harness.execution.job_script import JobScriptWriter
from harness.host.files import make_absolute
from harness.host.process import set_missing_user_variables
from harness.planning.expand import expand_suite
from harness.planning.jobs import pack_jobs
from harness.protocol.errors import UsageError
from harness.reference.__main__ import main as run_program
from harness.reference.distributed import launch
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from tests.conftest import ROOT
from tests.execution.test_run_case import SYSTEMS, make_job
from tests.support.expected_errors import SUITE

# The variables that each launcher sets for one of four ranks.
LAUNCHER_VARIABLES = {
    "Slurm": {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
              "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODELIST": "n[1-2]"},
    "Slurm, PMI": {"SLURM_JOB_ID": "5", "PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "PMI_FD": "8"},
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                 "PMIX_RANK": "2", "PMIX_NAMESPACE": "x"},
    "PALS": {"PALS_RANKID": "2", "PALS_LOCAL_RANKID": "2", "PMI_SIZE": "4", "PBS_NODEFILE": "/nowhere"},
    "torchrun": {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"},
}  # fmt: skip


@pytest.mark.parametrize("launcher_variables", LAUNCHER_VARIABLES.values(), ids=LAUNCHER_VARIABLES)
def test_local_job_ignores_variables_of_other_launchers(tmp_path: Path, launcher_variables: dict[str, str]) -> None:
    job = make_job(tmp_path, "local")
    job.set_action(0, "env > environment")
    result = job.run(HYDRA_LAUNCHER="slurm", HYDRA_RMK="slurm", I_MPI_HYDRA_BOOTSTRAP="slurm", **launcher_variables)
    assert result.returncode == 0, result.stderr
    lines = (job.cases[0] / "environment").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not launcher_variables.keys() & variables.keys()
    assert launch.detect_rank(variables, 1) == RankInfo()
    hydra = {name: value for name, value in variables.items() if "HYDRA" in name}
    assert hydra == {"HYDRA_LAUNCHER": "fork", "I_MPI_HYDRA_BOOTSTRAP": "fork"}


@pytest.mark.slow
def test_ranks_start_on_this_machine_inside_an_allocation(tmp_path: Path) -> None:
    """Inside an allocation, MPICH's mpiexec would otherwise start the ranks with srun and wait for it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\ntouch $0.called\nsleep 600\n")
    (tools / "srun").chmod(0o755)
    allocation = LAUNCHER_VARIABLES["Slurm"] | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_TASKS_PER_NODE": "2(x2)",
    }
    result = subprocess.run(
        [sys.executable, "-m", "harness", "run", "scaling", "-n", "per_node_2"], cwd=tmp_path,
        env=os.environ | allocation | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not (tools / "srun.called").exists()
    logs = list((tmp_path / "results" / "runs").rglob("events.jsonl"))
    assert logs
    for log in logs:
        logged = [json.loads(line) for line in log.read_text().splitlines()]
        assert [e["value"]["world_size"] for e in logged if e.get("name") == "runtime"] == [2]


@pytest.mark.parametrize("launcher_variables", [v for k, v in LAUNCHER_VARIABLES.items() if k != "torchrun"])
def test_launcher_with_another_number_of_ranks_is_refused(launcher_variables: dict[str, str]) -> None:
    assert launch.detect_rank(launcher_variables, 4) == launch.detect_rank(launcher_variables) == RankInfo(2, 4, 2)
    with pytest.raises(InputError, match=r"the case has 1 ranks, but .* started 4; use the job script"):
        launch.detect_rank(launcher_variables, 1)
    with pytest.raises(InputError, match="the case has 4 ranks, but no launcher started this process"):
        launch.detect_rank({}, 4)


def test_case_with_one_rank_is_refused_inside_a_larger_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A case with one rank that is run by hand in a shell of `srun -n4 --pty` must not start as one of four ranks."""
    (tmp_path / "case.json").write_text(json.dumps({"program": "data_parallel", "parameters": {}, "ranks": 1}))
    for name, value in LAUNCHER_VARIABLES["Slurm"].items():
        monkeypatch.setenv(name, value)
    assert run_program([str(tmp_path)]) == 2
    assert "the case has 1 ranks, but Slurm started 4" in capsys.readouterr().err
    assert not (tmp_path / "events.jsonl").exists()


FOREIGN_CODE = 'from pathlib import Path\nPath(__file__).with_name("ran-foreign-code").touch()\n'


def test_python_files_in_a_case_folder_are_not_imported(tmp_path: Path) -> None:
    """A results folder may come from another user; an empty entry in PYTHONPATH means the current folder."""
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "here.yaml").write_text("name: here\nextends: local\n")
    site = system.load_system(tmp_path / "here.yaml", {})
    plan = expand_suite(suite.load_suite(tmp_path / "suite.yaml"), site)
    campaign = tmp_path / "campaign"
    [job] = pack_jobs(plan, plan.cases[:1], campaign)
    script = JobScriptWriter(plan, campaign).write(job)
    folder = campaign / job.cases[0].folder_name
    for directory in (folder, campaign, folder / "relative", campaign / "relative"):
        directory.mkdir(exist_ok=True)
        for module in ("harness", "torch", "json", "psutil", "sitecustomize", "orjson"):
            (directory / f"{module}.py").write_text(FOREIGN_CODE)
    case = json.loads((folder / "case.json").read_text()) | {"parameters": {"workload": "none"}}
    (folder / "case.json").write_text(json.dumps(case))
    environment = os.environ | {"PYTHONPATH": f":{ROOT}::relative:"}
    subprocess.run(["bash", str(script)], env=environment, capture_output=True, check=False, timeout=300)
    assert (folder / "exit_code").read_text().split()[0] == "2"
    assert json.loads((folder / "provenance.json").read_text())
    assert not list(tmp_path.rglob("ran-foreign-code"))


@pytest.mark.parametrize("kind", sorted(SYSTEMS))
def test_script_refuses_the_folder_of_another_campaign(tmp_path: Path, kind: str) -> None:
    job = make_job(tmp_path, kind)
    other = tmp_path / "other"
    (other / "jobs").mkdir(parents=True)
    wrong = job.run(GFM_HARNESS_CAMPAIGN=str(other))
    assert (wrong.returncode, job.runs) == (2, [0, 0, 0])
    assert "is not the folder of this job" in wrong.stderr
    for name in ("CAMPAIGN", "HEALTHY_NODES", "CHECK_NODES", "again", "campaign", "HARNESS_CAMPAIGN"):
        assert job.run(**{name: str(other)}).returncode == 0
    assert job.runs == [1, 1, 1]


@pytest.mark.parametrize("absent", ["hostname", "realpath", "flock", "curl", "find", "sed"])
def test_job_runs_without_programs_that_containers_lack(tmp_path: Path, absent: str) -> None:
    job = make_job(tmp_path, "local")
    _hide_programs(tmp_path, job.environment, absent)
    result = job.run()
    assert (result.returncode, job.exit_codes) == (0, ["0", "0", "0"]), result.stderr


@pytest.mark.parametrize("kind", ["local", "slurm", "pbs"])
def test_job_names_missing_programs_in_one_line(tmp_path: Path, kind: str) -> None:
    job = make_job(tmp_path, kind)
    _hide_programs(tmp_path, job.environment, "timeout", "cut", "sinfo")
    result = job.run()
    assert (result.returncode, job.runs) == (69, [0, 0, 0])
    missing_sinfo = " sinfo" if kind == "slurm" else ""
    assert result.stderr == f"error: programs that this job needs are not installed: cut timeout{missing_sinfo}\n"


def _hide_programs(folder: Path, environment: dict[str, str], *absent: str) -> None:
    """Restrict PATH to the programs that a job may use, without the absent ones."""
    tools = folder / "tools"
    tools.mkdir()
    names = (
        "bash cat cp curl cut date env find flock grep head hostname mkdir mktemp mv realpath rm sed sleep sort timeout"
    )
    for program in [*names.split(), "tail", "wc"]:
        real = shutil.which(program)
        if program not in absent and real:
            (tools / program).symlink_to(real)
    for program in absent:
        (folder / "bin" / program).unlink(missing_ok=True)
    environment["PATH"] = f"{folder}/bin:{tools}"


@pytest.mark.parametrize("home", [None, "", "/nonexistent", "/proc/1"])
def test_job_sets_name_and_home_for_a_user_without_them(tmp_path: Path, home: str | None) -> None:
    job = make_job(tmp_path, "local")
    job.set_action(0, "env > environment")
    for name in ("USER", "LOGNAME", "HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        job.environment.pop(name, None)
    result = job.run(TMPDIR=str(tmp_path), **({} if home is None else {"HOME": home}))
    assert result.returncode == 0, result.stderr
    lines = (job.cases[0] / "environment").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables["USER"] == variables["LOGNAME"] == f"user-{os.getuid()}"
    scratch = tmp_path / f"gfm-harness-{os.getuid()}"
    assert variables["HOME"] == (home or str(scratch))
    if not os.access(variables["HOME"], os.W_OK) or not home:
        assert variables["XDG_CACHE_HOME"] == variables["MPLCONFIGDIR"] == str(scratch)
        assert scratch.stat().st_mode & 0o077 == 0


def test_command_sets_name_and_home_for_a_user_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def raise_key_error(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", raise_key_error)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError):
        Path.home()
    assert main(["plan", "ladder"]) == 0
    assert getpass.getuser() == f"user-{os.getuid()}"
    assert Path.home().is_dir()
    home = os.environ["HOME"]
    set_missing_user_variables()
    assert os.environ["HOME"] == home
    Path(home).rmdir()


def test_scripts_keep_the_links_in_the_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target of a link may exist only on the login node."""
    (tmp_path / "login-only").mkdir()
    (tmp_path / "project").symlink_to(tmp_path / "login-only")
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    argv = ["run", "suite.yaml", "--system", "aurora", "--out"]
    assert main([*argv, str(tmp_path / "project" / "a")]) == 0
    assert main([*argv, "project/b"]) == 0
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PWD", str(tmp_path / "project"))
    assert main(["run", str(tmp_path / "suite.yaml"), *argv[2:], "c"]) == 0
    scripts = list((tmp_path / "login-only").rglob("jobs/*.sh"))
    assert len(scripts) == 6
    for script in scripts:
        assert "login-only" not in script.read_text()
        assert f"campaign=${{GFM_HARNESS_CAMPAIGN:-{tmp_path}/project/" in script.read_text()
    monkeypatch.setenv("PWD", "/somewhere/else")
    assert make_absolute(Path("d")) == tmp_path / "login-only" / "d"


def test_structure_file_keeps_the_links_in_the_users_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "frames.extxyz").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = SUITE.replace("workload: random", "workload: file\n  structure_file: link/frames.extxyz")
    (tmp_path / "suite.yaml").write_text(text)
    assert suite.load_suite(tmp_path / "suite.yaml").parameters["structure_file"] == str(
        tmp_path / "link" / "frames.extxyz"
    )


LARGE = """\
name: large
title: Up to eight nodes
program: data_parallel
parameters: {precision: fp32, batch_size: 1, datasets: [mptrj]}
matrix: {nodes: [1, 2, 4, 8], seed: [1, 2]}
resources: {nodes: "{{ nodes }}", walltime_minutes: 5}
depends_on: [{cases: {nodes: 2}, required_cases: {nodes: 8}}]
"""


def test_plan_names_cases_that_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases that depend on one that is too large are left out too; spare nodes are not used for computing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    (tmp_path / "small.yaml").write_text("name: small\nextends: slurm\nlimits: {nodes: 4}\n")
    assert main(["run", "scaling", "--system", "small.yaml"]) == 0
    message = capsys.readouterr().out.splitlines()
    assert message[0] == (
        "scaling-small: left out, since a job has at most 4 nodes: scaling-weak-nodes_8, scaling-strong-nodes_8"
    )
    assert len(list((tmp_path / "results").rglob("case.json"))) == 6
    assert main(["plan", "large.yaml", "--system", "small.yaml", "-S", "spare_nodes=1"]) == 0
    left_out, first, *_ = capsys.readouterr().out.splitlines()
    assert left_out == (
        "large-small: left out, since a job has at most 3 nodes: " + ", ".join(
            f"large-nodes_{nodes}-seed_{seed}" for nodes in (8, 4, 2) for seed in (1, 2)
        )
    )  # fmt: skip
    assert first.startswith("large-small: 2 cases")


def test_suite_whose_cases_are_all_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    (tmp_path / "small.yaml").write_text("name: small\nextends: slurm\nlimits: {nodes: 1}\n")
    argv = ["plan", "large.yaml", "--system", "small.yaml", "-x", "nodes_1"]
    assert main(argv) == 2
    assert "case large-nodes_8-seed_1 needs 8 nodes, but a job on small has at most 1" in capsys.readouterr().err
    assert main(argv[:-2]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan", "ladder", "--out", "loop"], "argument --out: 'loop' is a symbolic link that leads to itself"),
        (["run", "ladder", "--out", "loop/x"], "argument --out: 'loop/x' is a symbolic link that leads to itself"),
        (["report", "--out", "loop"], "argument --out: 'loop' is a symbolic link that leads to itself"),
        (["plan", "ladder", "--suites", "loop"], "argument --suites: 'loop' is a symbolic link that leads to itself"),
        (["run", "ladder", "--out", "x\udcff"], "argument --out: expected a name in UTF-8, got 'x?'"),
        (["compare", "a", "b", "--csv", "\udcfe"], "argument --csv: expected a name in UTF-8, got '?'"),
        (["plan", "ladder", "--out", "a\0b"], "argument --out: 'a\\x00b': embedded null byte"),
    ],
)
def test_unusable_path_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    assert main(argv) == 2
    assert capsys.readouterr().err == f"error: {message}; see `harness {argv[0]} --help`\n"


def test_folder_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    site = system.load_system(ROOT / "systems" / "aurora.yaml", {})
    with pytest.raises(UsageError, match=r"cannot name a folder with .* a character that is not UTF-8"):
        JobScriptWriter(expand_suite(suite.load_suite(tmp_path / "suite.yaml"), site), tmp_path / "x\udcff")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no-such-program", "no-such-program: command not found"),
        ("echo 'error: the file system is away' >&2; exit 4", "the file system is away"),
    ],
)
def test_reason_of_a_lost_case_contains_the_error_message_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "suite.yaml").write_text(SUITE.replace("[fp64, fp32]", "[fp64]") + "retries: 0\n")
    (tmp_path / "here.yaml").write_text(f"name: here\nextends: local\nprepare:\n  - {json.dumps(line)}\n")
    assert main(["run", "suite.yaml", "--system", "here.yaml"]) == 3
    capsys.readouterr()
    assert main(["status", "suite.yaml", "--system", "here.yaml"]) == 3
    assert f"{message}; tried 1 times" in capsys.readouterr().out
