"""Jobs of a Slurm cluster, by sbatch, squeue, scancel, and sacct or scontrol for how they ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.execution.schedulers import command as commands
from harness.execution.schedulers import slurm_output
from harness.execution.schedulers.base import ExitInfo, JobRejected, QueueEntry, QueueFull
from harness.execution.schedulers.command import CommandFailed, CommandScheduler


class SlurmScheduler(CommandScheduler):
    """Jobs are queried by id, arrays by that of the array; by name only where no id is known.

    `--export` is not given to sbatch: a job gets the user's environment without Slurm's variables, unless the site's
    directives say otherwise.
    """

    command = "sbatch"
    submit_command = ("sbatch", "--parsable")
    dependency_errors = slurm_output.DEPENDENCY_ERRORS
    supports_arrays = True

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return jobs by id, and this user's by name, in hidden partitions too."""
        entries = []
        bases = list(dict.fromkeys(slurm_output.array_id(job) for job in ids if slurm_output.is_job_id(job)))
        for batch in commands.batches(bases):
            entries += slurm_output.parse_queue(_query_jobs(batch), (), ids)
        if names:
            known = {entry.id for entry in entries}
            mine = slurm_output.parse_queue(_query_queue("--me"), names, ())
            entries += [entry for entry in mine if entry.id not in known]
        return entries

    def dependency_options(self, after: Sequence[str]) -> list[str]:
        """Return sbatch's option for jobs to start after."""
        return [f"--dependency=afterany:{':'.join(after)}"]

    def read_job_id(self, output: str) -> str | None:
        """Return the last line of sbatch that is an id."""
        return slurm_output.read_job_id(output)

    def raise_if_rejected(self, error: CommandFailed) -> None:
        """Raise what sbatch's message means, unless the controller may answer otherwise soon."""
        if error.is_unusable:
            raise JobRejected(str(error)) from None
        match slurm_output.classify_rejection(error.message) if error.code is not None else "unavailable":
            case "full":
                raise QueueFull(error.message) from None
            case "unclear":
                raise QueueFull(error.message, may_be_permanent=True) from None
            case "permanent":
                raise JobRejected(str(error)) from None

    def submission_id(self, entry: QueueEntry) -> str:
        """Return the id of the job, or of the array that the task belongs to."""
        return slurm_output.array_id(entry.id)

    def submit_array(self, script: Path, name: str) -> str:
        """Submit a script that contains its own --array."""
        return self.submit_with_retry([str(script)], name)

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Call scancel; it is no error if a job has ended meanwhile."""
        for batch in commands.batches(ids):
            try:
                commands.run_once(["scancel", *(["--signal=KILL"] if force else []), *batch])
            except CommandFailed as error:
                if not _is_unknown(error):
                    raise

    def exit_info(self, ids: Sequence[str]) -> Mapping[str, ExitInfo]:
        """Query the accounting where there is one, else the controller, which forgets jobs after some minutes.

        The accounting may still list a job as alive that the controller has lost, so the controller is queried as well.
        """
        jobs = [job for job in ids if slurm_output.is_job_id(job)]
        result: dict[str, ExitInfo] = {}
        for batch in commands.batches(list(dict.fromkeys(slurm_output.array_id(job) for job in jobs))):
            result |= _query_sacct(batch, jobs)
        unsure = [job for job in jobs if job not in result or result[job].kind == "alive"]
        for base in dict.fromkeys(slurm_output.array_id(job) for job in unsure):
            tasks = [job for job in unsure if slurm_output.array_id(job) == base]
            try:
                result |= _query_scontrol(base, tasks)
            except CommandFailed as error:
                if _is_unknown(error):
                    result = {job: info for job, info in result.items() if job not in tasks}
        return result


def _query_queue(*options: str) -> str:
    arguments = ["squeue", "--all", *options, "--noheader", "--array", f"--format={slurm_output.QUEUE_FORMAT}"]
    if "--me" in options:  # no id is given, so that none can be unknown
        return commands.run_with_retry(arguments)
    return commands.run_with_retry(arguments, is_permanent=_is_unknown)


def _query_jobs(bases: Sequence[str]) -> str:
    """Return what squeue prints of jobs; where one that it has forgotten is an error, query them in halves."""
    try:
        return _query_queue(f"--jobs={','.join(bases)}")
    except CommandFailed as error:
        if not _is_unknown(error):
            raise
    middle = len(bases) // 2
    return "\n".join(map(_query_jobs, (bases[:middle], bases[middle:]))) if middle else ""


def _query_sacct(bases: Sequence[str], ids: Collection[str]) -> dict[str, ExitInfo]:
    arguments = [
        "sacct",
        "--noheader",
        "--allocations",
        "--parsable2",
        "--format=JobID,State",
        f"--jobs={','.join(bases)}",
    ]
    try:
        return slurm_output.parse_accounting(commands.run_once(arguments), ids)
    except CommandFailed:
        return {}


def _query_scontrol(base: str, ids: Collection[str]) -> dict[str, ExitInfo]:
    output = commands.run_once(["scontrol", "--all", "show", "job", "--oneliner", base])
    return slurm_output.parse_controller(output, ids)


def _is_unknown(error: CommandFailed) -> bool:
    return "invalid job id" in error.message.lower()
