"""Job scripts are run by bash, with fakes in place of the scheduler, the launcher and the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.config.suite import load_suite
from harness.config.system import load_system
from harness.execution.case_files import read_result
from harness.execution.gpu_errors import read_faulty_nodes
from harness.execution.job_script import JobScriptWriter
from harness.planning.expand import expand_suite
from harness.planning.jobs import pack_jobs
from harness.protocol.errors import UsageError
from tests.telemetry.test_node_speed import make_speed

SUITE = """\
name: three
title: TITLE
program: data_parallel
parameters: {precision: fp32, batch_size: 1, datasets: [mptrj]}
matrix:
  seed: [1, 2, 3]
depends_on: [{cases: {seed: 3}, required_cases: {seed: 2}}]
pack: 3
resources: {walltime_minutes: MINUTES, nodes: NODES}
"""
XID = "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus."
# Fake `srun` and `mpiexec`: a node check runs once per node; a case runs once, and its nodes are recorded.
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
    *harness.host.environment) echo '{}' ;;
    *profiling.speed_test*) cat "$SPEEDS" ;;
    *telemetry.node_speed*) exec "$PYTHON" "$@" ;;
    *) echo "$OMP_NUM_THREADS $MASTER_PORT" >> ran; if [ -e do ]; then . ./do; fi ;;
esac
"""
SINFO = "#!/bin/sh\necho 'n1 alloc\nn2 mix\nn3 down*'\n"
SYSTEMS = {
    "local": "extends: local\n",
    "slurm": "extends: slurm\n",
    "pbs": "extends: aurora\nmodules: []\nstage_in: []\nlimits: {walltime: []}\n",
}
FOLDER = "it's a $HOME of 100%, `mine` & yours"


