"""What a job script does with its cases, run by bash: scheduler, launcher and program are stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.config import suite
from harness.config import system as systems
from harness.execution.job_script import Scripts
from harness.planning.expand import expand
from harness.planning.jobs import pack
from harness.protocol.errors import UsageError

SUITE = """\
name: three
title: TITLE
program: data_parallel
parameters: {precision: fp32, batch_size: 1, sets: [mptrj]}
matrix:
  seed: [1, 2, 3]
after: [{cases: {seed: 3}, needs: {seed: 2}}]
pack: 3
resources: {minutes: MINUTES}
"""
# `srun` and `mpiexec`: what is asked of every node runs once a node; a case runs once, its nodes put down.
LAUNCHER = """\
#!/bin/bash
count=1
while [ $# -gt 0 ]; do
    case $1 in
        --ntasks=*) count=${1#*=}; shift ;;
        --nodelist=*) nodes=${1#*=}; shift ;;
        -n) count=$2; shift 2 ;;
        --hostfile) nodes=$2; shift 2 ;;
        --ppn) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
if [ "$1" = bash ]; then
    for k in $(seq "$count"); do SLURMD_NODENAME=n$k "$@"; done
else
    cp "$nodes" nodes
    exec "$@"
fi
"""
PROGRAM = """\
#!/bin/bash
case $* in
    *harness.host.provenance) echo '{"here": 1}' ;;
    *) echo "$OMP_NUM_THREADS $MASTER_PORT" >> ran; if [ -e do ]; then . ./do; fi ;;
