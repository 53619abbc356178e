"""Schedulers with damaged output cause no traceback, no second submission of an active job, and no wrong `done`.

A small queue in memory replaces Slurm or PBS. Its output has missing or repeated lines, is truncated, contains banners
and odd ids, or is empty. Only listings by name have all lines, since they are the only trace of a job without known id.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli.main import build_parser
from harness.cli.options import load_plans
from harness.execution.campaign import Campaign
from harness.execution.schedulers import command
from harness.execution.schedulers.base import Scheduler
from harness.execution.schedulers.command import CommandFailed
from harness.execution.schedulers.pbs import PbsScheduler
from harness.execution.schedulers.slurm import SlurmScheduler
from harness.execution.status import Progress
from harness.execution.submission import RunOptions
from harness.planning.expand import Plan
from harness.protocol.errors import UsageError
from tests.fuzz.bounded import run_fuzzer

pytestmark = pytest.mark.slow
SUITE = """\
name: fleet
title: Many small cases
program: data_parallel
parameters: {datasets: [mptrj], batch_size: 1, precision: fp32}
matrix: {seed: [1, 2, 3, 4, 5]}
resources: {walltime_minutes: 5}
"""
FOREIGN_LINES = [
    "*** maintenance on Tuesday; be ready ***",
    "|",
    "||||",
    "JOBID",
    "2026",
    "12.5",
    "\x00",
    "[1-",
    "é\u202e",
    "CLUSTER: c1",
]
FOREIGN_LINES += [
    "101_[1-99999999999999]|fleet|PENDING|None",
    "_[1]|x|RUNNING|",
    "Job Id: ",
    "    job_state = F",
    "{",
    "101|COMPLETED",
]
ERROR_MESSAGES = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "Invalid job id specified",
    "qstat: Unknown Job Id",
    "",
]
ERROR_MESSAGES += [
    "Job violates accounting/QOS policy (job submit limit, ...)",
    "AssocMaxSubmitJobLimit",
    "Invalid account",
    "\x1b[1mno",
]
FINAL_STATES = ["COMPLETED", "COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED by 1000", "TIMEOUT"]
PBS_LETTERS = {"PENDING": "Q", "RUNNING": "R"}


class Clock:
    """A clock that only sleeping advances, so that the number of retries does not depend on the machine."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


@dataclass
class Job:
    id: str
    listed_as: str
    name: str
    state: str = "PENDING"
    has_late_files: bool = False

    @property
    def is_active(self) -> bool:
        return self.state in PBS_LETTERS


