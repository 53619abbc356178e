"""What a job or a command is started in must not change what it does: allocations, folders, users, absent programs."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.config import suite, system
from harness.execution.job_script import Scripts
from harness.host.atomic_files import absolute
from harness.host.homes import ensure_user
from harness.planning.expand import expand
from harness.planning.jobs import pack
from harness.protocol.errors import UsageError
from harness.reference.__main__ import main as run_program
from harness.reference.distributed import launch
from harness.reference.distributed.launch import Place
from harness.reference.errors import InputError
from tests.conftest import ROOT
from tests.execution.test_run_case import made, make  # noqa: F401
from tests.support.expected_errors import SUITE

# What one of four ranks of each launcher finds in its environment.
FOREIGN = {
    "Slurm": {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
              "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODELIST": "n[1-2]"},
    "Slurm, PMI": {"SLURM_JOB_ID": "5", "PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "PMI_FD": "8"},
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                 "PMIX_RANK": "2", "PMIX_NAMESPACE": "x"},
    "PALS": {"PALS_RANKID": "2", "PALS_LOCAL_RANKID": "2", "PMI_SIZE": "4", "PBS_NODEFILE": "/nowhere"},
    "torchrun": {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"},
}  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_job_of_this_machine_is_no_rank_of_what_surrounds_it(tmp_path: Path, foreign: dict[str, str]) -> None:
    job = make(tmp_path, "local")
    job.does(0, "env > environment")
    done = job.run(HYDRA_LAUNCHER="slurm", HYDRA_RMK="slurm", I_MPI_HYDRA_BOOTSTRAP="slurm", **foreign)
    assert done.returncode == 0, done.stderr
    lines = (job.cases[0] / "environment").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not foreign.keys() & found.keys()
    assert launch.find(found, 1) == Place()
    hydra = {name: value for name, value in found.items() if "HYDRA" in name}
    assert hydra == {"HYDRA_LAUNCHER": "fork", "I_MPI_HYDRA_BOOTSTRAP": "fork"}


@pytest.mark.slow
def test_ranks_are_started_on_this_machine_inside_an_allocation(tmp_path: Path) -> None:
    """There MPICH's mpiexec would have srun start them, and wait for it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\ntouch $0.called\nsleep 600\n")
    (tools / "srun").chmod(0o755)
    surroundings = FOREIGN["Slurm"] | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_TASKS_PER_NODE": "2(x2)"}
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "scaling", "-n", "per_node_2"], cwd=tmp_path,
        env=os.environ | surroundings | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tools / "srun.called").exists()
    for log in (tmp_path / "results" / "runs").rglob("events.jsonl"):
        found = [json.loads(line) for line in log.read_text().splitlines()]
        assert [e["value"]["world_size"] for e in found if e.get("name") == "observed"] == [2]


@pytest.mark.parametrize("foreign", [v for k, v in FOREIGN.items() if k != "torchrun"])
def test_a_launcher_that_starts_another_number_than_planned_is_refused(foreign: dict[str, str]) -> None:
    assert launch.find(foreign, 4) == launch.find(foreign) == Place(2, 4, 2)
    with pytest.raises(InputError, match=r"the case has 1 ranks, but .* says that there are 4; its job script"):
        launch.find(foreign, 1)
    with pytest.raises(InputError, match="the case has 4 ranks, but no launcher has started this one"):
        launch.find({}, 4)