@dataclass
class ScriptedJob:
    """The script of a job with three cases; `run` starts it as a scheduler would, after the shell command `before`."""

    script: Path
    cases: list[Path]
    environment: dict[str, str]

    def run(
        self, *arguments: str, job: str = "7", before: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        ids = {"SLURM_JOB_ID": job, "PBS_JOBID": job}
        return subprocess.run(
            ["bash", "-c", f'{before}\nexec bash "$@"', "bash", str(self.script), *arguments],
            env=self.environment | ids | variables, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def set_action(self, case: int, line: str) -> None:
        (self.cases[case] / "do").write_text(line)

    @property
    def runs(self) -> list[int]:
        """Return how often the program of each case was started."""
        logs = [folder / "ran" for folder in self.cases]
        return [len(log.read_text().splitlines()) if log.exists() else 0 for log in logs]

    @property
    def exit_codes(self) -> list[str | None]:
        """Return the exit code of each case, None if it has not ended."""
        paths = [folder / "exit_code" for folder in self.cases]
        return [path.read_text().split()[0] if path.exists() else None for path in paths]


def make_job(
    folder: Path,
    kind: str,
    title: str = "Three",
    system: str = "",
    spare_nodes: str = "1",
    minutes: float = 1,
    speed_test_s: str = "0",
    nodes: int = 1,
) -> ScriptedJob:
    tools = folder / "bin"
    tools.mkdir()
    uname = '#!/bin/sh\necho "${SLURMD_NODENAME:-login}"\n'
    fakes = {"srun": LAUNCHER, "mpiexec": LAUNCHER, "python": PROGRAM, "uname": uname, "sinfo": SINFO}
    for name, text in fakes.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    system = system if "health_check:" in system else f"health_check: test -w /tmp\n{system}"
    (folder / "here.yaml").write_text(f"name: here\n{SYSTEMS[kind]}python: {tools}/python\n{system}")
    (folder / "three.yaml").write_text(
        SUITE.replace("TITLE", title).replace("MINUTES", str(minutes)).replace("NODES", str(nodes))
    )
    (folder / "requested").write_text("n2.site\nn1.site\n")
    settings = {"account": "abc", "spare_nodes": spare_nodes, "speed_test_s": speed_test_s} if kind != "local" else {}
    system_here = load_system(folder / "here.yaml", settings)
    plan = expand_suite(load_suite(folder / "three.yaml"), system_here)
    campaign = folder / FOLDER
    [job] = pack_jobs(plan, plan.cases, campaign)
    script = JobScriptWriter(plan, campaign).write(job)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PBS"))}
    environment = inherited | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "PBS_NODEFILE": str(folder / "requested"),
    }
    return ScriptedJob(script, [campaign / case.folder_name for case in job.cases], environment)


@pytest.fixture(params=sorted(SYSTEMS))
def job(request: pytest.FixtureRequest, tmp_path: Path) -> ScriptedJob:
    return make_job(tmp_path, request.param)


@pytest.fixture
def local(tmp_path: Path) -> ScriptedJob:
    return make_job(tmp_path, "local")


def test_cases_run_in_order_and_write_their_exit_code_and_duration(job: ScriptedJob) -> None:
    """The folder's name contains quotes, spaces and other special characters."""
    job.set_action(0, "exit 3")
    result = job.run()
    assert (job.exit_codes, job.runs, result.returncode) == (["3", "0", "0"], [1, 1, 1], 1), result
    for folder in job.cases:
        code, seconds = (folder / "exit_code").read_text().splitlines()
        assert int(code) in (0, 3)
        assert 0 <= int(seconds) <= 60
        assert (folder / "job.sh").read_text() == job.script.read_text()
        assert (folder / "provenance.json").read_text() == '{"here": 1}\n'
        assert sorted(path.name for path in folder.glob("*.part")) == []


def test_case_uses_the_first_healthy_nodes(tmp_path: Path) -> None:
    for kind, node in (("slurm", "n2"), ("pbs", "n2.site")):
        (tmp_path / kind).mkdir()
        job = make_job(tmp_path / kind, kind, system='health_check: test "$(uname -n)" != n1\n')
        result = job.run()
        assert "1 of 2 nodes passed the check" in result.stdout, result
        assert job.exit_codes == ["0", "0", "0"]
        assert [(folder / "nodes").read_text() for folder in job.cases] == [f"{node}\n"] * 3


def test_case_takes_slow_nodes_last(tmp_path: Path) -> None:
    """The first of two nodes is slow in the speed test."""
    for kind, fast in (("slurm", "n2"), ("pbs", "n2.site")):
        folder = tmp_path / kind
        folder.mkdir()
        lines = [make_speed(f"n{k}", k, 0.8 if k == 1 else 1.0) for k in range(1, 6)]
        (folder / "speeds").write_text("".join(f"{k}: {line}\n" for k, line in enumerate(lines)))
        job = make_job(folder, kind, speed_test_s="5")
        result = job.run(SPEEDS=str(folder / "speeds"), PYTHON=sys.executable)
        assert "slow: n1, rank 1: products at 80% of the median of 5 ranks" in result.stderr, result
        assert [(case / "nodes").read_text().split()[0] for case in job.cases] == [fast] * 3
        assert job.exit_codes == ["0", "0", "0"]


def test_speed_test_that_fails_stops_no_case(tmp_path: Path) -> None:
    job = make_job(tmp_path, "slurm", speed_test_s="5")
    result = job.run(SPEEDS=str(tmp_path / "absent"), PYTHON="false")
    assert "warning: the speed of the nodes is not known" in result.stderr
    assert job.exit_codes == ["0", "0", "0"]


@pytest.mark.slow
def test_job_without_enough_healthy_nodes_runs_nothing(tmp_path: Path) -> None:
    for kind in ("slurm", "pbs"):
        (tmp_path / kind).mkdir()
        job = make_job(tmp_path / kind, kind, system="health_check: 'false'\n")
        result = job.run()
        assert (result.returncode, job.runs, job.exit_codes) == (75, [0, 0, 0], [None, None, None])
        assert "takes 1 nodes and 0 passed the check" in result.stderr


def test_ended_cases_are_skipped_unless_a_rerun_is_requested(job: ScriptedJob) -> None:
    job.run()
    second = job.run(job="8")
    assert (job.runs, second.returncode) == ([1, 1, 1], 0)
    assert second.stdout.count("has ended before") == 3
    job.set_action(1, "exit 4")
    assert job.run("again", job="9").returncode == 75
    assert (job.runs, job.exit_codes) == ([2, 2, 1], ["0", "4", None])


def test_pbs_job_reads_the_rerun_request_from_a_variable(tmp_path: Path) -> None:
    """qsub passes no arguments to a script."""
    job = make_job(tmp_path, "pbs")
    job.run()
    job.run(job="8", GFM_HARNESS_AGAIN="again")
    assert job.runs == [2, 2, 2]


def test_requeued_job_continues_where_it_stopped(tmp_path: Path) -> None:
    """A job that was submitted with `again`, and so reruns its cases, continues there too."""
    for kind in ("slurm", "pbs"):
        (tmp_path / kind).mkdir()
        job = make_job(tmp_path / kind, kind)
        job.run()
        job.set_action(1, 'kill -9 "$(cat "$HOME/pid")"; exit 1')
        home = tmp_path / kind
        killed = job.run("again", job="8", before='echo $$ > "$HOME/pid"', HOME=str(home))
        assert killed.returncode == -9
        assert job.runs == [2, 2, 1]
        job.set_action(1, "exit 0")
        job.run("again", job="8", SLURM_RESTART_COUNT="1")
        assert (job.runs[:2], job.exit_codes[:2]) == ([2, 3], ["0", "0"])


def test_case_that_another_job_has_locked_is_skipped(job: ScriptedJob) -> None:
    (job.cases[0] / "claim").write_text("another\n")
    result = job.run()
    assert (job.runs, job.exit_codes) == ([0, 1, 1], [None, "0", "0"])
    assert "not run, since job another has it" in result.stderr
    assert (job.cases[0] / "claim").read_text() == "another\n"


@pytest.mark.parametrize("kind", sorted(SYSTEMS))
def test_case_over_its_time_limit_is_stopped(tmp_path: Path, kind: str) -> None:
    job = make_job(tmp_path, kind, minutes=0.03)
    job.set_action(0, "sleep 30")
    result = job.run()
    assert (result.returncode, job.exit_codes) == (1, ["124", "0", "0"])
    case_result = read_result(job.cases[0])
    assert case_result is not None
    assert case_result.reason == "stopped after 2 s, the time limit of this case"


def fail_first(message: str) -> str:
    return f"if [ $(wc -l < ran) = 1 ]; then echo '{message}' >&2; exit 1; fi"


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_case_with_an_error_of_a_gpu_runs_again_on_another_node(tmp_path: Path, kind: str) -> None:
    """The node is not used by the later cases either, nor by the next job."""
    job = make_job(tmp_path, kind)
    job.set_action(0, fail_first(XID))
    result = job.run()
    assert (result.returncode, job.exit_codes, job.runs) == (0, ["0", "0", "0"], [2, 1, 1])
    jobs = job.script.parent
    [line] = (jobs / "faulty_nodes").read_text().splitlines()
    first = (tmp_path / "requested").read_text().splitlines()[1] if kind == "pbs" else "n1"
    assert line in (f"{first} {XID}", f"n2.site {XID}")
    faulty = line.split()[0]
    assert f"error: an error of a GPU: {XID}\n" in result.stderr
    assert f"lost {faulty} and the case is started again" in result.stdout
    assert all((case / "nodes").read_text().split()[0] != faulty for case in job.cases)
    assert read_faulty_nodes(jobs.parent) == [faulty]


def test_case_without_another_node_is_left_to_another_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, "slurm", spare_nodes="0", nodes=2)
    job.set_action(0, fail_first(f"1: {XID}"))
    result = job.run()
    assert (result.returncode, job.exit_codes, job.runs) == (75, [None, None, None], [1, 0, 0])
    assert "lost n2 and too few nodes are left; another job can run the case" in result.stderr
    assert (job.script.parent / "faulty_nodes").read_text() == f"n2 1: {XID}\n"


