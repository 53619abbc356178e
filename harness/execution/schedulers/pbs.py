"""Jobs of PBS Professional or OpenPBS, by qsub, qstat and qdel."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.execution.schedulers import command as commands
from harness.execution.schedulers.base import Ending, Queued, QueueFull, Refused, Scheduler
from harness.execution.schedulers.command import CommandFailed

EXCEEDED = {-25: "cores", -27: "memory", -29: "walltime"}
# Letters of job_state (qstat(1B)): all but these two groups are over.
WAITING, RUNNING = "QHWT", "RSEUB"
# Of limits that pass as jobs end, the server says `would exceed ...` or `Maximum number of jobs ...`; what one job asks
# for by itself `violates` or `exceeds` a limit for good. (openpbs, src/lib/Liblog/pbs_messages.c)
FULL = re.compile(
    r"would exceed|maximum number of jobs|queue is not enabled|request not allowed: server shutting down|"
    r"exceeds server or queue size limit",
    re.IGNORECASE,
)
AWAY = re.compile(
    r"cannot connect|connection|no free connections|end of file|timed? ?out|temporarily|may retry|batch protocol error|"
    r"expired credential|communication|server internal error|broken pipe|munge|could not contact",
    re.IGNORECASE,
)
NEVER = re.compile(
    r"unknown|illegal|invalid|unauthorized|not permitted|cannot|exceeds|exceeded|no such|undefined|no default|"
    r"not found|has finished|did not satisfy|"
    r"violates|is required|denied|not allowed|rejected|bad uid|bad gid|bad effective|bad time|must|mutually exclusive|"
    r"too long|too big|not supported|specification error|no support|unable to open",
    re.IGNORECASE,
)
DEPENDENCY = re.compile(r"unknown job id|job dependency|job has finished|did not satisfy dependency", re.IGNORECASE)
HOPELESS = re.compile(r"can never run|too many failed attempts", re.IGNORECASE)
# The last line of qsub that is an id: `12.server`, `12[].server`; Slurm's qsub gives the number alone.
JOB = re.compile(r"\d+(\[\d*\])?(\.[\w.-]+)?")
TERMINATED = 91
ASKED_AT_ONCE = 200
# What qdel says of a job that has ended; the qdel that comes with Slurm says nothing.
GONE = re.compile(r"unknown|has finished|not found|invalid job id|illegally formed|^exit code 1$", re.IGNORECASE)
# What qstat says of one.
ENDED = re.compile(r"unknown job ?id|job has finished|invalid job id", re.IGNORECASE)
TEXT_JOB = re.compile(r"^Job Id:\s+(\S+)", re.MULTILINE)
TEXT_FIELD = re.compile(r"([\w.]+) = (.*)")
# PBSE_UNKJOBID (15001) as an exit code.
NO_SUCH_JOB = 15001 % 256


class PbsScheduler(Scheduler):
    """Jobs are asked for by id, as text, since servers break JSON of several jobs; by name only where no id is known.

    The server's history, of all its users and of weeks, is asked only about the jobs that have gone.
    """

    command = "qsub"

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """The jobs with these ids, and this user's with these names, that are still to end."""
        found: dict[str, dict[str, Any]] = {}
        asked = [job for job in dict.fromkeys(ids) if JOB.fullmatch(job)]
        for k in range(0, len(asked), ASKED_AT_ONCE):
            found |= {job: fields for job, fields in _known(asked[k : k + ASKED_AT_ONCE]).items() if job in asked}
        if names:
            mine = ((job, fields) for job, fields in _jobs().items() if _is_ours(fields))
            found |= {job: fields for job, fields in mine if str(fields.get("Job_Name", "")) in names}
        return [queued for job, fields in found.items() if (queued := _queued(job, fields))]

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """qsub; a job starts after others whether they ended well or not: its script looks at their cases."""
        words = ["-W", f"depend=afterany:{':'.join(after)}"] if after else []
        try:
            return self._qsub([*words, str(script)], name)
        except Refused as error:
            if not after or not DEPENDENCY.search(str(error)):
                raise
        living = {queued.id for queued in self.queue((), after)}
        return self.submit(script, name, [job for job in after if job in living] if len(living) < len(after) else ())

    def _qsub(self, words: Sequence[str], name: str) -> str:
        """One job, though a try that seemed to fail may have been heard."""
        patience = commands.Patience()
        is_taken = False
        while True:
            if not is_taken:
                try:
                    output = commands.once(["qsub", *words])
                    job = read_job_id(output)
                    if job is not None:
                        return job
                    is_taken = True
                    error = CommandFailed(["qsub"], 0, f"no job id in its answer {output.strip()!r}")
                except CommandFailed as failure:
                    error = failure
                    _raise_if_refused(failure)
            patience.wait(error)
            heard = self.queue([name])
            if heard:
                return heard[0].id

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """qdel, job by job: it is no error if one has ended meanwhile, and the others are asked all the same."""
        failed = None
        for job in ids:
            try:
                commands.once(["qdel", *(["-W", "force"] if force else []), job])
            except CommandFailed as error:
                if not GONE.search(error.said):
                    failed = error
        if failed:
            raise failed

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """From the history that qstat -x keeps."""
        found = {}
        for job in (job for job in ids if JOB.fullmatch(job)):
            fields = _history(job)
            ending = ending_of(fields) if fields else None
            if ending:
                found[job] = ending
        return found


