"""Jobs of PBS Professional or OpenPBS, through qsub, qstat and qdel."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from harness.execution.schedulers import command
from harness.execution.schedulers.base import JobRejected, LastState, QueueEntry, QueueFull
from harness.execution.schedulers.command import CommandFailed, CommandScheduler

# Exit_status of jobs that exceeded a limit, and the substate of jobs that were deleted.
LIMIT_STATUSES = {-25: "cores", -27: "memory", -29: "walltime"}
TERMINATED_SUBSTATE = "91"
SIGNAL_STATUS = 256
# Letters of job_state (qstat(1B)): jobs with any other letter have ended.
WAITING, RUNNING = "QHWT", "RSEUB"
# For temporary limits the server prints `would exceed ...` or `Maximum number of jobs ...`; a job that can never run
# `violates` or `exceeds` a limit, except for the size of the queue. (openpbs, src/lib/Liblog/pbs_messages.c)
QUEUE_FULL_ERRORS = re.compile(
    r"would exceed|maximum number of jobs|queue is not enabled|request not allowed: server shutting down|"
    r"exceeds server or queue size limit",
    re.IGNORECASE,
)
UNAVAILABLE_ERRORS = re.compile(
    r"cannot connect|connection|no free connections|end of file|timed? ?out|temporarily|may retry|batch protocol error|"
    r"expired credential|communication|server internal error|broken pipe|munge|could not contact",
    re.IGNORECASE,
)
# A routing queue answers with this message if every queue behind it refuses the job: because the job is too large for
# all of them, or because all are full.
ROUTING_ERRORS = re.compile(r"rejected by all possible destinations", re.IGNORECASE)
PERMANENT_ERRORS = re.compile(
    r"unknown|illegal|invalid|unauthorized|not permitted|cannot|exceeds|exceeded|no such|undefined|no default|"
    r"not found|has finished|did not satisfy|"
    r"violates|is required|denied|not allowed|rejected|bad uid|bad gid|bad effective|bad time|must|mutually exclusive|"
    r"too long|too big|not supported|specification error|no support|unable to open|"
    r"duplicate|out of range|incompatible type",
    re.IGNORECASE,
)
DEPENDENCY_ERRORS = re.compile(r"unknown job id|job dependency|job has finished|did not satisfy dependency", re.I)
STUCK_REASONS = re.compile(r"can never run|too many failed attempts", re.IGNORECASE)
# Messages of qdel about a job that has ended; Slurm's wrapper of qdel prints no message and returns exit code 1.
ALREADY_ENDED = re.compile(r"unknown|has finished|not found|invalid job id|illegally formed|^exit code 1$", re.I)
# Messages of qstat about a job that has ended.
NO_LONGER_LISTED = re.compile(r"unknown job ?id|job has finished|invalid job id", re.IGNORECASE)
UNKNOWN_OPTION = re.compile(r"usage|unknown option|invalid option|illegal option", re.IGNORECASE)
# The id that qsub prints: `12.server`, `12[].server`; Slurm's wrapper of qsub prints only the number.
JOB_ID = re.compile(r"\d+(\[\d*\])?(\.[\w.-]+)?")
TEXT_JOB = re.compile(r"^Job Id:\s+(\S+)", re.MULTILINE)
TEXT_FIELD = re.compile(r"([\w.]+) = (.*)")
# PBSE_UNKJOBID (15001) as an exit code.
UNKNOWN_JOB = 15001 % 256


class PbsScheduler(CommandScheduler):
    """The scheduler PBS.

    Jobs are queried by id, as text, since servers print invalid JSON for several ids. If no id is known, the whole
    queue is searched for their names. The server's history, which covers all users and several weeks, is queried only
    for jobs that have vanished.
    """

    command = "qsub"
    submit_command = ("qsub",)
    dependency_errors = DEPENDENCY_ERRORS

    def list_jobs(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return the jobs that have not ended and have one of the ids, or are the user's and have one of the names."""
        jobs: dict[str, dict[str, Any]] = {}
        known = [job for job in dict.fromkeys(ids) if JOB_ID.fullmatch(job)]
        for batch in command.split_ids(known):
            jobs |= {job: fields for job, fields in _query_jobs(batch).items() if job in known}
        if names:
            user_jobs = ((job, fields) for job, fields in _query_queue().items() if _is_owned_by_user(fields))
            jobs |= {job: fields for job, fields in user_jobs if str(fields.get("Job_Name", "")) in names}
        return [entry for job, fields in jobs.items() if (entry := _make_queue_entry(job, fields))]

    def build_dependency_options(self, after: Sequence[str]) -> list[str]:
        """Return qsub's option for dependencies."""
        return ["-W", f"depend=afterany:{':'.join(after)}"]

    def parse_job_id(self, output: str) -> str | None:
        """Return the last line that is a job id, since sites print other lines too."""
        ids = [line.strip() for line in output.splitlines() if JOB_ID.fullmatch(line.strip())]
        return ids[-1] if ids else None

    def raise_if_rejected(self, error: CommandFailed) -> None:
        """Raise the exception that qsub's message implies, unless another attempt may succeed soon."""
        if error.is_unusable:
            raise JobRejected(str(error)) from None
        if error.code is None:
            return
        if QUEUE_FULL_ERRORS.search(error.message):
            raise QueueFull(error.message) from None
        if ROUTING_ERRORS.search(error.message):
            raise QueueFull(error.message, may_be_permanent=True) from None
        if PERMANENT_ERRORS.search(error.message) and not UNAVAILABLE_ERRORS.search(error.message):
            raise JobRejected(str(error)) from None

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Call qdel for each job; ignore jobs that have ended, and raise the last error after all calls."""
        failure = None
        for job in ids:
            try:
                command.run_once(["qdel", *(["-W", "force"] if force else []), job])
            except CommandFailed as error:
                if not ALREADY_ENDED.search(error.message):
                    failure = error
        if failure:
            raise failure

    def query_last_states(self, names: Mapping[str, str]) -> Mapping[str, LastState]:
        """Query the server's history (`qstat -x`)."""
        result = {}
        for job, name in names.items():
            fields = _query_history(job) if JOB_ID.fullmatch(job) else {}
            last_state = parse_last_state(fields) if fields.get("Job_Name") == name else None
            if last_state:
                result[job] = last_state
        return result


