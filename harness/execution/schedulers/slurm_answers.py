"""What Slurm's commands print, read: job ids, queues, accounting, and why a job is not taken."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.execution.schedulers.base import Ending, Queued

FORMAT = "%i|%j|%T|%r"
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED")
WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
)
# States after which a job may be tried again, and those that are its own or the user's doing.
NOT_ITS_DOING = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "RECONFIG_FAIL", "LAUNCH_FAILED")
ITS_DOING = ("TIMEOUT", "OUT_OF_MEMORY", "DEADLINE")
KINDS: dict[str, Literal["alive", "completed", "exited", "cancelled", "failed", "again"]] = {
    "COMPLETED": "completed",
    "FAILED": "exited",
    "CANCELLED": "cancelled",
    **dict.fromkeys(ITS_DOING, "failed"),
    **dict.fromkeys(NOT_ITS_DOING, "again"),
    **dict.fromkeys((*RUNNING, *WAITING), "alive"),
}
# Reasons of a queue's daily life, and those with which a job never starts unless somebody changes something.
DAILY = re.compile(
    r"|None|Priority|Resources|Dependency|BeginTime|JobArrayTaskLimit|Licenses|Prolog|Cleaning|Reservation|"
    r"(Assoc|QOS)(Grp|Max)\w*Limit|MaxMemPerLimit|Nodes required for job are DOWN.*"
)
HOPELESS = re.compile(
    r"requeued.{1,4}held|JobHeld|JobHoldMaxRequeue|BadConstraints|PartitionTimeLimit|PartitionNodeLimit|"
    r"DependencyNeverSatisfied|Invalid(Account|QOS)|(Account|QOS)NotAllowed|PerJob(Limit)?$|NotSatisfied$|DeadLine|"
    r"ReservationDeleted",
    re.IGNORECASE,
)
# sbatch: no answer from the controller, or one that says that it cannot answer now.
AWAY = re.compile(
    r"munge|authenticat|unable to contact|timed out|zero bytes|communicat|connect|rate limit|standby|unable to resolve|"
    r"resource temporarily|transport endpoint|credential|I/O error writing|shutting down|message (send|receive)|"
    r"unspecified error|broken pipe",
    re.IGNORECASE,
)
# sbatch: not this job, or no more jobs, for now.
FULL = re.compile(
    r"submit\w* ?jobs? ?(per ?user ?)?\w*limit|MaxSubmitJobs?|MaxJobCount|job count limit|too many jobs|"
    r"invalid job array specification|down, drained or reserved|inactive or drain|nodes are busy|not usable now|"
    r"not available now|reservation is in use|licenses currently",
    re.IGNORECASE,
)
# Slurm says this of limits that pass and of limits that do not; newer ones name the limit in a line before.
POLICY = re.compile(r"job violates accounting/QOS policy", re.IGNORECASE)
NAMED_LIMIT = re.compile(r"\b(Assoc|QOS|Max)\w*(Limit|PerAccount|NotSatisfied)\b")
NEVER = re.compile(
    r"invalid|not available|not allowed|not permitted|unrecognized option|unable to open file|job violates|"
    r"more processors requested|can not be satisfied|access/permission denied|exceeds|no such command|"
    r"node count specification|not found|required partition|pathname|must not|not supported|presently disabled|"
    r"dependency|missing|needs to be provided|unable to determine|too large|does not exist|access denied",
    re.IGNORECASE,
)
DEPENDENCY = re.compile(r"dependency (problem|.*invalid)|invalid.*dependency", re.IGNORECASE)
SUBMITTED = re.compile(r"(?:Submitted batch job )?(\d+)(?:;[\w.-]+| on cluster \S+)?")
JOB = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:%.-]*)\]?))?")
RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")

Verdict = Literal["away", "full", "unclear", "never"]


@dataclass(frozen=True)
class Tasks:
    """Some tasks of an array: ranges of first, last and step; is_cut: there are more that were not printed."""

    ranges: tuple[tuple[int, int, int], ...]
    is_cut: bool

    def has(self, task: int) -> bool:
        """Whether the task is, or may be, among them."""
        return self.is_cut or any(a <= task <= b and (task - a) % step == 0 for a, b, step in self.ranges)


def read_tasks(text: str) -> Tasks:
    """`1-6%2`, `1,3-5` or `1-9:2`; what is cut off (`1-6...`) or unreadable stands for any task."""
    ranges = []
    is_cut = False
    for part in text.partition("%")[0].split(","):
        result = RANGE.fullmatch(part)
        if result:
            first = int(result[1])
            ranges.append((first, int(result[2] or first), int(result[3] or 1) or 1))
        else:
            is_cut = True
    return Tasks(tuple(ranges), is_cut)


def base_of(job: str) -> str:
    """The id of the array that a task belongs to, or of the job itself."""
    return job.partition("_")[0]


def is_job(text: str) -> bool:
    """Whether it is the id of one job or task."""
    result = JOB.fullmatch(text)
    return result is not None and result[3] is None


def read_job_id(output: str) -> str | None:
    """The id in what sbatch printed: its last line that is one, whatever a site prints around it."""
    result = [match[1] for line in output.splitlines() if (match := SUBMITTED.fullmatch(line.strip()))]
    return result[-1] if result else None


def judge_refusal(message: str) -> Verdict:
    """Whether sbatch's words mean that the controller is away, takes no job now, or never takes this one."""
    if POLICY.search(message):
        named = NAMED_LIMIT.findall(message)
        return "full" if FULL.search(message) else "never" if named else "unclear"
    if FULL.search(message):
        return "full"
    return "away" if AWAY.search(message) or not NEVER.search(message) else "never"