class FakeQueue:
    """A queue with its true state, whose commands print damaged output."""

    def __init__(self, rng: random.Random, campaign: Campaign) -> None:
        self.rng, self.campaign = rng, campaign
        self.folders = {case.name: campaign.get_case_folder(case) for case in campaign.plan.cases}
        self.jobs: list[Job] = []
        self.next_id = 101

    def run_once(self, command_line: Sequence[str]) -> str:
        """Run a scheduler command on this queue, in place of `harness.execution.schedulers.command.run_once`."""
        rng, program = self.rng, command_line[0]
        if program in ("sbatch", "qsub"):
            output = self._submit(Path(command_line[-1]), "." * (program == "qsub"))
        else:
            output = getattr(self, f"_{program}")(list(command_line))
        if rng.random() < 0.15:
            is_accepted = program in ("sbatch", "qsub")  # an accepted job cannot be rejected
            message = rng.choice(ERROR_MESSAGES[:2] if is_accepted else ERROR_MESSAGES)
            raise CommandFailed(command_line, rng.choice([1, 1, 35, 153, None]), message, mutate(rng, output))
        is_listing_by_name = program in ("squeue", "qstat") and not any(
            w.startswith("--jobs") or w[0].isdigit() for w in command_line
        )
        return add_lines(rng, output) if is_listing_by_name else mutate(rng, output)

    def advance(self) -> None:
        """Simulate the passing of time: jobs start and end, and late files appear."""
        for job in self.jobs:
            if job.has_late_files:
                self._write(job)
            elif job.state == "PENDING" and self.rng.random() < 0.4:
                job.state = "RUNNING"
            elif job.is_active and self.rng.random() < 0.4:
                job.state = self.rng.choice(FINAL_STATES)
                job.has_late_files = job.state == "COMPLETED"
                if job.has_late_files and self.rng.random() < 0.5:
                    self._write(job)

    def _submit(self, script: Path, dot: str) -> str:
        listing = script.with_suffix(".txt")
        names = listing.read_text().splitlines() if listing.exists() else [script.stem]
        number, self.next_id = self.next_id, self.next_id + 1
        server = "pbs" if dot else ""
        if self.rng.random() < 0.1:
            raise CommandFailed(["sbatch"], 1, self.rng.choice(ERROR_MESSAGES))
        for task, name in enumerate(names, start=1):
            for earlier_job in self.jobs:
                assert earlier_job.name != name or not (earlier_job.is_active or earlier_job.has_late_files), (
                    f"{name} is submitted twice"
                )
            assert not (self._folder(name) / "exit_code").exists(), f"{name} is done and submitted again"
            job = f"{number}_{task}" if listing.exists() else f"{number}{dot}{server}"
            self.jobs.append(Job(job, script.stem, name))
        return f"{number}{dot}{server}\n"

    def _folder(self, name: str) -> Path:
        return self.folders[name.rpartition("-")[0]]

    def _write(self, job: Job) -> None:
        folder = self._folder(job.name)
        job.has_late_files = False
        (folder / "claim").write_text(f"{job.id}\n")
        log = [{"event": "start", "time_s": 1.0}, {"event": "done", "time_s": 2.0}]
        (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in log))
        (folder / "exit_code").write_text("0\n1\n")

    def _squeue(self, command_line: list[str]) -> str:
        return "".join(f"{j.id}|{j.listed_as}|{j.state}|None\n" for j in self.jobs if j.is_active)

    def _sacct(self, command_line: list[str]) -> str:
        return "".join(f"{j.id}|{j.state}|{j.listed_as}\n" for j in self.jobs)

    def _scontrol(self, command_line: list[str]) -> str:
        jobs_of_id = [j for j in self.jobs if j.id.partition("_")[0] == command_line[-1]]
        split = ((j, j.id.partition("_")) for j in jobs_of_id)
        return "".join(
            f"JobId={base} ArrayJobId={base} ArrayTaskId={task or 'N/A'} "
            f"JobName={j.listed_as} JobState={j.state.split()[0]}\n"
            if task else f"JobId={base} JobName={j.listed_as} JobState={j.state.split()[0]}\n"
            for j, (base, _, task) in split
        )  # fmt: skip

    def _qstat(self, command_line: list[str]) -> str:
        has_history = "-x" in command_line
        requested = [argument for argument in command_line if argument[0].isdigit()]
        listed_jobs = [j for j in self.jobs if (j.is_active or has_history) and (not requested or j.id in requested)]
        codes = {"COMPLETED": 0, "FAILED": 1, "NODE_FAIL": -3, "CANCELLED by 1000": 271, "TIMEOUT": -29}
        fields_by_job = {
            j.id: {"Job_Name": j.listed_as, "job_state": PBS_LETTERS.get(j.state, "F")}
            | ({} if j.is_active else {"Exit_status": codes[j.state], "substate": 91 if "CANC" in j.state else 93})
            for j in listed_jobs
        }
        if "json" in command_line:
            return json.dumps({"Jobs": fields_by_job})
        lines = (
            f"Job Id: {job}\n" + "".join(f"    {k} = {v}\n" for k, v in job_fields.items())
            for job, job_fields in fields_by_job.items()
        )
        return "\n".join(lines)

    def _scancel(self, command_line: list[str]) -> str:
        return ""

    _qdel = _scancel


def add_lines(rng: random.Random, text: str) -> str:
    """Return the text with foreign and repeated lines; JSON is unchanged."""
    lines = text.splitlines()
    for _ in range(rng.choice([0, 0, 1, 2])):
        if not text.startswith("{"):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice([*FOREIGN_LINES[:10], *lines[:1]]))
    return "".join(f"{line}\n" for line in lines)


def mutate(rng: random.Random, text: str) -> str:
    """Return the text, usually damaged."""
    if rng.random() < 0.4 or not text:
        return text
    lines = text.splitlines(keepends=True)
    line_number = rng.randrange(len(lines))
    changes: list[Callable[[], str]] = [
        lambda: "".join(lines[:line_number] + lines[line_number + 1 :]),
        lambda: "".join([*lines[: line_number + 1], *lines[line_number:]]),
        lambda: "".join([*lines[:line_number], f"{rng.choice(FOREIGN_LINES)}\n", *lines[line_number:]]),
        lambda: text[: rng.randrange(len(text))],
        lambda: "".join(rng.sample(lines, len(lines))),
        lambda: text.replace(rng.choice(text), rng.choice("|_-[]%,.;: \t7x"), 1),
        lambda: "",
    ]
    return rng.choice(changes)()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("suite") / "fleet.yaml"
    path.write_text(SUITE)
    [plan_of_suite] = load_plans(build_parser()[0].parse_args(["run", str(path), "--system", "slurm"]))
    return plan_of_suite


@pytest.mark.parametrize("kind", [SlurmScheduler, PbsScheduler])
def test_damaged_output_of_schedulers_causes_no_wrong_result(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Scheduler]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(command, "time", Clock())
    monkeypatch.setattr(command, "notify", lambda _: None)
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "5")

    def examine(rng: random.Random, folder: Path) -> None:
        queue = FakeQueue(rng, Campaign(plan, folder))
        command.run_once = queue.run_once
        for _ in range(5):
            campaign = Campaign(plan, folder)
            campaign.scheduler = kind()
            try:
                outcomes = campaign.run(RunOptions(wait=False), Progress(quiet=True))
                finished = {o.case.name for o in outcomes if o.state == "done"}
                assert finished <= {name for name, folder in queue.folders.items() if (folder / "exit_code").exists()}
            except UsageError:
                pass  # the user gets an error
            queue.advance()

    monkeypatch.setattr(command, "run_once", command.run_once)
    run_fuzzer(examine, tmp_path)
