"""Jobs of a Slurm cluster, by sbatch, squeue, scancel, and sacct or scontrol for how they ended."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from harness.jobs import commands
from harness.jobs.commands import CommandFailed
from harness.jobs.scheduler import Ending, Queued, QueueFull, Refused, Scheduler

FORMAT = "%i|%j|%T|%r"
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED")
# States after which a job may be tried again, and those that are its own or the user's doing.
NOT_ITS_DOING = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "RECONFIG_FAIL", "LAUNCH_FAILED")
ITS_DOING = ("CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE")
# What sbatch says when it will never take the job; everything else may pass.
NEVER = re.compile(
    r"invalid|not available|not allowed|not permitted|unrecognized option|unable to open file|job violates|"
    r"more processors requested|can not be satisfied|unable to resolve|access/permission denied|exceeds|"
    r"no such command|node count specification|not found",
    re.IGNORECASE,
)
FULL = re.compile(r"submit(ted)? ?job ?(per ?user ?)?limit|MaxSubmitJob|job count limit|too many jobs", re.IGNORECASE)
ENDED_MAX = 200


class SlurmScheduler(Scheduler):
    """Jobs are known by their names, which no two jobs of a campaign share; one squeue tells about all of them."""

    command = "sbatch"
    arrays = True

    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """This user's jobs with these names or ids."""
        if not names and not ids:
            return []
        text = commands.patiently(["squeue", "--me", "--noheader", "--array", f"--format={FORMAT}"])
        found = []
        for line in text.splitlines():
            job, name, state, reason = f"{line}|||".split("|")[:4]
            if name in names or job in ids:
                running: Literal["running", "waiting"] = "running" if state in RUNNING else "waiting"
                found.append(Queued(job, name, running, "" if reason == "None" else reason))
        return found

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """sbatch; a job starts after others whether they ended well or not: its script looks at their cases."""
        words = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        return self._sbatch([*words, str(script)], name)

    def submit_array(self, script: Path, name: str) -> str:
        """sbatch of a script that holds its own --array."""
        return self._sbatch([str(script)], name)

    def _sbatch(self, words: Sequence[str], name: str) -> str:
        """One job, though a try that seemed to fail may have been heard."""
        pauses = commands.Pauses(commands.FIRST_PAUSE_S, commands.LONGEST_PAUSE_S)
        tries = 0
        while True:
            try:
                return commands.once(["sbatch", "--parsable", *words]).strip().split(";")[0].splitlines()[-1]
            except CommandFailed as error:
                if FULL.search(error.said):
                    raise QueueFull(error.said) from None
                if error.code == 127 or NEVER.search(error.said):
                    raise Refused(str(error)) from None
                tries += 1
                if tries > 10:
                    raise commands.SchedulerBusy(str(error)) from None
            pauses.sleep()
            heard = self.queue([name])
            if heard:
                return heard[0].id.split("_")[0]

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """scancel; it is no error if a job has ended meanwhile."""
        for some in _slices(ids):
            try:
                commands.once(["scancel", *(["--signal=KILL"] if force else []), *some])
            except CommandFailed as error:
                if "invalid job id" not in error.said.lower():
                    raise

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """From the accounting where there is one, else from the controller, which forgets after some minutes."""
        found: dict[str, Ending] = {}
        for some in _slices(ids):
            states = self._accounted(some) or self._remembered(some)
            for job, state in states.items():
                word = state.split()[0].rstrip("+") if state.split() else ""
                if word in NOT_ITS_DOING or word in ITS_DOING:
                    found[job] = Ending(word, word in NOT_ITS_DOING)
        return found

    def _accounted(self, ids: Sequence[str]) -> dict[str, str]:
        words = [
            "sacct",
            "--noheader",
            "--allocations",
            "--parsable2",
            "--format=JobID,State",
            f"--jobs={','.join(ids)}",
        ]
        try:
            text = commands.once(words)
        except CommandFailed:
            return {}
        return dict(line.split("|", 1) for line in text.splitlines() if "|" in line)

    def _remembered(self, ids: Sequence[str]) -> dict[str, str]:
        found = {}
        for job in ids:
            try:
                text = commands.once(["scontrol", "show", "job", "--oneliner", job])
            except CommandFailed:
                continue
            state = re.search(r"\bJobState=(\S+)", text)
            if state:
                found[job] = state[1]
        return found


def _slices(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[k : k + ENDED_MAX] for k in range(0, len(ids), ENDED_MAX)]