def read_queue(text: str, names: Collection[str], ids: Collection[str]) -> list[Queued]:
    """The lines of squeue that tell of these jobs; a line that is cut off still tells that there is a job."""
    result = []
    by_base = _by_base(ids)
    for line in text.splitlines():
        row, name, state, reason = (field.strip() for field in f"{line}|||".split("|")[:4])
        if not JOB.fullmatch(row) or KINDS.get(state, "alive") != "alive":
            continue
        wanted = [row] if name in names else []
        is_waiting = state not in RUNNING
        is_hopeless = is_waiting and bool(HOPELESS.search(reason))
        for job in {*wanted, *_members(row, by_base)}:
            result.append(
                Queued(
                    job, name, "waiting" if is_waiting else "running", "" if reason == "None" else reason,
                    is_odd=is_hopeless or (is_waiting and not DAILY.fullmatch(reason)), is_hopeless=is_hopeless,
                )
            )  # fmt: skip
    return result


def read_accounting(text: str, ids: Collection[str]) -> dict[str, Ending]:
    """The lines `JobID|State` of sacct."""
    rows = (line.split("|")[:2] for line in text.splitlines() if "|" in line)
    return _endings(((row[0].strip(), row[1].strip()) for row in rows), ids)


def read_controller(text: str, ids: Collection[str]) -> dict[str, Ending]:
    """The lines of `scontrol show job --oneliner`."""
    rows = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(JobId|ArrayJobId|ArrayTaskId|JobState)=(\S+)", line))
        if "ArrayJobId" in fields and "ArrayTaskId" in fields:
            task = fields["ArrayTaskId"]
            row = f"{fields['ArrayJobId']}_{task}" if task.isdigit() else f"{fields['ArrayJobId']}_[{task}]"
        else:
            row = fields.get("JobId", "")
        rows.append((row, fields.get("JobState", "")))
    return _endings(rows, ids)


def _endings(rows: Iterator[tuple[str, str]] | list[tuple[str, str]], ids: Collection[str]) -> dict[str, Ending]:
    """What rows of job and state say of jobs: a task's own row counts before one of several, a later before another."""
    whole: dict[str, Ending] = {}
    several: dict[str, Ending] = {}
    single: dict[str, Ending] = {}
    by_base = _by_base(ids)
    for row, state in rows:
        word = state.split()[0].rstrip("+") if state.split() else ""
        kind = KINDS.get(word)
        if kind is not None and JOB.fullmatch(row):
            result = (single if row in ids else whole) if is_job(row) else several
            result.update(dict.fromkeys(_members(row, by_base), Ending(state, kind)))
    return whole | several | single


def _by_base(ids: Collection[str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = defaultdict(list)
    for job in ids:
        result[base_of(job)].append(job)
    return result


def _members(row: str, by_base: Mapping[str, list[str]]) -> list[str]:
    """Those of the jobs, given by their arrays, that a printed id such as `101_[1-6%2]` stands for.

    An array of which no task has ever started may be listed as `101`.
    """
    parts = JOB.fullmatch(row)
    if parts is None:
        return []
    asked = by_base.get(parts[1], [])
    if parts[3] is None:
        return [job for job in asked if job == row] if parts[2] else asked
    tasks = read_tasks(parts[3])
    return [job for job in asked if (task := job.partition("_")[2]).isdigit() and tasks.has(int(task))]
