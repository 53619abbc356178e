"""The exercise of a drill: its folder, its small campaign of two cases, and the harness process that runs them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.drills.site import Site
from harness.execution import case_files
from harness.execution.journal import Journal
from harness.protocol import events
from harness.protocol.case import Unreadable

SUITE = """\
name: drill
title: Two cases, the second of which is struck by a fault
program: data_parallel
parameters:
  precision: fp32
  batch_size: 1
  model: {hidden_dim: 4, num_conv_layers: 1, num_sharedlayers: 0, dim_headlayers: 4}
  datasets: [mptrj]
  epochs: 2
  timeout_s: 30
  device: "{{ system.device }}"
  backend: "{{ system.backend }}"
zips:
  number: {seed: [1, 2], steps: [1, %(steps)s]}
pack: 2
resources: {nodes: %(nodes)s, ranks_per_node: %(ranks_per_node)s, walltime_minutes: 10}
"""
# A launcher that strikes the program of rank 1 of the second case, once, after it has begun to compute. The folder
# `launcher.sh.struck` marks the strike.
LAUNCHER = """\
#!/usr/bin/env bash
case=${*: -1}
rank=${PMI_RANK:-${PALS_RANKID:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}}}
if [ "$rank" = 1 ] && [[ ${case##*/} = *seed_2* ]] && mkdir "$0.struck" 2> /dev/null; then
    (
        until grep -q '"ranks"' "$case/events.jsonl" 2> /dev/null; do sleep 0.5; done
        sleep 1
        %s
    ) < /dev/null &
fi
exec "$@"
"""
STEPS = 150  # of each epoch of the second case, so that it still computes when the fault is planted
START_TIMEOUT_S, END_TIMEOUT_S = 300.0, 900.0
STOP_TIMEOUT_S, CANCEL_TIMEOUT_S = 60.0, 300.0
# How long the harness waits for files of a job that has vanished; the files of these systems appear at once.
ENVIRONMENT = {"GFM_HARNESS_FILES_S": "10", "PYTHONUNBUFFERED": "1"}


class DrillFailed(Exception):
    """The harness did not do what the drill expects; the message says what."""


class DrillImpossible(Exception):
    """The fault of a drill cannot be planted on this machine; the message says why."""


class Exercise:
    """The folder, the campaign and the harness process of one drill.

    Attributes:
        site: the system of the drill.
        folder: the folder, which contains the suite, the system, and `results`.
        stall_s: how long a file system is frozen.
        results: the folder of results of the harness.
        programs: a folder whose programs precede those of PATH.
        campaign: the folder of the campaign.
    """

    def __init__(self, site: Site, folder: Path, stall_s: float) -> None:
        self.site, self.folder, self.stall_s = site, folder.resolve(), stall_s
        self.folder.mkdir(parents=True)
        self.results, self.programs = self.folder / "results", self.folder / "programs"
        self.campaign = self.results / "runs" / "drill-drill"
        self._log = self.folder / "output.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """The output of the harness, the logs of the jobs and the stderr of the cases."""
        files = [self._log, *sorted(self.campaign.glob("jobs/*.log")), *sorted(self.campaign.glob("drill-*/stderr"))]
        return "\n".join(path.read_text(errors="replace") for path in files if path.exists())

    def write_files(self, fault: str = "") -> None:
        """Write the suite and the system; `fault` is a shell command with which the launcher strikes a program."""
        system = self.site.system
        shape = (1, 2) if self.site.is_local else (2, 1)
        suite = SUITE % {"steps": STEPS, "nodes": shape[0], "ranks_per_node": shape[1]}
        (self.folder / "drill.yaml").write_text(suite)
        definition: dict[str, Any] = {"name": "drill", "extends": str(self.site.path.resolve())}
        if fault:
            launcher = self.folder / "launcher.sh"
            launcher.write_text(LAUNCHER % fault)
            launcher.chmod(0o755)
            definition["launch"] = [*system.definition.launch, shlex.quote(str(launcher))]
        (self.folder / "system.yaml").write_text(json.dumps(definition))

    def has_struck(self) -> bool:
        """Return whether the launcher of rank 1 of the second case has started, which strikes once."""
        return (self.folder / "launcher.sh.struck").exists()

    def start_harness(self, *options: str) -> None:
        """Start a harness that runs the campaign and waits for its end."""
        settings = self.site.system.settings
        values = {name: str(value) for name, value in settings.items() if value != ""}
        values |= {"spare_nodes": "1"} if "spare_nodes" in settings else {}
        pairs = [word for name, value in values.items() for word in ("-S", f"{name}={value}")]
        command = [
            sys.executable, "-m", "harness", "run", "drill.yaml", "--system", "system.yaml", "--wait", *pairs, *options,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=self._make_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_for_harness(self) -> int:
        """Wait until the harness has ended, and return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DrillFailed(f"the harness did not end within {END_TIMEOUT_S:g} s") from None

    def stop(self) -> None:
        """End the harness if it still runs, and cancel the jobs that remain, however it ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT_S)
        command = [sys.executable, "-m", "harness", "cancel", "drill.yaml", "--system", "system.yaml"]
        with self._log.open("ab") as log:
            subprocess.run(
                command, cwd=self.folder, env=self._make_environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, check=False, timeout=CANCEL_TIMEOUT_S,
            )  # fmt: skip

    def wait_for(self, event: str, condition: Callable[[], object], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until a condition is true; raise DrillFailed if the harness ends before that, or after the time limit.

        Args:
            event: What becomes true, as a clause for the message: `the second case began to compute`.
            condition: The condition.
            timeout_s: The time limit.
        """
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None and not condition():
                raise DrillFailed(f"the harness ended with exit code {self._process.returncode} before {event}")
            if time.monotonic() > deadline:
                raise DrillFailed(f"timed out after {timeout_s:g} s, before {event}")
            time.sleep(0.2)

    def find_case(self, number: int) -> Path:
        """Return the folder of the first or the second case, or a path that does not exist before it is created."""
        return next(self.campaign.glob(f"drill-seed_{number}-*"), self.campaign / "absent")

    def read_ranks(self) -> list[dict[str, Any]]:
        """Return the ranks of the second case in its last run, with their nodes; empty until it computes."""
        log = events.read(self.find_case(2) / events.EVENTS_FILE)
        return next((e["value"] for e in reversed(list(log)) if e.get("name") == "ranks"), [])

    def read_first_case(self) -> tuple[bytes, ...]:
        """Return the event log and the exit code file of the first case; raise DrillFailed if one is missing."""
        folder = self.find_case(1)
        try:
            return tuple((folder / name).read_bytes() for name in (events.EVENTS_FILE, case_files.EXIT_CODE_FILE))
        except FileNotFoundError as error:
            raise DrillFailed(f"the first case, which had ended, has no file {Path(error.filename).name}") from None

    def count_starts(self, number: int) -> int:
        """Return how often the program of a case was started, in all of its attempts."""
        logs = self.find_case(number).glob(f"**/{events.EVENTS_FILE}")
        return sum(event["event"] == "start" for log in logs for event in events.read(log))

    def list_states(self) -> Sequence[str]:
        """Return the states of both cases according to the journal."""
        try:
            return [result.state for result in Journal(self.campaign).results.values()]
        except (OSError, Unreadable):
            return []

    def _make_environment(self) -> dict[str, str]:
        environment = self.site.cluster.make_environment() if self.site.cluster else dict(os.environ)
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH", ""))))
        return environment | ENVIRONMENT | {"PYTHONPATH": path, "PATH": f"{self.programs}:{environment['PATH']}"}
