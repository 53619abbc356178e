"""The Slurm client, tested with fake commands that print output of real sbatch, squeue, sacct and scontrol.

Rejections are those of Slurm's src/common/slurm_errno.c and, where a line names a limit, of 22.05.8, which prints that
line before the error itself; listings are those of squeue and sacct 22.05.8.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.execution.schedulers import command, slurm_output
from harness.execution.schedulers.base import JobRejected, QueueFull
from harness.execution.schedulers.command import RetriesExhausted
from harness.execution.schedulers.slurm import SlurmScheduler
from tests.support.fake_schedulers import FakePrograms, print_error

POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"  # noqa: E501
FAILED = "sbatch: error: Batch job submission failed: "


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    programs = FakePrograms(tmp_path / "bin", "sbatch", "squeue", "sacct", "scontrol", "scancel")
    monkeypatch.setenv("PATH", programs.path)
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "60")
    monkeypatch.setattr(command, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(command, "LONGEST_PAUSE_S", 0.002)
    return programs


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ("12", "12"),
        ("12;frontier", "12"),
        ("--- 3 messages; 12;15 unread ---\n12;frontier\n", "12"),
        ("12\nsbatch: your project has 3 hours left\n", "12"),
        ("Welcome\n2026\n12\n", "12"),
        ("Submitted batch job 12\n", "12"),
        ("Submitted batch job 12 on cluster c1\n", "12"),
    ],
)
def test_job_id_is_the_last_line_of_the_output_that_looks_like_one(slurm: FakePrograms, output: str, job: str) -> None:
    slurm.set_answers("sbatch", f"cat << 'END'\n{output}\nEND")
    assert SlurmScheduler().submit(Path("a.sh"), "a") == job


@pytest.mark.parametrize("output", ["", "Your job was submitted; thank you", "12.5", "job 12"])
def test_submission_that_prints_no_id_is_looked_up_by_name_and_not_repeated(
    slurm: FakePrograms, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    slurm.set_answers("sbatch", f"echo '{output}'")
    slurm.set_answers("squeue", "exit 0", "echo '12|a|PENDING|None'")
    assert SlurmScheduler().submit(Path("a.sh"), "a") == "12"
    assert len(slurm.get_calls("sbatch")) == 1
    slurm.set_answers("squeue", *["exit 0"] * 3)
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "0.2")
    with pytest.raises(RetriesExhausted, match="no job id in its answer"):
        SlurmScheduler().submit(Path("a.sh"), "a")
    assert len(slurm.get_calls("sbatch")) == 2


@pytest.mark.parametrize(
    "message",
    [
        f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}",
        f"sbatch: error: AssocGrpSubmitJobsLimit\n{POLICY}",
        f"sbatch: error: QOSGrpSubmitJobsLimit\n{POLICY}",
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}",
        f"sbatch: error: MaxSubmitJobsPerAccount\n{POLICY}",
        f"sbatch: error: QOSMaxSubmitJobPerAccountLimit\n{POLICY}",
        f"{FAILED}MaxJobCount limit reached",
        f"{FAILED}Slurm temporarily unable to accept job, sleeping and retrying: job count limit exceeded",
        f"{FAILED}Invalid job array specification",
        f"{FAILED}Required partition not available (inactive or drain)",
        f"{FAILED}Required node not available (down, drained or reserved)",
        f"{FAILED}Requested nodes are busy",
    ],
)
def test_temporary_limit_raises_queue_full(slurm: FakePrograms, message: str) -> None:
    slurm.set_answers("sbatch", print_error(message, 1))
    with pytest.raises(QueueFull) as raised:
        SlurmScheduler().submit(Path("a.sh"), "a")
    assert not raised.value.may_be_permanent
    assert len(slurm.get_calls("sbatch")) == 1


def test_unnamed_policy_limit_may_be_permanent(slurm: FakePrograms) -> None:
    """Older versions of Slurm did not name the limit."""
    slurm.set_answers("sbatch", print_error(POLICY, 1))
    with pytest.raises(QueueFull, match="job submit limit") as raised:
        SlurmScheduler().submit(Path("a.sh"), "a")
    assert raised.value.may_be_permanent


@pytest.mark.parametrize(
    "message",
    [
        f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{POLICY}",
        f"sbatch: error: QOSMaxNodePerUserLimit\n{POLICY}",
        f"sbatch: error: QOSMinCpuNotSatisfied\n{POLICY}",
        f"sbatch: error: invalid partition specified: nope\n{FAILED}Invalid partition name specified",
        f"{FAILED}Invalid account or account/partition combination specified",
        f"{FAILED}Invalid qos specification",
        f"{FAILED}Invalid feature specification",
        f"{FAILED}Node count specification invalid",
        f"{FAILED}More processors requested than permitted",
        f"{FAILED}Requested node configuration is not available",
        f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)",
        f"{FAILED}User's group not permitted to use this partition",
        f"{FAILED}Access denied to requested reservation",
        "sbatch: error: Invalid --time specification",
        "sbatch: unrecognized option '--nope'",
    ],
)
def test_permanent_rejection_is_not_repeated(slurm: FakePrograms, message: str) -> None:
    slurm.set_answers("sbatch", print_error(message, 1))
    with pytest.raises(JobRejected):
        SlurmScheduler().submit(Path("a.sh"), "a")
    assert len(slurm.get_calls("sbatch")) == 1


@pytest.mark.parametrize(
    "message",
    [
        'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory'
        f"\n{FAILED}Protocol authentication error",
        "sbatch: error: Munge encode failed: Invalid credential format",
        f"{FAILED}Unable to contact slurm controller (connect failure)",
        f"{FAILED}Socket timed out on send/recv operation",
        f"{FAILED}Zero Bytes were transmitted or received",
        f"{FAILED}Error generating job credential",
        f"{FAILED}Rate limit exceeded, please retry momentarily",
        f"{FAILED}I/O error writing script/environment to file",
        f"{FAILED}Slurm backup controller in standby mode",
        f"{FAILED}something that nobody has seen before",
    ],
)
def test_unavailable_controller_is_reported_and_retried(
    slurm: FakePrograms, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.set_answers("sbatch", print_error(message, 1), print_error(message, 1), "echo 13")
    assert SlurmScheduler().submit(Path("a.sh"), "a") == "13"
    reported = capfd.readouterr().err.splitlines()
    assert len(reported) == 1
    assert reported[0].startswith("sbatch: ")
    assert message.rsplit(maxsplit=1)[-1] in reported[0]
    assert reported[0].endswith("trying again for up to 60 s")


def test_hanging_command_is_reported_and_killed(
    slurm: FakePrograms, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The child process of a wrapper, which keeps the output open, is killed too."""
    monkeypatch.setattr(command, "SLOW_S", 0.2)
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "0.2")
    slurm.set_answers("squeue", "sleep 987654")
    with pytest.raises(RetriesExhausted, match="no answer"):
        SlurmScheduler().list_jobs((), ["12"])
    assert capfd.readouterr().err.startswith("squeue has not answered for 0.2 s; ")


