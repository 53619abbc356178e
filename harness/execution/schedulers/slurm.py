"""Jobs of Slurm, through sbatch, squeue and scancel; sacct and scontrol report the last state of jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.execution.schedulers import command, slurm_output
from harness.execution.schedulers.base import JobRejected, LastState, QueueEntry, QueueFull
from harness.execution.schedulers.command import CommandFailed, CommandScheduler


class SlurmScheduler(CommandScheduler):
    """The scheduler Slurm.

    Jobs and arrays are queried by id, or by name if no id is known. sbatch is called without `--export`: a job gets the
    user's environment without Slurm's variables, unless the site's directives say otherwise.
    """

    command = "sbatch"
    submit_command = ("sbatch", "--parsable")
    dependency_errors = slurm_output.DEPENDENCY_ERRORS
    supports_arrays = True

    def list_jobs(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return jobs by id, and this user's jobs by name, including those in hidden partitions."""
        entries = []
        array_ids = list(dict.fromkeys(slurm_output.get_array_id(job) for job in ids if slurm_output.is_job_id(job)))
        for batch in command.split_ids(array_ids):
            entries += slurm_output.parse_queue(_query_jobs(batch), (), ids)
        if names:
            known = {entry.id for entry in entries}
            user_jobs = slurm_output.parse_queue(_query_queue("--me"), names, ())
            entries += [entry for entry in user_jobs if entry.id not in known]
        return entries

    def build_dependency_options(self, after: Sequence[str]) -> list[str]:
        """Return sbatch's option for dependencies."""
        return [f"--dependency=afterany:{':'.join(after)}"]

    def parse_job_id(self, output: str) -> str | None:
        """Return the job id in the output of sbatch, or None."""
        return slurm_output.parse_job_id(output)

    def raise_if_rejected(self, error: CommandFailed) -> None:
        """Raise the exception that sbatch's message implies, unless another attempt may succeed soon."""
        if error.is_unusable:
            raise JobRejected(str(error)) from None
        match slurm_output.classify_rejection(error.message) if error.code is not None else "unavailable":
            case "full":
                raise QueueFull(error.message) from None
            case "unclear":
                raise QueueFull(error.message, may_be_permanent=True) from None
            case "permanent":
                raise JobRejected(str(error)) from None

    def get_submission_id(self, entry: QueueEntry) -> str:
        """Return the id of the job, or of the array that the task belongs to."""
        return slurm_output.get_array_id(entry.id)

    def submit_array(self, script: Path, name: str) -> str:
        """Submit a script that contains its own --array."""
        return self.submit_with_retry([str(script)], name)

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Call scancel; ignore jobs that have ended."""
        for batch in command.split_ids(ids):
            try:
                command.run_once(["scancel", *(["--signal=KILL"] if force else []), *batch])
            except CommandFailed as error:
                if not _is_unknown_job(error):
                    raise

    def query_last_states(self, names: Mapping[str, str]) -> Mapping[str, LastState]:
        """Query the accounting, then the controller about jobs that are unknown or alive according to the accounting.

        The controller forgets ended jobs after some minutes. A job that is alive in the accounting but unknown to the
        controller was lost, and is omitted.
        """
        jobs = {job: name for job, name in names.items() if slurm_output.is_job_id(job)}
        result: dict[str, LastState] = {}
        for batch in command.split_ids(list(dict.fromkeys(slurm_output.get_array_id(job) for job in jobs))):
            result |= _query_sacct(batch, jobs)
        unsure = [job for job in jobs if job not in result or result[job].kind == "alive"]
        for array_id in dict.fromkeys(slurm_output.get_array_id(job) for job in unsure):
            tasks = {job: jobs[job] for job in unsure if slurm_output.get_array_id(job) == array_id}
            try:
                result |= _query_scontrol(array_id, tasks)
            except CommandFailed as error:
                if _is_unknown_job(error):
                    result = {job: last_state for job, last_state in result.items() if job not in tasks}
        return result


def _query_queue(*options: str) -> str:
    arguments = ["squeue", "--all", *options, "--noheader", "--array", f"--format={slurm_output.QUEUE_FORMAT}"]
    if "--me" in options:  # without ids, no id can be unknown
        return command.run_with_retry(arguments)
    return command.run_with_retry(arguments, is_permanent=_is_unknown_job)


def _query_jobs(array_ids: Sequence[str]) -> str:
    """Return squeue's lines about jobs; if squeue fails because it does not know one of them, query them in halves."""
    try:
        return _query_queue(f"--jobs={','.join(array_ids)}")
    except CommandFailed as error:
        if not _is_unknown_job(error):
            raise
    middle = len(array_ids) // 2
    return "\n".join(map(_query_jobs, (array_ids[:middle], array_ids[middle:]))) if middle else ""


def _query_sacct(array_ids: Sequence[str], names: Mapping[str, str]) -> dict[str, LastState]:
    arguments = [
        "sacct",
        "--noheader",
        "--allocations",
        "--parsable2",
        "--format=JobID,State,JobName",
        f"--jobs={','.join(array_ids)}",
    ]
    try:
        return slurm_output.parse_accounting(command.run_once(arguments), names)
    except CommandFailed:
        return {}


def _query_scontrol(array_id: str, names: Mapping[str, str]) -> dict[str, LastState]:
    output = command.run_once(["scontrol", "--all", "show", "job", "--oneliner", array_id])
    return slurm_output.parse_controller(output, names)


def _is_unknown_job(error: CommandFailed) -> bool:
    return "invalid job id" in error.message.lower()