def _make_queue_entry(job: str, fields: Mapping[str, Any]) -> QueueEntry | None:
    """Return the entry of a job that has not ended, or None.

    A held job without a dependency will not start by itself.
    """
    letter = str(fields.get("job_state", ""))
    name, comment = str(fields.get("Job_Name", "")), str(fields.get("comment", ""))
    if letter not in (*WAITING, *RUNNING):
        return None
    if letter in RUNNING:
        return QueueEntry(job, name, "running", comment)
    is_held = letter == "H" and "depend" not in fields
    is_stuck = is_held or bool(STUCK_REASONS.search(comment))
    reason = comment or (f"held (Hold_Types {fields.get('Hold_Types', '?')})" if is_held else "")
    return QueueEntry(job, name, "waiting", reason, is_unusual=is_stuck, is_stuck=is_stuck)


def _query_jobs(jobs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return qstat's fields of jobs; qstat fails if one of them has ended, but still prints the others."""
    try:
        text = command.run_with_retry(["qstat", "-f", *jobs], is_permanent=_is_only_about_ended_jobs)
    except CommandFailed as error:
        if not _is_only_about_ended_jobs(error):
            raise
        text = error.output
    with suppress(ValueError):
        if text.startswith("{"):  # the default format of some servers
            return parse_json(text)
    return parse_text(text)


def _is_only_about_ended_jobs(error: CommandFailed) -> bool:
    """Return whether the error is only about jobs that have finished or that the server no longer has."""
    if error.code is None or UNAVAILABLE_ERRORS.search(error.message):
        return False
    return error.code == UNKNOWN_JOB or bool(NO_LONGER_LISTED.search(error.message))


def _query_queue() -> dict[str, dict[str, Any]]:
    """Return qstat's fields of every job that has not ended, by id: from JSON if it is valid, otherwise from text."""
    try:
        return parse_json(command.run_with_retry(["qstat", "-f", "-F", "json"], is_permanent=_is_unknown_option))
    except (CommandFailed, ValueError):
        pass
    try:
        return parse_text(command.run_with_retry(["qstat", "-f"], is_permanent=_is_unknown_job))
    except CommandFailed as error:
        if _is_unknown_job(error):
            return {}
        raise


def _query_history(job: str) -> dict[str, Any]:
    """Return the fields of a job in the server's history; none if the server has forgotten it or has no history."""
    for options in (["-F", "json"], []):
        try:
            text = command.run_with_retry(["qstat", "-x", "-f", *options, job], is_permanent=_is_history_unavailable)
            return (parse_json(text) if options else parse_text(text)).get(job, {})
        except (CommandFailed, ValueError):
            continue
    return {}


def parse_json(text: str) -> dict[str, dict[str, Any]]:
    """Return the fields of the jobs of `qstat -f -F json`.

    Raises:
        ValueError: The JSON is invalid, as it can be if the environment variables of a job contain quotes.
    """
    if not text.strip():
        return {}
    try:
        answer = json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    jobs = answer.get("Jobs", {}) if isinstance(answer, dict) else None
    if not isinstance(jobs, dict):
        raise ValueError("it contains no jobs")
    return {str(job): fields for job, fields in jobs.items() if isinstance(fields, dict)}


def parse_text(text: str) -> dict[str, dict[str, Any]]:
    """Return the fields of the jobs of `qstat -f`, which prints them as indented lines `name = value`.

    If fields are indented with spaces, a line that begins with a tab always continues the value above.
    """
    parts = TEXT_JOB.split(text)[1:]
    jobs: dict[str, dict[str, Any]] = {}
    for job, body in zip(parts[::2], parts[1::2], strict=True):
        fields = jobs[job] = {}
        indent = "    " if re.search(r"^    [\w.]+ = ", body, re.MULTILINE) else "\t"
        name = ""
        for line in body.splitlines():
            field = TEXT_FIELD.fullmatch(line.removeprefix(indent)) if line.startswith(indent) else None
            if field:
                name = field[1]
                fields[name] = field[2]
            elif line.startswith("\t") and name:
                fields[name] += line[1:]
    return jobs


def parse_last_state(fields: Mapping[str, Any]) -> LastState | None:
    """Return the last state of a job from its fields in the server's history, or None if the state is unknown.

    Exit_status (openpbs, src/include/job.h) is valid when the job has finished:

    - 0 to 255 is the exit code of the job;
    - 256 + n means that signal n ended the job;
    - -25, -27 and -29 mean that the job exceeded its cores, memory or walltime;
    - other negative values mean that the server could not run the job.

    A substate of 91 means that the job was deleted.
    """
    letter = str(fields.get("job_state", ""))
    if letter != "F":
        return LastState(f"state {letter}", "alive") if letter in (*WAITING, *RUNNING) else None
    text = str(fields.get("Exit_status", ""))
    if not re.fullmatch(r"-?\d{1,9}", text):
        return LastState("deleted while it waited", "cancelled")
    status = int(text)
    if status < 0:
        exceeded = LIMIT_STATUSES.get(status)
        could_not_run = LastState(f"PBS could not run it (Exit_status {status})", "retryable")
        return LastState(f"{exceeded} exceeded", "failed") if exceeded else could_not_run
    if status > SIGNAL_STATUS:
        is_deleted = str(fields.get("substate", "")) == TERMINATED_SUBSTATE
        ended_by_signal = LastState(f"ended by signal {status - SIGNAL_STATUS}", "failed")
        return LastState("deleted while it ran", "cancelled") if is_deleted else ended_by_signal
    return LastState(f"finished with Exit_status {status}", "exited" if status else "completed")


def _is_owned_by_user(fields: Mapping[str, Any]) -> bool:
    owner = str(fields.get("Job_Owner", ""))
    return not owner or owner.partition("@")[0] == getpass.getuser()


def _is_unknown_option(error: CommandFailed) -> bool:
    return bool(UNKNOWN_OPTION.search(error.message))


def _is_unknown_job(error: CommandFailed) -> bool:
    return error.code == UNKNOWN_JOB or "unknown job id" in error.message.lower()


def _is_history_unavailable(error: CommandFailed) -> bool:
    return _is_unknown_option(error) or _is_unknown_job(error) or "not configured to maintain" in error.message.lower()