esac
"""
SINFO = "#!/bin/sh\necho 'n1 alloc\nn2 mix\nn3 down*'\n"
SYSTEMS = {
    "local": "extends: local\n",
    "slurm": "extends: slurm\n",
    "pbs": "extends: aurora\nmodules: []\nstage: []\nlimits: {walltime: []}\n",
}
FOLDER = "it's a $HOME of 100%, `mine` & yours"


@dataclass
class Made:
    """A job of three cases as files, and how its scheduler would start it."""

    script: Path
    cases: list[Path]
    environment: dict[str, str]

    def run(self, *words: str, job: str = "7", before: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        ids = {"SLURM_JOB_ID": job, "PBS_JOBID": job}
        return subprocess.run(
            ["bash", "-c", f'{before}\nexec bash "$@"', "bash", str(self.script), *words],
            env=self.environment | ids | more, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def does(self, case: int, line: str) -> None:
        (self.cases[case] / "do").write_text(line)

    @property
    def runs(self) -> list[int]:
        """How often the program of each case was started."""
        logs = [folder / "ran" for folder in self.cases]
        return [len(log.read_text().splitlines()) if log.exists() else 0 for log in logs]

    @property
    def ends(self) -> list[str | None]:
        """The exit code of each case that has ended."""
        paths = [folder / "exit_code" for folder in self.cases]
        return [path.read_text().split()[0] if path.exists() else None for path in paths]


def make(
    folder: Path, kind: str, title: str = "Three", system: str = "", spares: str = "1", minutes: float = 1
) -> Made:
    tools = folder / "bin"
    tools.mkdir()
    uname = '#!/bin/sh\necho "${SLURMD_NODENAME:-login}"\n'
    stand_ins = {"srun": LAUNCHER, "mpiexec": LAUNCHER, "python": PROGRAM, "uname": uname, "sinfo": SINFO}
    for name, text in stand_ins.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    system = system if "check:" in system else f"check: test -w /tmp\n{system}"
    (folder / "here.yaml").write_text(f"name: here\n{SYSTEMS[kind]}python: {tools}/python\n{system}")
    (folder / "three.yaml").write_text(SUITE.replace("TITLE", title).replace("MINUTES", str(minutes)))
    (folder / "asked").write_text("n2.site\nn1.site\n")
    given = {"account": "abc", "spares": spares} if kind != "local" else {}
    site = systems.load(folder / "here.yaml", given)
    plan = expand(suite.load(folder / "three.yaml"), site)
    campaign = folder / FOLDER
    [job] = pack(plan, plan.cases, campaign)
    script = Scripts(plan, campaign).write(job)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PBS"))}
    environment = kept | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "PBS_NODEFILE": str(folder / "asked"),
    }
    return Made(script, [campaign / case.folder_name for case in job.cases], environment)


@pytest.fixture(params=sorted(SYSTEMS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return make(tmp_path, request.param)


@pytest.fixture
def local(tmp_path: Path) -> Made:
    return make(tmp_path, "local")


def test_cases_run_in_order_and_leave_code_and_seconds(made: Made) -> None:
    """In a folder whose name is anything but a plain word."""
    made.does(0, "exit 3")
    done = made.run()
    assert (made.ends, made.runs, done.returncode) == (["3", "0", "0"], [1, 1, 1], 1), done
    for folder in made.cases:
        code, seconds = (folder / "exit_code").read_text().splitlines()
        assert int(code) in (0, 3)
        assert 0 <= int(seconds) <= 60
        assert (folder / "job.sh").read_text() == made.script.read_text()
        assert (folder / "provenance.json").read_text() == '{"here": 1}\n'
        assert sorted(path.name for path in folder.glob("*.part")) == []


def test_a_case_takes_the_first_healthy_nodes_and_a_spare_stays_idle(tmp_path: Path) -> None:
    for kind, node in (("slurm", "n2"), ("pbs", "n2.site")):
        (tmp_path / kind).mkdir()
        made = make(tmp_path / kind, kind, system='check: test "$(uname -n)" != n1\n')
        done = made.run()
        assert "1 of 2 nodes passed the check" in done.stdout, done
        assert made.ends == ["0", "0", "0"]
        assert [(folder / "nodes").read_text() for folder in made.cases] == [f"{node}\n"] * 3


@pytest.mark.slow
def test_without_enough_healthy_nodes_nothing_runs(tmp_path: Path) -> None:
    for kind in ("slurm", "pbs"):
        (tmp_path / kind).mkdir()
        made = make(tmp_path / kind, kind, system="check: 'false'\n")
        done = made.run()
        assert (done.returncode, made.runs, made.ends) == (75, [0, 0, 0], [None, None, None])
        assert "takes 1 nodes and 0 passed the check" in done.stderr


def test_what_has_ended_is_passed_over_unless_again_is_said(made: Made) -> None:
    made.run()
    over = made.run(job="8")
    assert (made.runs, over.returncode) == ([1, 1, 1], 0)
    assert over.stdout.count("has ended before") == 3
    made.does(1, "exit 4")
    assert made.run("again", job="9").returncode == 75
    assert (made.runs, made.ends) == ([2, 2, 1], ["0", "4", None])


def test_again_reaches_a_pbs_job_as_a_variable(tmp_path: Path) -> None:
    """qsub hands no words to a script."""
    made = make(tmp_path, "pbs")
    made.run()
    made.run(job="8", GFM_HARNESS_AGAIN="again")
    assert made.runs == [2, 2, 2]


def test_a_job_put_back_into_the_queue_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Also one that was told to run its cases again."""
    for kind in ("slurm", "pbs"):
        (tmp_path / kind).mkdir()
        made = make(tmp_path / kind, kind)
        made.run()
        made.does(1, 'kill -9 "$(cat "$HOME/pid")"; exit 1')
        home = tmp_path / kind
        killed = made.run("again", job="8", before='echo $$ > "$HOME/pid"', HOME=str(home))
        assert killed.returncode == -9
        assert made.runs == [2, 2, 1]
        made.does(1, "exit 0")
        made.run("again", job="8", SLURM_RESTART_COUNT="1")
        assert (made.runs[:2], made.ends[:2]) == ([2, 3], ["0", "0"])


