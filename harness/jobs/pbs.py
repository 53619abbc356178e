"""Jobs of PBS Professional or OpenPBS, by qsub, qstat and qdel."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.jobs import commands
from harness.jobs.commands import CommandFailed
from harness.jobs.scheduler import Ending, Queued, QueueFull, Refused, Scheduler

EXCEEDED = {-25: "cores", -27: "memory", -29: "walltime"}
# Letters of job_state (qstat(1B)): all but these two groups are over.
WAITING, RUNNING = "QHWT", "RSEUB"
NEVER = re.compile(
    r"unknown|illegal|invalid|unauthorized|not permitted|cannot exceed|exceeds|no such|undefined|would exceed|"
    r"no default|not found|violates|is required|denied|not allowed|bad uid|bad gid",
    re.IGNORECASE,
)
FULL = re.compile(r"would exceed.*(limit|max).*(jobs?|user)|maximum number of jobs", re.IGNORECASE)
# What qdel says of a job that has ended; the qdel that comes with Slurm says nothing.
GONE = re.compile(r"unknown|has finished|not found|invalid job id|illegally formed|^exit code 1$", re.IGNORECASE)
TEXT_JOB = re.compile(r"^Job Id:\s+(\S+)", re.MULTILINE)
TEXT_FIELD = re.compile(r"([\w.]+) = (.*)")
# PBSE_UNKJOBID (15001) as an exit code.
NO_SUCH_JOB = 15001 % 256


class PbsScheduler(Scheduler):
    """Jobs are known by their names; one qstat tells about all of them that are still to end.

    The server's history, of all its users and of weeks, is asked only about the jobs that have gone.
    """

    command = "qsub"

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """This user's jobs with these names or ids that are still to end."""
        if not names and not ids:
            return []
        found = []
        for job, fields in _jobs().items():
            letter = str(fields.get("job_state", ""))
            name = str(fields.get("Job_Name", ""))
            if (name in names or job in ids) and letter in WAITING + RUNNING and _is_ours(fields):
                comment = str(fields.get("comment", ""))
                found.append(Queued(job, name, "waiting" if letter in WAITING else "running", comment))
        return found

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """qsub; a job starts after others whether they ended well or not: its script looks at their cases."""
        words = ["-W", f"depend=afterany:{':'.join(after)}"] if after else []
        pauses = commands.Pauses(commands.FIRST_PAUSE_S, commands.LONGEST_PAUSE_S)
        for _ in range(10):
            try:
                answer = commands.once(["qsub", *words, str(script)]).split()
                if answer:
                    return answer[-1]
                last = CommandFailed(["qsub"], 0, "no job id in its answer")
            except CommandFailed as error:
                if FULL.search(error.said):
                    raise QueueFull(error.said) from None
                if error.code == 127 or NEVER.search(error.said):
                    raise Refused(str(error)) from None
                last = error
            pauses.sleep()
            heard = self.queue([name])
            if heard:
                return heard[0].id
        raise commands.SchedulerBusy(str(last))

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
        for job in ids:
            fields = _history(job)
            ending = ending_of(fields) if fields else None
            if ending:
                found[job] = ending
        return found


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
    jobs = json.loads(text, strict=False).get("Jobs", {})
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
    """Why a finished job ended, if not by its script's own exit.

    Exit_status (openpbs, src/include/job.h): negative: the server's doing, of which -25, -27 and -29 are cores, memory
    and walltime exceeded; 256 + n: ended by signal n. It means nothing before the job is finished.
    """
    if fields.get("job_state") != "F":
        return None
    if not re.fullmatch(r"-?\d+", str(fields.get("Exit_status", ""))):
        return Ending("deleted while it waited", False)
    status = int(fields["Exit_status"])
    if status in EXCEEDED:
        return Ending(f"{EXCEEDED[status]} exceeded", False)
    if status < 0:
        return Ending(f"PBS could not run it (Exit_status {status})", True)
    if status > 256:
        return Ending(f"ended by signal {status - 256}", False)
    return None


def _is_ours(fields: Mapping[str, Any]) -> bool:
    owner = str(fields.get("Job_Owner", ""))
    return not owner or owner.partition("@")[0] == getpass.getuser()


def _no_such_option(error: CommandFailed) -> bool:
    return bool(re.search(r"usage|unknown option|invalid option|illegal option", error.said, re.IGNORECASE))


def _no_such_job(error: CommandFailed) -> bool:
    return error.code == NO_SUCH_JOB or "unknown job id" in error.said.lower()


def _no_answer(error: CommandFailed) -> bool:
    return _no_such_option(error) or _no_such_job(error) or "not configured to maintain" in error.said.lower()