def read_job_id(output: str) -> str | None:
    """The last line that is a job's id, whatever a site prints around it."""
    found = [line.strip() for line in output.splitlines() if JOB.fullmatch(line.strip())]
    return found[-1] if found else None


def _raise_if_refused(error: CommandFailed) -> None:
    """Raise what qsub's words mean, unless the server may answer otherwise soon."""
    if error.code in (126, 127):
        raise Refused(str(error)) from None
    if error.code is None:
        return
    if FULL.search(error.said):
        raise QueueFull(error.said) from None
    if NEVER.search(error.said) and not AWAY.search(error.said):
        raise Refused(str(error)) from None


def _queued(job: str, fields: Mapping[str, Any]) -> Queued | None:
    """A job that is still to end; one that is held, but not for other jobs, will not start by itself."""
    letter = str(fields.get("job_state", ""))
    name, comment = str(fields.get("Job_Name", "")), str(fields.get("comment", ""))
    if letter not in (*WAITING, *RUNNING):
        return None
    if letter in RUNNING:
        return Queued(job, name, "running", comment)
    is_held = letter == "H" and "depend" not in fields
    is_hopeless = is_held or bool(HOPELESS.search(comment))
    held = f"held (Hold_Types {fields.get('Hold_Types', '?')})" if is_held else ""
    return Queued(job, name, "waiting", comment or held, is_odd=is_hopeless, is_hopeless=is_hopeless)