def test_user_variables_do_not_reach_commands(slurm: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    user_variables = (
        "SQUEUE_STATES",
        "SQUEUE_PARTITION",
        "SBATCH_ACCOUNT",
        "SBATCH_EXPORT",
        "SACCT_FORMAT",
        "SINFO_FORMAT",
    )
    user_variables += (
        "SCANCEL_STATE",
        "SCONTROL_ALL",
        "SLURM_MEM_PER_NODE",
        "SLURM_JOB_ID",
        "SLURM_TIME_FORMAT",
        "PBS_JOBID",
    )
    for name in (*user_variables, "SLURM_CONF", "SLURM_CLUSTERS", "PBS_SERVER", "SLURMER"):
        monkeypatch.setenv(name, "mine")
    for program in ("sbatch", "squeue", "sacct", "scancel"):
        slurm.set_answers(program, f'env > "$folder/env.{program}"; test {program} != sbatch || echo 12')
    scheduler = SlurmScheduler()
    scheduler.submit(Path("a.sh"), "a")
    scheduler.list_jobs(["a"], ["12"])
    scheduler.query_last_states({"12": "a"})
    scheduler.cancel(["12"])
    for program in ("sbatch", "squeue", "sacct", "scancel"):
        lines = (slurm.folder / f"env.{program}").read_text().splitlines()
        names = {line.split("=")[0] for line in lines}
        assert not names & set(user_variables), program
        assert {"SLURM_CONF=mine", "SLURM_CLUSTERS=mine", "PBS_SERVER=mine", "SLURMER=mine"} <= set(lines), program


def test_queue_queries_ids_in_all_partitions(slurm: FakePrograms) -> None:
    SlurmScheduler().list_jobs((), ["101_1", "101_2", "205", "by hand", ""])
    [call] = slurm.calls
    assert call.split()[:2] == ["squeue", "--all"]
    assert "--jobs=101,205" in call.split()
    assert "--me" not in call.split()


def test_id_that_slurm_has_forgotten_is_not_an_error(slurm: FakePrograms) -> None:
    """squeue fails for one unknown id; older versions also fail for several ids of which one is known."""
    forgotten = print_error("slurm_load_jobs error: Invalid job id specified", 1)
    slurm.set_answers("squeue", f"case $* in *--jobs=12*) echo '12|a|RUNNING|None';; *) {forgotten};; esac")
    assert SlurmScheduler().list_jobs((), ["11"]) == []
    slurm.set_answers("squeue", f"case $* in *=12\\ *|*=12) echo '12|a|RUNNING|None';; *) {forgotten};; esac")
    assert [queued.id for queued in SlurmScheduler().list_jobs((), ["11", "12", "13"])] == ["12"]


TASKS = [f"101_{k}" for k in range(1, 7)]
NAMES = dict.fromkeys(TASKS, "fleet")


@pytest.mark.parametrize(
    ("row", "tasks"),
    [
        ("101_3", "3"),
        ("101_[1-6]", "123456"),
        ("101_[1-6%2]", "123456"),
        ("101_[1,3-5]", "1345"),
        ("101_[1-6:2]", "135"),
        ("101_[2,4-5%1]", "245"),
        ("101_[1-2,...]", "123456"),
        ("101_[1-2...", "123456"),
        ("101_[7-9]", ""),
        ("10_[1-6]", ""),
        ("101", "123456"),
    ],
)
def test_row_of_several_tasks_counts_for_each_of_them(slurm: FakePrograms, row: str, tasks: str) -> None:
    """A truncated row may stand for any task: waiting for an ended job is better than submitting one twice."""
    expected = [f"101_{k}" for k in tasks]
    slurm.set_answers("squeue", f"echo '{row}|fleet|PENDING|Priority'")
    assert sorted(queued.id for queued in SlurmScheduler().list_jobs((), TASKS)) == expected
    slurm.set_answers("sacct", f"echo '{row}|CANCELLED by 1000|fleet'")
    slurm.set_answers("scontrol", print_error("slurm_load_jobs error: Invalid job id specified", 1))
    exit_infos = SlurmScheduler().query_last_states(NAMES)
    assert sorted(exit_infos) == expected
    assert {(e.kind, e.reason) for e in exit_infos.values()} <= {("cancelled", "CANCELLED by 1000")}


def test_state_of_a_job_with_another_name_is_ignored(slurm: FakePrograms) -> None:
    """The output of sbatch may be damaged, so that its id is that of another job."""
    slurm.set_answers("sacct", "echo '12|FAILED|b'")
    slurm.set_answers("scontrol", "echo 'JobId=12 JobName=b JobState=FAILED'")
    assert SlurmScheduler().query_last_states({"12": "a"}) == {}
    assert SlurmScheduler().query_last_states({"12": "b"})["12"].kind == "exited"


def test_row_of_a_single_task_takes_precedence(slurm: FakePrograms) -> None:
    rows = ("101_2|COMPLETED|fleet", "101_[1-6]|CANCELLED by 0|fleet", "101_3|NODE_FAIL|fleet")
    slurm.set_answers("sacct", "".join(f"echo '{row}'\n" for row in rows))
    kinds = {job: ending.kind for job, ending in SlurmScheduler().query_last_states(NAMES).items()}
    assert [kinds[job] for job in TASKS[:4]] == ["cancelled", "completed", "retryable", "cancelled"]


def test_controller_lists_arrays_without_accounting(slurm: FakePrograms) -> None:
    slurm.set_answers("sacct", print_error("Slurm accounting storage is disabled", 1))
    lines = [
        "JobId=101 ArrayJobId=101 ArrayTaskId=3-6%2 JobName=fleet JobState=CANCELLED Reason=None",
        "JobId=103 ArrayJobId=101 ArrayTaskId=2 JobName=fleet JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0",
        "JobId=102 ArrayJobId=101 ArrayTaskId=1 JobName=fleet JobState=COMPLETED Reason=None",
    ]
    slurm.set_answers("scontrol", "".join(f"echo '{line}'\n" for line in lines))
    kinds = {job: ending.kind for job, ending in SlurmScheduler().query_last_states(NAMES).items()}
    assert kinds == dict(zip(TASKS, ["completed", "exited", *["cancelled"] * 4], strict=True))
    assert len(slurm.get_calls("scontrol")) == 1


def test_job_that_runs_according_to_accounting_counts_as_alive(slurm: FakePrograms) -> None:
    """If the controller does not know the job, it has ended, and the accounting database has missed that."""
    slurm.set_answers("sacct", "echo '12|RUNNING|a'")
    slurm.set_answers("scontrol", print_error("slurm_load_jobs error: Unable to contact slurm controller", 1))
    assert SlurmScheduler().query_last_states({"12": "a"})["12"].kind == "alive"
    slurm.set_answers("scontrol", print_error("slurm_load_jobs error: Invalid job id specified", 1))
    assert SlurmScheduler().query_last_states({"12": "a"}) == {}


@pytest.mark.parametrize(
    "reason",
    [
        "launch failed requeued held", "launch_failed_requeued_held", "job requeued in held state", "JobHeldAdmin",
        "JobHeldUser", "BadConstraints", "PartitionTimeLimit", "PartitionNodeLimit", "DependencyNeverSatisfied",
        "InvalidAccount", "InvalidQOS", "AssocMaxWallDurationPerJobLimit", "QOSMaxNodePerJobLimit",
        "AssocMaxCpuPerJobLimit", "QOSMinCpuNotSatisfied", "JobHoldMaxRequeue",
    ],
)  # fmt: skip
def test_stuck_reasons_are_recognized(reason: str) -> None:
    [queued] = slurm_output.parse_queue(f"12|a|PENDING|{reason}\n", ["a"], ())
    assert queued.is_stuck
    assert queued.is_unusual
    assert queued.reason == reason


@pytest.mark.parametrize(
    "reason",
    ["None", "Priority", "Resources", "Dependency", "BeginTime", "QOSMaxJobsPerUserLimit", "AssocGrpNodeLimit"],
)
def test_usual_reasons_are_not_reported(reason: str) -> None:
    [queued] = slurm_output.parse_queue(f"12|a|PENDING|{reason}\n", ["a"], ())
    assert not queued.is_unusual
    assert not queued.is_stuck


def test_ended_dependency_is_dropped(slurm: FakePrograms) -> None:
    """The controller forgets jobs some minutes after their end; the script itself checks their cases."""
    problem = print_error(f"{FAILED}Job dependency problem", 1)
    slurm.set_answers("sbatch", f"case $* in *11*) {problem};; *) echo 13;; esac")
    slurm.set_answers("squeue", "echo '12|b|RUNNING|None'")
    assert SlurmScheduler().submit(Path("c.sh"), "c", ["11", "12"]) == "13"
    assert slurm.get_calls("sbatch")[-1] == "sbatch --parsable --dependency=afterany:12 c.sh"


def test_huge_task_range_is_not_expanded() -> None:
    started = time.process_time()
    tasks = slurm_output.parse_tasks("0-999999999999%5")
    assert tasks.may_contain(10**11)
    assert time.process_time() - started < 60
