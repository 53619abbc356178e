"""The PBS client, tested with fake commands that print recorded answers of real servers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from harness.execution.schedulers import command, pbs
from harness.execution.schedulers.base import JobRejected, LastState, QueueEntry, QueueFull
from harness.execution.schedulers.command import CommandFailed, RetriesExhausted
from harness.execution.schedulers.pbs import PbsScheduler
from tests.support import fake_schedulers
from tests.support.fake_schedulers import FakePrograms, print_error

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LOGNAME", "pbsuser")
    monkeypatch.setattr(command, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(command, "LONGEST_PAUSE_S", 0.002)
    return FakePrograms(tmp_path, "qstat", "qsub", "qdel")


def print_recorded(name: str, code: int = 0) -> str:
    return fake_schedulers.print_file(RECORDED / name, code)


def combine_jobs(*records: tuple[str, str]) -> str:
    """Return one answer with several recorded jobs, each under an id of its own."""
    head = json.loads((RECORDED / "queued.json").read_text())
    head["Jobs"] = {
        number: next(iter(json.loads((RECORDED / name).read_text())["Jobs"].values())) for number, name in records
    }
    return f"cat << 'END'\n{json.dumps(head, indent=4)}\nEND\nexit 0"


@pytest.mark.parametrize(
    ("file", "user", "expected"),
    [
        ("queued.json", "user1", ["waiting"]),
        ("held.json", "user2", ["waiting"]),
        ("running.json", "user3", ["running"]),
        ("requeued.json", "pbsuser", ["waiting"]),
        ("requeued-running.json", "pbsuser", ["running"]),
        ("running.txt", "testu", ["running"]),
        ("finished.json", "pbsuser", []),
        ("finished.txt", "pbsuser", []),
        ("failed.json", "pbsuser", []),
        ("walltime.json", "pbsuser", []),
        ("walltime-text.json", "pbsuser", []),
        ("walltime-old.json", "pbsuser", []),
        ("deleted.json", "pbsuser", []),
        ("deleted-queued.json", "pbsuser", []),
        ("no-jobs.json", "pbsuser", []),
    ],
)
def test_queue_finds_recorded_jobs_by_name(
    server: FakePrograms, monkeypatch: pytest.MonkeyPatch, file: str, user: str, expected: list[str]
) -> None:
    monkeypatch.setenv("LOGNAME", user)
    server.set_answers("qstat", print_recorded(file))
    names = ["STDIN", "pyannote", "swrap_01", "pbs_sleep", "myscript_1"]
    assert [queued.state for queued in PbsScheduler().list_jobs(names)] == expected


def test_every_recorded_file_is_used_in_this_module() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in RECORDED.iterdir() if f'"{path.name}"' not in text and path.suffix != ".md"] == []


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("finished.json", LastState("finished with Exit_status 0", "completed")),
        ("failed.json", LastState("finished with Exit_status 3", "exited")),
        ("finished.txt", LastState("finished with Exit_status 0", "completed")),
        ("walltime.json", LastState("walltime exceeded", "failed")),
        ("walltime-text.json", LastState("walltime exceeded", "failed")),
        ("walltime-old.json", LastState("ended by signal 15", "failed")),
        ("deleted.json", LastState("deleted while it ran", "cancelled")),
        ("deleted-queued.json", LastState("deleted while it waited", "cancelled")),
        ("requeued.json", LastState("state Q", "alive")),
        ("requeued-running.json", LastState("state R", "alive")),
        ("held.json", LastState("state H", "alive")),
        ("running.json", LastState("state R", "alive")),
        ("running.txt", LastState("state R", "alive")),
    ],
)
def test_last_state_of_recorded_jobs_is_parsed(server: FakePrograms, file: str, expected: LastState) -> None:
    text = (RECORDED / file).read_text()
    jobs = pbs.parse_text(text) if file.endswith(".txt") else pbs.parse_json(text)
    job, fields = next(iter(jobs.items()))
    server.set_answers("qstat", print_recorded(file))
    assert PbsScheduler().query_last_states({job: fields["Job_Name"]}) == {job: expected}


def test_last_state_of_a_job_with_another_name_is_ignored(server: FakePrograms) -> None:
    """The output of qsub may be damaged, so that its id is that of another job."""
    server.set_answers("qstat", print_recorded("finished.json"))
    assert PbsScheduler().query_last_states({"40.pbs": "other"}) == {}


def test_job_that_pbs_could_not_run_is_retryable() -> None:
    assert pbs.parse_last_state({"job_state": "F", "Exit_status": -3}) == LastState(
        "PBS could not run it (Exit_status -3)", "retryable"
    )


def test_broken_json_is_queried_as_text(server: FakePrograms) -> None:
    """The text contains the same fields as valid JSON."""
    with pytest.raises(ValueError, match="delimiter"):
        pbs.parse_json((RECORDED / "broken.json").read_text())
    server.set_answers(
        "qstat", f"case $* in *json*) {print_recorded('broken.json')};; *) {print_recorded('finished.txt')};; esac"
    )
    assert PbsScheduler().list_jobs(["pbs_sleep"]) == []
    assert PbsScheduler().query_last_states({"40.pbs": "pbs_sleep"})["40.pbs"].kind == "completed"
    assert server.calls[:2] == ["qstat -f -F json", "qstat -f"]
    assert server.calls[2:] == ["qstat -x -f -F json 40.pbs", "qstat -x -f 40.pbs"]
    from_json = pbs.parse_json((RECORDED / "finished.json").read_text())["40.pbs"]
    from_text = pbs.parse_text((RECORDED / "finished.txt").read_text())["40.pbs"]
    shared = {name for name, value in from_json.items() if not isinstance(value, dict)}
    assert {name: str(from_json[name]) for name in shared} == {name: from_text[name] for name in shared}


def test_continuation_line_of_a_variable_is_not_a_field() -> None:
    """A line that begins with a tab continues a value, even if it looks like a field."""
    text = "Job Id: 1.pbs\n    Job_Name = mine\n    Variable_List = A=x,\n\tJob_Name = other\n    job_state = R\n"
    assert pbs.parse_text(text) == {
        "1.pbs": {"Job_Name": "mine", "Variable_List": "A=x,Job_Name = other", "job_state": "R"}
    }


def test_queue_uses_one_command_for_many_jobs(server: FakePrograms) -> None:
    scheduler = PbsScheduler()
    assert scheduler.list_jobs([]) == []
    assert server.calls == []
    names = ("requeued.json", "requeued-running.json", "finished.json", "queued.json", "running.json")
    server.set_answers("qstat", combine_jobs(*((f"{k}.pbs", name) for k, name in enumerate(names))))
    entries = scheduler.list_jobs(["pbs_sleep", "swrap_01", "STDIN"])
    assert [(entry.id, entry.state) for entry in entries] == [("0.pbs", "waiting"), ("1.pbs", "running")]
    assert scheduler.list_jobs(["other"]) == []
    assert [entry.id for entry in scheduler.list_jobs((), ["1.pbs", "2.pbs"])] == ["1.pbs"]
    assert server.calls == ["qstat -f -F json", "qstat -f -F json", "qstat -f 1.pbs 2.pbs"]


def test_held_job_has_a_reason(server: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "user2")
    server.set_answers("qstat", print_recorded("held.json"))
    [entry] = PbsScheduler().list_jobs(["pyannote"])
    assert isinstance(entry, QueueEntry)
    assert entry.reason != ""


@pytest.mark.parametrize("code", [255, 183, 35])
def test_failed_qstat_is_repeated(server: FakePrograms, code: int) -> None:
    """A failing server may still print an answer without jobs, which must not count."""
    server.set_answers(
        "qstat",
        print_recorded("no-jobs.json", code),
        print_recorded("no-jobs.json", code),
        print_recorded("requeued.json"),
    )
    assert len(PbsScheduler().list_jobs(["pbs_sleep"])) == 1
    assert len(server.calls) == 3


def test_qstat_that_keeps_failing_exhausts_the_retries(server: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "0.05")
    server.set_answers("qstat", print_error("Connection refused\nqstat: cannot connect to server pbs (errno=111)", 255))
    with pytest.raises(RetriesExhausted, match="cannot connect"):
        PbsScheduler().list_jobs(["pbs_sleep"])


def test_job_that_the_server_has_forgotten_has_no_last_state(server: FakePrograms) -> None:
    for message, code in (
        ("qstat: Unknown Job Id 7.pbs", 153),
        ("qstat: PBS is not configured to maintain job history", 18),
    ):
        server.set_answers("qstat", print_error(message, code))
        assert PbsScheduler().query_last_states({"7.pbs": "a"}) == {}


def test_submit_returns_the_id_and_passes_dependencies(server: FakePrograms) -> None:
    server.set_answers("qsub", "echo 12.pbs", "echo 13.pbs")
    scheduler = PbsScheduler()
    assert scheduler.submit(Path("jobs/a.sh"), "a") == "12.pbs"
    assert scheduler.submit(Path("jobs/b.sh"), "b", ["12.pbs", "11.pbs"]) == "13.pbs"
    assert server.calls == ["qsub jobs/a.sh", "qsub -W depend=afterany:12.pbs:11.pbs jobs/b.sh"]


def test_failed_qsub_is_repeated(server: FakePrograms) -> None:
    unreachable = print_error("qsub: cannot connect to server pbs (errno=15010)", 1)
    server.set_answers("qstat", print_recorded("no-jobs.json"))
    server.set_answers("qsub", unreachable, unreachable, "echo 14.pbs")
    assert PbsScheduler().submit(Path("a.sh"), "a") == "14.pbs"


@pytest.mark.parametrize("answer", [print_error("qsub: End of File", 190), "exit 0"])
def test_qsub_whose_answer_was_lost_is_not_repeated(server: FakePrograms, answer: str) -> None:
    """The job is in the queue although qsub failed."""
    server.set_answers("qsub", answer)
    server.set_answers("qstat", print_recorded("requeued.json"))
    [job] = pbs.parse_json((RECORDED / "requeued.json").read_text())
    assert PbsScheduler().submit(Path("a.sh"), "pbs_sleep") == job
    assert [call for call in server.calls if call.startswith("qsub")] == ["qsub a.sh"]


@pytest.mark.parametrize(
    "message",
    [
        "qsub: Unknown queue",
        "qsub: Account_Name is required to be set.",
        "qsub: Resource: filesystems is required to be set.",
        "qsub: Job violates queue and/or server resource limits",
        "qsub: Access to queue is denied",
        'qsub: "-lresource=" cannot be used with "select" or "place", resource is: ncpus',
        "qsub: duplicated resource within a section of a select specification, resource is: ncpus",
        'qsub: Resource invalid in "select" specification',
        "qsub: Duplicate entry in list",
        "qsub: attribute value is out of range",
        "qsub: Incompatible type",
        'qsub: Cannot have "place" without "select"',
        "qsub: jobscript size exceeded the jobscript_max_size",
    ],
)
def test_permanent_rejection_is_not_repeated(server: FakePrograms, message: str) -> None:
    server.set_answers("qsub", print_error(message, 171))
    with pytest.raises(JobRejected, match=re.escape(message.removeprefix("qsub: "))):
        PbsScheduler().submit(Path("a.sh"), "a")
    assert server.calls == ["qsub a.sh"]


@pytest.mark.parametrize(
    "message",
    [
        "would exceed queue prod's per-user limit of jobs in 'Q' state",
        "would exceed complex's per-user limit of jobs in 'Q' state",
        "would exceed queue generic's per-user limit",
        "would exceed complex's per-user limit",
        "would exceed queue prod's per-group limit",
        "would exceed complex's per-project limit",
        "would exceed limit on resource ncpus in complex",
        "would exceed per-user limit on resource ncpus in queue prod",
        "would exceed per-project limit on resource ncpus in complex for jobs in 'Q' state",
        "would exceed group users's limit on resource ncpus in queue prod",
        "Maximum number of jobs already in queue",
        "Maximum number of jobs already in queue prod",
        "Maximum number of jobs for user pbsuser already in complex",
        "Maximum number of jobs in 'Q' state for project p already in queue prod",
        "Queue is not enabled",
        "Request not allowed: Server shutting down",
    ],
)
def test_full_queue_raises_queue_full(server: FakePrograms, message: str) -> None:
    """The messages are those of OpenPBS, src/lib/Liblog/pbs_messages.c."""
    server.set_answers("qsub", print_error(f"qsub: {message}", 223))
    with pytest.raises(QueueFull, match=re.escape(message)):
        PbsScheduler().submit(Path("a.sh"), "a")
    assert server.calls == ["qsub a.sh"]


def test_refusal_by_all_queues_behind_a_routing_queue_may_be_temporary(server: FakePrograms) -> None:
    """The queues may be full, or the job may be too large for each of them: the message is the same."""
    server.set_answers("qsub", print_error("qsub: Job rejected by all possible destinations", 159))
    with pytest.raises(QueueFull, match="all possible destinations") as caught:
        PbsScheduler().submit(Path("a.sh"), "a")
    assert caught.value.may_be_permanent


@pytest.mark.parametrize(
    "message",
    [
        "cannot connect to server pbs (errno=15010)", "No free connections", "End of File", "Batch protocol error",
        "PBS server internal error", "Resource temporarily unavailable", "Expired credential",
        "Server connection table full", "Failed to save job/resv, refer server logs for details", "Resource busy",
    ],
)  # fmt: skip
def test_unavailable_server_is_reported_and_retried(
    server: FakePrograms, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.set_answers("qsub", print_error(f"qsub: {message}", 1), print_error(f"qsub: {message}", 1), "echo 14.pbs")
    assert PbsScheduler().submit(Path("a.sh"), "a") == "14.pbs"
    assert capfd.readouterr().err == f"qsub: qsub: {message}; trying again for up to 600 s\n"


@pytest.mark.parametrize("message", ["Unknown Job Id 11.pbs", "Invalid Job Dependency", "Job has finished"])
def test_ended_dependency_is_dropped(server: FakePrograms, message: str) -> None:
    """The script itself checks the cases that it depends on."""
    server.set_answers("qsub", f"case $* in *11.pbs*) {print_error(f'qsub: {message}', 153)};; *) echo 13.pbs;; esac")
    text = (RECORDED / "running.txt").read_text()
    [job] = pbs.parse_text(text)
    (server.folder / "one.txt").write_text(text.replace(job, "12.pbs"))
    server.set_answers("qstat", f"echo 'qstat: Unknown Job Id 11.pbs' >&2; cat {server.folder}/one.txt; exit 153")
    assert PbsScheduler().submit(Path("c.sh"), "c", ["11.pbs", "12.pbs"]) == "13.pbs"
    assert server.calls[-1] == "qsub -W depend=afterany:12.pbs c.sh"
    server.set_answers("qstat", print_error("qstat: Unknown Job Id 11.pbs", 153))
    assert PbsScheduler().submit(Path("c.sh"), "c", ["11.pbs"]) == "13.pbs"
    assert server.calls[-1] == "qsub c.sh"


@pytest.mark.parametrize(
    ("answer", "job"),
    [
        ("14.pbs-01.site.gov", "14.pbs-01.site.gov"),
        ("Welcome to PBS 2022.1.1\n14[].pbs\n", "14[].pbs"),
        ("14.pbs\nyour project has 3 hours left\n", "14.pbs"),
        ("14", "14"),
    ],
)
def test_job_id_is_the_last_line_of_the_output_that_looks_like_one(server: FakePrograms, answer: str, job: str) -> None:
    server.set_answers("qsub", f"cat << 'END'\n{answer}\nEND")
    assert PbsScheduler().submit(Path("a.sh"), "a") == job


def test_qsub_that_prints_no_id_is_not_repeated(server: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "0.1")
    server.set_answers("qsub", "echo thank you")
    server.set_answers("qstat", print_recorded("no-jobs.json"))
    with pytest.raises(RetriesExhausted, match="no job id in its answer 'thank you'"):
        PbsScheduler().submit(Path("a.sh"), "a")
    assert server.get_calls("qsub") == ["qsub a.sh"]


@pytest.mark.parametrize(
    ("change", "is_stuck", "reason"),
    [
        ({"job_state": "H", "Hold_Types": "u"}, True, "held (Hold_Types u)"),
        ({"job_state": "H", "comment": "job held, too many failed attempts to run"}, True, "job held, too many failed"),
        ({"job_state": "Q", "comment": "Can Never Run: Insufficient amount of resource: ncpus"}, True, "Can Never Run"),
        ({"job_state": "Q", "comment": "Not Running: Not enough free nodes available"}, False, "Not Running"),
        ({"job_state": "H", "Hold_Types": "s", "depend": "afterany:11.pbs@pbs"}, False, ""),
    ],
)
def test_stuck_reasons_are_recognized(
    server: FakePrograms, change: dict[str, str], is_stuck: bool, reason: str
) -> None:
    """The comments are those of pbs_sched; a job that waits for another is held too, but will start."""
    fields = {"Job_Name": "a", **change}
    lines = "".join(f"    {name} = {value}\n" for name, value in fields.items())
    server.set_answers("qstat", f"cat << 'END'\nJob Id: 12.pbs\n{lines}\nEND")
    [queued] = PbsScheduler().list_jobs((), ["12.pbs"])
    assert queued.is_stuck == is_stuck
    assert queued.reason.startswith(reason)


def test_ended_job_does_not_hide_others(server: FakePrograms) -> None:
    text = (RECORDED / "running.txt").read_text()
    [job] = pbs.parse_text(text)
    (server.folder / "one.txt").write_text(text)
    server.set_answers("qstat", f"cat {server.folder}/one.txt; echo 'qstat: 7.pbs Job has finished' >&2; exit 35")
    assert [queued.id for queued in PbsScheduler().list_jobs((), ["7.pbs", job])] == [job]
    server.set_answers("qstat", print_error("qstat: Unknown Job Id 7.pbs", 153))
    assert PbsScheduler().list_jobs((), ["7.pbs"]) == []


def test_cancel_continues_after_jobs_that_have_ended(server: FakePrograms) -> None:
    errors = [print_error("qdel: Job has finished 1.pbs", 35), print_error("qdel: Unknown Job Id 2.pbs", 153)]
    server.set_answers(
        "qdel", *errors, "exit 0", print_error("qdel: cannot connect to server pbs (errno=111)", 1), "exit 0"
    )
    scheduler = PbsScheduler()
    scheduler.cancel(["1.pbs", "2.pbs", "3.pbs"])
    with pytest.raises(CommandFailed, match="cannot connect"):
        scheduler.cancel(["4.pbs", "5.pbs"], force=True)
    assert server.calls[2:] == ["qdel 3.pbs", "qdel -W force 4.pbs", "qdel -W force 5.pbs"]


def test_missing_pbs_commands_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match="qstat: no such command"):
        PbsScheduler().list_jobs(["a"])
    with pytest.raises(JobRejected, match="qsub: no such command"):
        PbsScheduler().submit(Path("a.sh"), "a")
