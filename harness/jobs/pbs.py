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
    r"no default|not found|violates",
    re.IGNORECASE,
)
FULL = re.compile(r"would exceed.*(limit|max).*(jobs?|user)|maximum number of jobs", re.IGNORECASE)
TEXT_JOB = re.compile(r"^Job Id:\s+(\S+)", re.MULTILINE)
TEXT_FIELD = re.compile(r"^[ \t]+([\w.]+) = (.*)$")


class PbsScheduler(Scheduler):
    """Jobs are known by their names; one qstat tells about all of them, the ended ones included."""

    command = "qsub"

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """This user's jobs with these names or ids that are still to end."""
        if not names and not ids:
            return []
        found = []
        for job, fields in self._jobs().items():
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
                return commands.once(["qsub", *words, str(script)]).split()[-1]
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
        """qdel, job by job: it is no error if one has ended meanwhile."""
        for job in ids:
            try:
                commands.once(["qdel", *(["-W", "force"] if force else []), job])
            except CommandFailed as error:
                if not re.search(r"unknown|has finished|not found|invalid job id", error.said, re.IGNORECASE):
                    raise

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """From the history that qstat -x keeps."""
        jobs = self._jobs()
        found = {}
        for job in ids:
            fields = jobs.get(job)
            ending = ending_of(fields) if fields else None
            if ending:
                found[job] = ending
        return found

    def _jobs(self) -> dict[str, dict[str, Any]]:
        """Every job that the server tells of, by id: as JSON where that is sound, else as text."""
        try:
            text = commands.patiently(["qstat", "-x", "-f", "-F", "json"], hopeless=_no_such_option)
            return parse_json(text)
        except CommandFailed:
            return parse_text(commands.patiently(["qstat", "-f"]))
        except ValueError:
            return parse_text(commands.patiently(["qstat", "-x", "-f"]))


def parse_json(text: str) -> dict[str, dict[str, Any]]:
    """Jobs of `qstat -f -F json`; raises ValueError where it is no JSON, as happens with odd environment variables."""
    if not text.strip():
        return {}
    jobs = json.loads(text, strict=False).get("Jobs", {})
    return {str(job): fields for job, fields in jobs.items() if isinstance(fields, dict)}


def parse_text(text: str) -> dict[str, dict[str, Any]]:
    """Jobs of `qstat -f`: indented `name = value` lines; one that starts with a tab goes on with the value above."""
    pieces = TEXT_JOB.split(text)[1:]
    found: dict[str, dict[str, Any]] = {}
    for job, body in zip(pieces[::2], pieces[1::2], strict=True):
        fields = found[job] = {}
        name = ""
        for line in body.splitlines():
            field = TEXT_FIELD.match(line)
            if field:
                name = field[1]
                fields[name] = field[2].strip()
            elif line.startswith("\t") and name:
                fields[name] += line.strip()
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