def test_error_of_a_gpu_on_an_unknown_node_is_left_to_another_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, "pbs", spare_nodes="0", nodes=2)
    job.set_action(0, fail_first(XID))
    result = job.run()
    assert (result.returncode, job.exit_codes) == (75, [None, "0", "0"])
    assert "it is not known which node the error is on" in result.stderr
    assert not (job.script.parent / "faulty_nodes").exists()


def test_error_of_a_gpu_on_this_machine_is_the_reason_of_the_failure(local: ScriptedJob) -> None:
    local.set_action(0, fail_first(XID))
    assert (local.run().returncode, local.exit_codes, local.runs) == (1, ["1", "0", "0"], [1, 1, 1])
    (local.cases[0] / "events.jsonl").write_text('{"event": "error", "time_s": 1.0, "message": "device lost"}\n')
    result = read_result(local.cases[0])
    assert result is not None
    assert (result.state, result.reason) == ("failed", f"an error of a GPU: {XID}")


def test_error_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    job = make_job(tmp_path, "slurm")
    (job.cases[0] / "stderr").write_text(f"{XID}\n")
    job.set_action(0, "exit 1")
    assert (job.run().returncode, job.exit_codes) == (1, ["1", "0", "0"])
    assert not (job.script.parent / "faulty_nodes").exists()


