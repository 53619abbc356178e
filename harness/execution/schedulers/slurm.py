"""Jobs of a Slurm cluster, by sbatch, squeue, scancel, and sacct or scontrol for how they ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.execution.schedulers import command as commands
from harness.execution.schedulers import slurm_answers as answers
from harness.execution.schedulers.base import Ending, Queued, QueueFull, Refused, Scheduler
from harness.execution.schedulers.command import CommandFailed

ASKED_AT_ONCE = 200


class SlurmScheduler(Scheduler):
    """Jobs are asked for by id, arrays by that of the array; by name only where no id is known.

    `--export` is not given to sbatch: a job gets the user's environment without Slurm's variables, unless the site's
    directives say otherwise.
    """

    command = "sbatch"
    arrays = True

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """Jobs by id, and this user's by name, in hidden partitions too."""
        found = []
        bases = list(dict.fromkeys(answers.base_of(job) for job in ids if answers.is_job(job)))
        for some in _slices(bases):
            found += answers.read_queue(_list_jobs(some), (), ids)
        if names:
            known = {queued.id for queued in found}
            found += [q for q in answers.read_queue(_list_all("--me"), names, ()) if q.id not in known]
        return found

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """sbatch; a job starts after others whether they ended well or not: its script looks at their cases."""
        words = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        try:
            return self._sbatch([*words, str(script)], name)
        except Refused as error:
            if not after or not answers.DEPENDENCY.search(str(error)):
                raise
        living = {queued.id for queued in self.queue((), after)}
        return self.submit(script, name, [job for job in after if job in living] if len(living) < len(after) else ())

    def submit_array(self, script: Path, name: str) -> str:
        """sbatch of a script that holds its own --array."""
        return self._sbatch([str(script)], name)

    def _sbatch(self, words: Sequence[str], name: str) -> str:
        """One job, though a try that seemed to fail may have been heard."""
        patience = commands.Patience()
        is_taken = False
        while True:
            if not is_taken:
                try:
                    output = commands.once(["sbatch", "--parsable", *words])
                    job = answers.read_job_id(output)
                    if job is not None:
                        return job
                    is_taken = True
                    error = CommandFailed(["sbatch"], 0, f"no job id in its answer {output.strip()!r}")
                except CommandFailed as failure:
                    error = failure
                    _raise_if_refused(failure)
            patience.wait(error)
            heard = self.queue([name])
            if heard:
                return answers.base_of(heard[0].id)

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """scancel; it is no error if a job has ended meanwhile."""
        for some in _slices(ids):
            try:
                commands.once(["scancel", *(["--signal=KILL"] if force else []), *some])
            except CommandFailed as error:
                if "invalid job id" not in error.said.lower():
                    raise

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """From the accounting where there is one, else from the controller, which forgets after some minutes.

        The accounting may go on to list a job as alive that the controller has lost: the controller is asked as well.
        """
        asked = [job for job in ids if answers.is_job(job)]
        found: dict[str, Ending] = {}
        for some in _slices(list(dict.fromkeys(answers.base_of(job) for job in asked))):
            found |= _accounted(some, asked)
        unsure = [job for job in asked if job not in found or found[job].kind == "alive"]
        for base in dict.fromkeys(answers.base_of(job) for job in unsure):
            tasks = [job for job in unsure if answers.base_of(job) == base]
            try:
                text = commands.once(["scontrol", "--all", "show", "job", "--oneliner", base])
            except CommandFailed as error:
                if _is_unknown(error):
                    found = {job: ending for job, ending in found.items() if job not in tasks}
                continue
            found |= answers.read_controller(text, tasks)
        return found


def _list_all(*options: str) -> str:
    words = ["squeue", "--all", *options, "--noheader", "--array", f"--format={answers.FORMAT}"]
    if "--me" in options:  # no id is asked for, so that none can be unknown
        return commands.patiently(words)
    return commands.patiently(words, hopeless=_is_unknown)


def _list_jobs(bases: Sequence[str]) -> str:
    """What squeue says of jobs; where one that it has forgotten spoils the answer, they are asked for in halves."""
    try:
        return _list_all(f"--jobs={','.join(bases)}")
    except CommandFailed as error:
        if not _is_unknown(error):
            raise
    middle = len(bases) // 2
    return "\n".join(map(_list_jobs, (bases[:middle], bases[middle:]))) if middle else ""


def _accounted(bases: Sequence[str], ids: Collection[str]) -> dict[str, Ending]:
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={','.join(bases)}"]
    try:
        return answers.read_accounting(commands.once(words), ids)
    except CommandFailed:
        return {}


def _is_unknown(error: CommandFailed) -> bool:
    return "invalid job id" in error.said.lower()


def _raise_if_refused(error: CommandFailed) -> None:
    """Raise what sbatch's words mean, unless the controller may answer otherwise soon."""
    if error.code in (126, 127):
        raise Refused(str(error)) from None
    match answers.judge_refusal(error.said) if error.code is not None else "away":
        case "full":
            raise QueueFull(error.said) from None
        case "unclear":
            raise QueueFull(error.said, may_be_for_good=True) from None
        case "never":
            raise Refused(str(error)) from None


def _slices(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[k : k + ASKED_AT_ONCE] for k in range(0, len(ids), ASKED_AT_ONCE)]