def _known(jobs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What qstat tells of jobs by their ids; it fails if one of them has ended, and tells of the others then too."""
    try:
        text = commands.patiently(["qstat", "-f", *jobs], hopeless=_has_only_ended)
    except CommandFailed as error:
        if not _has_only_ended(error):
            raise
        text = error.output
    with suppress(ValueError):
        if text.startswith("{"):  # servers that are set to answer so
            return parse_json(text)
    return parse_text(text)


def _has_only_ended(error: CommandFailed) -> bool:
    """Whether the only complaint is of jobs that the server has no more, or that have finished."""
    if error.code is None or AWAY.search(error.said):
        return False
    return error.code == NO_SUCH_JOB or bool(ENDED.search(error.said))


def _jobs() -> dict[str, dict[str, Any]]:
    """Every job that is still to end, by id: as JSON where that is sound, else as text."""
    try:
        return parse_json(commands.patiently(["qstat", "-f", "-F", "json"], hopeless=_no_such_option))
    except (CommandFailed, ValueError):
        pass
    try:
        return parse_text(commands.patiently(["qstat", "-f"], hopeless=_no_such_job))
    except CommandFailed as error:
        if _no_such_job(error):
            return {}
        raise


def _history(job: str) -> dict[str, Any]:
    """What the server still knows of a job; nothing if it has forgotten it or keeps no history."""
    for words in (["-F", "json"], []):
        try:
            text = commands.patiently(["qstat", "-x", "-f", *words, job], hopeless=_no_answer)
            return (parse_text(text) if not words else parse_json(text)).get(job, {})
        except (CommandFailed, ValueError):
            continue
    return {}


def parse_json(text: str) -> dict[str, dict[str, Any]]:
    """Jobs of `qstat -f -F json`; raises ValueError where it is no JSON, as happens with odd environment variables."""
    if not text.strip():
        return {}
    try:
        answer = json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("nested without end") from None
    jobs = answer.get("Jobs", {}) if isinstance(answer, dict) else None
    if not isinstance(jobs, dict):
        raise ValueError("no jobs in it")
    return {str(job): fields for job, fields in jobs.items() if isinstance(fields, dict)}


def parse_text(text: str) -> dict[str, dict[str, Any]]:
    """Jobs of `qstat -f`: indented `name = value` lines.

    Where fields begin with spaces, a line that begins with a tab goes on with the value above, whatever it looks like.
    """
    pieces = TEXT_JOB.split(text)[1:]
    found: dict[str, dict[str, Any]] = {}
    for job, body in zip(pieces[::2], pieces[1::2], strict=True):
        fields = found[job] = {}
        indent = "    " if re.search(r"^    [\w.]+ = ", body, re.MULTILINE) else "\t"
        name = ""
        for line in body.splitlines():
            field = TEXT_FIELD.fullmatch(line.removeprefix(indent)) if line.startswith(indent) else None
            if field:
                name = field[1]
                fields[name] = field[2]
            elif line.startswith("\t") and name:
                fields[name] += line[1:]
    return found


def ending_of(fields: Mapping[str, Any]) -> Ending | None:
    """What became of a job, by the server's history.

    Exit_status (openpbs, src/include/job.h): negative: the server's doing, of which -25, -27 and -29 are cores, memory
    and walltime exceeded; 256 + n: ended by signal n. It means nothing before the job is finished. A substate of 91:
    deleted.
    """
    letter = str(fields.get("job_state", ""))
    if letter != "F":
        return Ending(f"state {letter}", "alive") if letter in (*WAITING, *RUNNING) else None
    text = str(fields.get("Exit_status", ""))
    if not re.fullmatch(r"-?\d{1,9}", text):
        return Ending("deleted while it waited", "cancelled")
    status = int(text)
    if status < 0:
        exceeded = Ending(f"{EXCEEDED.get(status)} exceeded", "failed")
        return exceeded if status in EXCEEDED else Ending(f"PBS could not run it (Exit_status {status})", "again")
    if status > 256:
        is_deleted = str(fields.get("substate", "")) == str(TERMINATED)
        how = "deleted while it ran" if is_deleted else f"ended by signal {status - 256}"
        return Ending(how, "cancelled" if is_deleted else "failed")
    return Ending(f"finished with Exit_status {status}", "exited" if status else "completed")


def _is_ours(fields: Mapping[str, Any]) -> bool:
    owner = str(fields.get("Job_Owner", ""))
    return not owner or owner.partition("@")[0] == getpass.getuser()


def _no_such_option(error: CommandFailed) -> bool:
    return bool(re.search(r"usage|unknown option|invalid option|illegal option", error.said, re.IGNORECASE))


def _no_such_job(error: CommandFailed) -> bool:
    return error.code == NO_SUCH_JOB or "unknown job id" in error.said.lower()


def _no_answer(error: CommandFailed) -> bool:
    return _no_such_option(error) or _no_such_job(error) or "not configured to maintain" in error.said.lower()