def test_case_with_failed_dependency_is_not_run(job: ScriptedJob) -> None:
    job.set_action(1, "exit 2")
    result = job.run()
    assert (result.returncode, job.exit_codes, job.runs[2]) == (75, ["0", "2", None], 0)
    assert "is not done" in result.stderr


def test_full_disk_leaves_no_exit_code(local: ScriptedJob) -> None:
    """The exit code of a case cannot be written: the job stops, and the case counts as lost."""
    local.set_action(0, 'prlimit --pid "$(cat "$HOME/pid")" --fsize=0')
    folder = local.script.parent.parent.parent
    full = local.run(before="trap '' XFSZ; echo $$ > \"$HOME/pid\"", HOME=str(folder))
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert (local.runs, local.exit_codes) == ([1, 0, 0], [None, None, None])
    assert (local.cases[0] / "exit_code.part").read_text() == ""


def test_environment_values_are_quoted(tmp_path: Path) -> None:
    values = {"A": 'it\'s "two" words', "B": "back`tick` \\ slash", "C": "$HOME/x y", "D": "", "E": "a;b|c&d>e #f*"}
    lines = "".join(f"  {name}: '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())
    job = make_job(tmp_path, "local", system=f"environment:\n{lines}")
    exports = [line for line in job.script.read_text().splitlines() if re.match("export [A-E]=", line)]
    script = "\n".join([*exports, 'printf "%s\\n" "$A" "$B" "$C" "$D" "$E"'])
    output = subprocess.run(["bash", "-uc", script], env={"HOME": "/h"}, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines() == [value.replace("$HOME", "/h") for value in values.values()]


def test_title_cannot_escape_from_its_comment(tmp_path: Path) -> None:
    title = "'x $(touch broke) `touch broke`; \" #PBS -q other \\ '"
    job = make_job(tmp_path, "pbs", title=title.replace("'x", '"x').replace("\\ '", '"').replace('; "', ";"))
    head, rest = job.script.read_text().split("set -euo pipefail", 1)
    assert all(line.startswith("#") for line in head.splitlines())
    assert "touch broke" not in rest
    assert [line for line in head.splitlines() if line.startswith("#PBS -q")] == ["#PBS -q prod"]
    job.run()
    assert not list(tmp_path.rglob("broke"))


def test_title_with_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="title"):
        make_job(tmp_path, "local", title='"x\\nrm -rf here"')


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_two_jobs_of_one_script_keep_separate_node_files(tmp_path: Path, kind: str) -> None:
    """A second job, submitted by hand while the first runs, must not change the nodes of the first."""
    job = make_job(tmp_path, kind)
    job.set_action(0, 'SLURM_JOB_ID=8 PBS_JOBID=8 bash "$SCRIPT" || true')
    first = job.run(job="7", SCRIPT=str(job.script))
    assert (job.exit_codes, job.runs, first.returncode) == (["0", "0", "0"], [1, 1, 1], 0), first
    assert "job 7 has it" in (job.cases[0] / "stderr").read_text()
    node_files = sorted(path.name for path in job.script.parent.glob("*.nodes"))
    assert [name.split(".")[-2] for name in node_files] == ["7", "8"]