def test_the_plan_says_how_many_ranks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One shell of `srun -n4 --pty` in which somebody runs a case by hand is not one of four."""
    (tmp_path / "case.json").write_text(json.dumps({"program": "data_parallel", "parameters": {}, "ranks": 1}))
    for name, value in FOREIGN["Slurm"].items():
        monkeypatch.setenv(name, value)
    assert run_program([str(tmp_path)]) == 2
    assert "the case has 1 ranks, but Slurm says that there are 4" in capsys.readouterr().err
    assert not (tmp_path / "events.jsonl").exists()


HOSTILE = 'from pathlib import Path\nPath(__file__).with_name("ran-foreign-code").touch()\n'


def test_what_lies_in_the_folder_of_a_case_is_not_imported(tmp_path: Path) -> None:
    """A results folder may be from elsewhere; an empty part of PYTHONPATH means the current folder."""
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "here.yaml").write_text("name: here\nextends: local\n")
    site = system.load(tmp_path / "here.yaml", {})
    plan = expand(suite.load(tmp_path / "suite.yaml"), site)
    campaign = tmp_path / "campaign"
    [job] = pack(plan, plan.cases[:1], campaign)
    script = Scripts(plan, campaign).write(job)
    folder = campaign / job.cases[0].folder_name
    for place in (folder, campaign, folder / "relative", campaign / "relative"):
        place.mkdir(exist_ok=True)
        for module in ("harness", "torch", "json", "psutil", "sitecustomize", "orjson"):
            (place / f"{module}.py").write_text(HOSTILE)
    case = json.loads((folder / "case.json").read_text()) | {"parameters": {"workload": "none"}}
    (folder / "case.json").write_text(json.dumps(case))
    environment = os.environ | {"PYTHONPATH": f":{ROOT}::relative:"}
    subprocess.run(["bash", str(script)], env=environment, capture_output=True, check=False, timeout=300)
    assert (folder / "exit_code").read_text().split()[0] == "2"
    assert json.loads((folder / "provenance.json").read_text())
    assert not list(tmp_path.rglob("ran-foreign-code"))


def test_a_variable_left_from_another_campaign_does_not_misdirect(made: Any, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    (other / "jobs").mkdir(parents=True)
    wrong = made.run(GFM_HARNESS_CAMPAIGN=str(other))
    assert (wrong.returncode, made.runs) == (2, [0, 0, 0])
    assert "is not the folder of this job" in wrong.stderr
    for name in ("CAMPAIGN", "HEALTHY_NODES", "CHECK_NODES", "again", "campaign", "HARNESS_CAMPAIGN"):
        assert made.run(**{name: str(other)}).returncode == 0
    assert made.runs == [1, 1, 1]


@pytest.mark.parametrize("absent", ["hostname", "realpath", "flock", "curl", "find", "sed"])
def test_programs_that_containers_lack_are_not_needed(tmp_path: Path, absent: str) -> None:
    job = make(tmp_path, "local")
    _hide(tmp_path, job.environment, absent)
    done = job.run()
    assert (done.returncode, job.ends) == (0, ["0", "0", "0"]), done.stderr


@pytest.mark.parametrize("kind", ["local", "slurm", "pbs"])
def test_essential_programs_that_are_absent_are_told_in_one_line(tmp_path: Path, kind: str) -> None:
    job = make(tmp_path, kind)
    _hide(tmp_path, job.environment, "timeout", "cut", "sinfo")
    done = job.run()
    assert (done.returncode, job.runs) == (69, [0, 0, 0])
    also = " sinfo" if kind == "slurm" else ""
    assert done.stderr == f"error: programs that this job needs are not here: cut timeout{also}\n"


def _hide(folder: Path, environment: dict[str, str], *absent: str) -> None:
    """Let a job see no other programs than it may use, without those that are absent."""
    tools = folder / "tools"
    tools.mkdir()
    names = (
        "bash cat cp curl cut date env find flock grep head hostname mkdir mktemp mv realpath rm sed sleep sort timeout"
    )
    for program in [*names.split(), "wc"]:
        real = shutil.which(program)
        if program not in absent and real:
            (tools / program).symlink_to(real)
    for program in absent:
        (folder / "bin" / program).unlink(missing_ok=True)
    environment["PATH"] = f"{folder}/bin:{tools}"


@pytest.mark.parametrize("home", [None, "", "/nonexistent", "/proc/1"])
def test_a_job_of_a_user_without_name_and_home(tmp_path: Path, home: str | None) -> None:
    job = make(tmp_path, "local")
    job.does(0, "env > environment")
    for name in ("USER", "LOGNAME", "HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        job.environment.pop(name, None)
    done = job.run(TMPDIR=str(tmp_path), **({} if home is None else {"HOME": home}))
    assert done.returncode == 0, done.stderr
    lines = (job.cases[0] / "environment").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert found["USER"] == found["LOGNAME"] == f"user-{os.getuid()}"
    scratch = tmp_path / f"gfm-harness-{os.getuid()}"
    assert found["HOME"] == (home or str(scratch))
    if not os.access(found["HOME"], os.W_OK) or not home:
        assert found["XDG_CACHE_HOME"] == found["MPLCONFIGDIR"] == str(scratch)
        assert scratch.stat().st_mode & 0o077 == 0


def test_a_command_of_a_user_without_name_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError):
        Path.home()
    assert main(["plan", "ladder"]) == 0
    assert getpass.getuser() == f"user-{os.getuid()}"
    assert Path.home().is_dir()
    home = os.environ["HOME"]
    ensure_user()
    assert os.environ["HOME"] == home
    Path(home).rmdir()


def test_scripts_name_a_folder_as_its_user_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute nodes may not have what the link leads to on the login node."""
    (tmp_path / "login-only").mkdir()
    (tmp_path / "project").symlink_to(tmp_path / "login-only")
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    words = ["run", "suite.yaml", "--system", "aurora", "--out"]
    assert main([*words, str(tmp_path / "project" / "a")]) == 0
    assert main([*words, "project/b"]) == 0
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PWD", str(tmp_path / "project"))
    assert main(["run", str(tmp_path / "suite.yaml"), *words[2:], "c"]) == 0
    scripts = list((tmp_path / "login-only").rglob("jobs/*.sh"))
    assert len(scripts) == 6
    for script in scripts:
        assert "login-only" not in script.read_text()
        assert f"campaign=${{GFM_HARNESS_CAMPAIGN:-{tmp_path}/project/" in script.read_text()
    monkeypatch.setenv("PWD", "/somewhere/else")
    assert absolute(Path("d")) == tmp_path / "login-only" / "d"


