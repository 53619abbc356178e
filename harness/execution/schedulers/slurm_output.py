"""Parse the output of Slurm's commands: job ids, queues, accounting, and the reasons for rejections."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.execution.schedulers.base import LastState, QueueEntry, StateKind

QUEUE_FORMAT = "%i|%j|%T|%r"
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
# States that the infrastructure causes, after which a job may be tried again, and those that the job itself causes.
INFRASTRUCTURE_FAILURES = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "RECONFIG_FAIL", "LAUNCH_FAILED")
JOB_FAILURES = ("TIMEOUT", "OUT_OF_MEMORY", "DEADLINE")
KINDS: dict[str, StateKind] = {
    "COMPLETED": "completed",
    "FAILED": "exited",
    "CANCELLED": "cancelled",
    **dict.fromkeys(JOB_FAILURES, "failed"),
    **dict.fromkeys(INFRASTRUCTURE_FAILURES, "retryable"),
    **dict.fromkeys((*RUNNING, *WAITING), "alive"),
}
# Reasons why ordinary jobs wait, and reasons for which a job never starts unless somebody intervenes.
USUAL_REASONS = re.compile(
    r"|None|Priority|Resources|Dependency|BeginTime|JobArrayTaskLimit|Licenses|Prolog|Cleaning|Reservation|"
    r"(Assoc|QOS)(Grp|Max)\w*Limit|MaxMemPerLimit|Nodes required for job are DOWN.*"
)
STUCK_REASONS = re.compile(
    r"requeued.{1,4}held|JobHeld|JobHoldMaxRequeue|BadConstraints|PartitionTimeLimit|PartitionNodeLimit|"
    r"DependencyNeverSatisfied|Invalid(Account|QOS)|(Account|QOS)NotAllowed|PerJob(Limit)?$|NotSatisfied$|DeadLine|"
    r"ReservationDeleted",
    re.IGNORECASE,
)
# sbatch: the controller does not answer, or cannot answer now.
UNAVAILABLE_ERRORS = re.compile(
    r"munge|authenticat|unable to contact|timed out|zero bytes|communicat|connect|rate limit|standby|unable to resolve|"
    r"resource temporarily|transport endpoint|credential|I/O error writing|shutting down|message (send|receive)|"
    r"unspecified error|broken pipe",
    re.IGNORECASE,
)
# sbatch: this job, or any further job, is not accepted now.
QUEUE_FULL_ERRORS = re.compile(
    r"submit\w* ?jobs? ?(per ?user ?)?\w*limit|MaxSubmitJobs?|MaxJobCount|job count limit|too many jobs|"
    r"invalid job array specification|down, drained or reserved|inactive or drain|nodes are busy|not usable now|"
    r"not available now|reservation is in use|licenses currently",
    re.IGNORECASE,
)
# Slurm prints this for temporary and permanent limits; newer versions name the limit in the line before.
POLICY_ERRORS = re.compile(r"job violates accounting/QOS policy", re.IGNORECASE)
NAMED_LIMIT = re.compile(r"\b(Assoc|QOS|Max)\w*(Limit|PerAccount|NotSatisfied)\b")
PERMANENT_ERRORS = re.compile(
    r"invalid|not available|not allowed|not permitted|unrecognized option|unable to open file|job violates|"
    r"more processors requested|can not be satisfied|access/permission denied|exceeds|no such command|"
    r"node count specification|not found|required partition|pathname|must not|not supported|presently disabled|"
    r"dependency|missing|needs to be provided|unable to determine|too large|does not exist|access denied",
    re.IGNORECASE,
)
DEPENDENCY_ERRORS = re.compile(r"dependency (problem|.*invalid)|invalid.*dependency", re.IGNORECASE)
SUBMISSION = re.compile(r"(?:Submitted batch job )?(\d+)(?:;[\w.-]+| on cluster \S+)?")
JOB_ID = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:%.-]*)\]?))?")
TASK_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")

Rejection = Literal["unavailable", "full", "unclear", "permanent"]


@dataclass(frozen=True)
class Tasks:
    """Some tasks of an array.

    Attributes:
        ranges: the first task, the last task and the step of each range.
        is_truncated: whether there are more tasks that were not printed.
    """

    ranges: tuple[tuple[int, int, int], ...]
    is_truncated: bool

    def may_contain(self, task: int) -> bool:
        """Return whether the task is, or may be, one of them."""
        return self.is_truncated or any(a <= task <= b and (task - a) % step == 0 for a, b, step in self.ranges)


def parse_tasks(text: str) -> Tasks:
    """Parse `1-6%2`, `1,3-5` or `1-9:2`; a truncated (`1-6...`) or unreadable part stands for any task."""
    ranges = []
    is_truncated = False
    for part in text.partition("%")[0].split(","):
        result = TASK_RANGE.fullmatch(part)
        if result:
            first = int(result[1])
            ranges.append((first, int(result[2] or first), int(result[3] or 1) or 1))
        else:
            is_truncated = True
    return Tasks(tuple(ranges), is_truncated)


def get_array_id(job: str) -> str:
    """Return the id of the array that a task belongs to, or of the job itself."""
    return job.partition("_")[0]


def is_job_id(text: str) -> bool:
    """Return whether the text is the id of one job or task."""
    result = JOB_ID.fullmatch(text)
    return result is not None and result[3] is None


def parse_job_id(output: str) -> str | None:
    """Return the id on the last line of sbatch that has one, since sites print other lines too; None without an id."""
    ids = [match[1] for line in output.splitlines() if (match := SUBMISSION.fullmatch(line.strip()))]
    return ids[-1] if ids else None


def classify_rejection(message: str) -> Rejection:
    """Return the kind of rejection that a message of sbatch describes.

    Returns:
        "unavailable": the controller cannot answer now; "full": it does not accept the job now; "permanent": it will
        never accept the job; "unclear": the job exceeds a limit that may be temporary or permanent.
    """
    if QUEUE_FULL_ERRORS.search(message):
        return "full"
    if POLICY_ERRORS.search(message):
        return "permanent" if NAMED_LIMIT.search(message) else "unclear"
    is_unavailable = UNAVAILABLE_ERRORS.search(message) or not PERMANENT_ERRORS.search(message)
    return "unavailable" if is_unavailable else "permanent"


def parse_queue(text: str, names: Collection[str], ids: Collection[str]) -> list[QueueEntry]:
    """Parse the lines of squeue (QUEUE_FORMAT) about these jobs; a truncated line still shows that its job exists."""
    result = []
    by_array = _group_by_array(ids)
    for line in text.splitlines():
        printed_id, name, state, reason = (field.strip() for field in f"{line}|||".split("|")[:4])
        if not JOB_ID.fullmatch(printed_id) or KINDS.get(state, "alive") != "alive":
            continue
        jobs = {*([printed_id] if name in names else []), *_find_members(printed_id, by_array)}
        is_waiting = state not in RUNNING
        is_stuck = is_waiting and bool(STUCK_REASONS.search(reason))
        is_unusual = is_stuck or (is_waiting and not USUAL_REASONS.fullmatch(reason))
        job_state: Literal["waiting", "running"] = "waiting" if is_waiting else "running"
        job_reason = "" if reason == "None" else reason
        result += [
            QueueEntry(job, name, job_state, job_reason, is_unusual=is_unusual, is_stuck=is_stuck) for job in jobs
        ]
    return result


def parse_accounting(text: str, names: Mapping[str, str]) -> dict[str, LastState]:
    """Return the last known state by id of the jobs with these ids and names from the lines `JobID|State|JobName`."""
    rows = ([field.strip() for field in line.split("|", 2)] for line in text.splitlines() if line.count("|") >= 2)
    return _collect_last_states(rows, names)


def parse_controller(text: str, names: Mapping[str, str]) -> dict[str, LastState]:
    """Return the last known state by id of the jobs with these ids and names from `scontrol show job --oneliner`."""
    rows = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(JobId|ArrayJobId|ArrayTaskId|JobState|JobName)=(\S+)", line))
        if "ArrayJobId" in fields and "ArrayTaskId" in fields:
            task = fields["ArrayTaskId"]
            printed_id = f"{fields['ArrayJobId']}_{task}" if task.isdigit() else f"{fields['ArrayJobId']}_[{task}]"
        else:
            printed_id = fields.get("JobId", "")
        rows.append([printed_id, fields.get("JobState", ""), fields.get("JobName", "")])
    return _collect_last_states(rows, names)


def _collect_last_states(rows: Iterable[Sequence[str]], names: Mapping[str, str]) -> dict[str, LastState]:
    """Return the last known state of the jobs with these ids and names from rows of printed id, state and name.

    A row about one task has precedence over a row about several, and a later row over an earlier one.
    """
    whole_arrays: dict[str, LastState] = {}
    task_ranges: dict[str, LastState] = {}
    single_tasks: dict[str, LastState] = {}
    by_array = _group_by_array(names)
    for printed_id, state, name in rows:
        word = state.split()[0].rstrip("+") if state.split() else ""
        kind = KINDS.get(word)
        if kind is not None and JOB_ID.fullmatch(printed_id):
            is_single = is_job_id(printed_id)
            result = task_ranges if not is_single else single_tasks if printed_id in names else whole_arrays
            members = [job for job in _find_members(printed_id, by_array) if names[job] == name]
            result.update(dict.fromkeys(members, LastState(state, kind)))
    return whole_arrays | task_ranges | single_tasks


def _group_by_array(ids: Collection[str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = defaultdict(list)
    for job in ids:
        result[get_array_id(job)].append(job)
    return result


def _find_members(printed_id: str, by_array: Mapping[str, list[str]]) -> list[str]:
    """Return the jobs, out of those grouped by array, to which a printed id such as `101_[1-6%2]` refers.

    Slurm may list an array of which no task has started as `101`.
    """
    parts = JOB_ID.fullmatch(printed_id)
    if parts is None:
        return []
    jobs = by_array.get(parts[1], [])
    if parts[3] is None:
        return [job for job in jobs if job == printed_id] if parts[2] else jobs
    tasks = parse_tasks(parts[3])
    return [job for job in jobs if (task := job.partition("_")[2]).isdigit() and tasks.may_contain(int(task))]