def test_a_case_that_another_job_has_taken_up_is_left_to_it(made: Made) -> None:
    (made.cases[0] / "claim").write_text("another\n")
    done = made.run()
    assert (made.runs, made.ends) == ([0, 1, 1], [None, "0", "0"])
    assert "not run, since job another has it" in done.stderr
    assert (made.cases[0] / "claim").read_text() == "another\n"


@pytest.mark.parametrize("kind", sorted(SYSTEMS))
def test_a_case_that_takes_too_long_is_stopped(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path, kind, minutes=0.03)
    made.does(0, "sleep 30")
    done = made.run()
    assert (done.returncode, made.ends) == (1, ["124", "0", "0"])
    assert "the time this case may take" in (made.cases[0] / "stderr").read_text()


def test_a_case_whose_need_is_not_done_is_not_run(made: Made) -> None:
    made.does(1, "exit 2")
    done = made.run()
    assert (done.returncode, made.ends, made.runs[2]) == (75, ["0", "2", None], 0)
    assert "is not done" in done.stderr


def test_a_full_disk_leaves_no_exit_code(local: Made) -> None:
    """The case ends, and its end cannot be written: the job stops, and the case counts as one that was lost."""
    local.does(0, 'prlimit --pid "$(cat "$HOME/pid")" --fsize=0')
    folder = local.script.parent.parent.parent
    full = local.run(before="trap '' XFSZ; echo $$ > \"$HOME/pid\"", HOME=str(folder))
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert (local.runs, local.ends) == ([1, 0, 0], [None, None, None])
    assert (local.cases[0] / "exit_code.part").read_text() == ""


def test_values_of_the_environment_stay_one_word(tmp_path: Path) -> None:
    values = {"A": 'it\'s "two" words', "B": "back`tick` \\ slash", "C": "$HOME/x y", "D": "", "E": "a;b|c&d>e #f*"}
    lines = "".join(f"  {name}: '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())
    made = make(tmp_path, "local", system=f"environment:\n{lines}")
    exports = [line for line in made.script.read_text().splitlines() if re.match("export [A-E]=", line)]
    script = "\n".join([*exports, 'printf "%s\\n" "$A" "$B" "$C" "$D" "$E"'])
    said = subprocess.run(["bash", "-uc", script], env={"HOME": "/h"}, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [value.replace("$HOME", "/h") for value in values.values()]


def test_a_title_stays_in_its_comment(tmp_path: Path) -> None:
    title = "'x $(touch broke) `touch broke`; \" #PBS -q other \\ '"
    made = make(tmp_path, "pbs", title=title.replace("'x", '"x').replace("\\ '", '"').replace('; "', ";"))
    head, rest = made.script.read_text().split("set -euo pipefail", 1)
    assert all(line.startswith("#") for line in head.splitlines())
    assert "touch broke" not in rest
    assert [line for line in head.splitlines() if line.startswith("#PBS -q")] == ["#PBS -q prod"]
    made.run()
    assert not list(tmp_path.rglob("broke"))


def test_a_title_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="title"):
        make(tmp_path, "local", title='"x\\nrm -rf here"')


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_two_jobs_of_one_script_keep_their_nodes_apart(tmp_path: Path, kind: str) -> None:
    """A second job, submitted by hand while the first one runs, must not send the first to the second's nodes."""
    made = make(tmp_path, kind)
    made.does(0, 'SLURM_JOB_ID=8 PBS_JOBID=8 bash "$SCRIPT" || true')
    first = made.run(job="7", SCRIPT=str(made.script))
    assert (made.ends, made.runs, first.returncode) == (["0", "0", "0"], [1, 1, 1], 0), first
    assert "job 7 has it" in (made.cases[0] / "stderr").read_text()
    kept = sorted(path.name for path in made.script.parent.glob("*.nodes"))
    assert [name.split(".")[-2] for name in kept] == ["7", "8"]