def test_a_structure_file_is_named_as_its_user_does(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "frames.extxyz").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = SUITE.replace("workload: random", "workload: file\n  structures: link/frames.extxyz")
    (tmp_path / "suite.yaml").write_text(text)
    assert suite.load(tmp_path / "suite.yaml").parameters["structures"] == str(tmp_path / "link" / "frames.extxyz")


LARGE = """\
name: large
title: Up to eight nodes
program: data_parallel
parameters: {precision: fp32, batch_size: 1, sets: [mptrj]}
matrix: {nodes: [1, 2, 4, 8], seed: [1, 2]}
resources: {nodes: "{{ nodes }}", minutes: 5}
after: [{cases: {nodes: 2}, needs: {nodes: 8}}]
"""


def test_cases_that_need_more_nodes_than_there_are_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so are those that wait for one of these; a node that is spare is none to compute on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    (tmp_path / "small.yaml").write_text("name: small\nextends: slurm\nlimits: {nodes: 4}\n")
    assert main(["run", "scaling", "--system", "small.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "scaling-small: left out, since a job has at most 4 nodes: scaling-weak-nodes_8, scaling-strong-nodes_8"
    )
    assert len(list((tmp_path / "results").rglob("case.json"))) == 6
    assert main(["plan", "large.yaml", "--system", "small.yaml", "-S", "spares=1"]) == 0
    left_out, first, *_ = capsys.readouterr().out.splitlines()
    assert left_out == (
        "large-small: left out, since a job has at most 3 nodes: " + ", ".join(
            f"large-nodes_{nodes}-seed_{seed}" for nodes in (8, 4, 2) for seed in (1, 2)
        )
    )  # fmt: skip
    assert first.startswith("large-small: 2 cases")


def test_a_suite_of_which_nothing_fits_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    (tmp_path / "small.yaml").write_text("name: small\nextends: slurm\nlimits: {nodes: 1}\n")
    words = ["plan", "large.yaml", "--system", "small.yaml", "-x", "nodes_1"]
    assert main(words) == 2
    assert "case large-nodes_8-seed_1 takes 8 nodes, and a job on small has at most 1" in capsys.readouterr().err
    assert main(words[:-2]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_a_folder_that_leads_nowhere_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}; see `harness {words[0]} --help`\n"


def test_a_campaign_below_a_folder_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    site = system.load(ROOT / "systems" / "aurora.yaml", {})
    with pytest.raises(UsageError, match=r"cannot name a folder with .* one that is not UTF-8"):
        Scripts(expand(suite.load(tmp_path / "suite.yaml"), site), tmp_path / "x\udcff")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no-such-program", "no-such-program: command not found"),
        ("echo 'error: the file system is away' >&2; exit 4", "the file system is away"),
    ],
)
def test_the_reason_of_a_case_says_why_its_job_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "suite.yaml").write_text(SUITE.replace("[fp64, fp32]", "[fp64]") + "retries: 0\n")
    (tmp_path / "here.yaml").write_text(f"name: here\nextends: local\nprepare:\n  - {json.dumps(line)}\n")
    assert main(["run", "suite.yaml", "--system", "here.yaml"]) == 3
    capsys.readouterr()
    assert main(["status", "suite.yaml", "--system", "here.yaml"]) == 3
    assert f"{said}; tried 1 times" in capsys.readouterr().out
