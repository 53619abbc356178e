"""One trial: a training run in its own folder and process group, monitored until it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.host.locks import FileLock, LockTaken
from harness.protocol import events
from harness.protocol.programs.model import ModelParameters
from harness.protocol.text import pluralize
from harness.reference.errors import NotFinite
from harness.reference.programs.hpo.halving import Halving
from harness.reference.programs.hpo.nodes import Node
from harness.reference.programs.hpo.space import BACKBONE

State = Literal["done", "pruned", "failed", "diverged", "timeout", "lost"]
RESULT, LAUNCH, NODES, LOCK = "trial.json", "launch.sh", "nodes", "lock"
POLL_S = 0.1
GRACE_S = 5.0
MODEL_PARAMETERS = set(ModelParameters.model_fields)


class Interrupted(Exception):
    """The search must end; the trial is continued when the search is started again."""


@dataclass(frozen=True)
class TrialMetrics:
    """The metrics of a trial.

    Attributes:
        energy_mae_ev_per_atom: Validation error in the best epoch.
        force_mae_ev_per_angstrom: Validation error in the best epoch; None if no forces are known.
        structures_per_s: Median throughput of all ranks over epochs.
        epochs: Number of epochs.
    """

    energy_mae_ev_per_atom: float
    force_mae_ev_per_angstrom: float | None
    structures_per_s: float
    epochs: int

    @property
    def accuracy(self) -> float:
        """The objective of the paper, -(MAE(E/atom) + MAE(F)) / 2, with 0 for the error of unknown forces."""
        return -0.5 * (self.energy_mae_ev_per_atom + (self.force_mae_ev_per_angstrom or 0.0))


@dataclass(frozen=True)
class Trial:
    """One training run of the search.

    Attributes:
        number: The number of the trial in the search.
        configuration: The point in the search space, with hyperparameters of all backbones.
        folder: The folder of the trial.
        limit_s: Wall time after which the trial is considered hung and is stopped.
    """

    number: int
    configuration: dict[str, Any]
    folder: Path
    limit_s: float


@dataclass(frozen=True)
class Result:
    """The result of a trial.

    Attributes:
        state: The state in which the trial ended.
        reason: Why the trial did not succeed; None if it did.
        measured: The metrics; None if there are none.
        start_time_s: Unix time of the start.
        end_time_s: Unix time of the end.
        nodes: Names of the nodes; empty without a scheduler.
    """

    state: State
    reason: str | None
    measured: TrialMetrics | None
    start_time_s: float
    end_time_s: float
    nodes: list[str]


def write_trial(trial: Trial, fixed: Mapping[str, Any], active: Mapping[str, Any], search: str) -> None:
    """Write the folder of a trial.

    Args:
        trial: The trial.
        fixed: Parameters of training that all trials share.
        active: Parameters of the point, which override the fixed ones.
        search: Id of the search.
    """
    searched = {k: v for k, v in active.items() if k in MODEL_PARAMETERS and k != BACKBONE}
    model = {**fixed.get("model", {}), **{k: v for k, v in active.items() if k == BACKBONE}, **searched}
    others = {k: v for k, v in active.items() if k not in MODEL_PARAMETERS}
    case = {"id": f"{search}/{trial.number}", "program": "train", "parameters": {**fixed, "model": model, **others}}
    trial.folder.mkdir(parents=True, exist_ok=True)
    _write_json(trial.folder / "configuration.json", trial.configuration)
    _write_json(trial.folder / "case.json", case)


def load_trial(folder: Path) -> tuple[dict[str, Any], Result | None]:
    """Return the configuration of a trial of an earlier attempt, and its result; None if it has not ended."""
    configuration = json.loads((folder / "configuration.json").read_text(encoding="utf-8"))
    try:
        plain = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return configuration, None
    metrics = plain.pop("measured")
    return configuration, Result(**plain, measured=TrialMetrics(**metrics) if metrics else None)


def save_result(trial: Trial, result: Result) -> None:
    """Write the result to the folder of the trial."""
    _write_json(trial.folder / RESULT, asdict(result))


def read_metrics(log: Sequence[events.Event]) -> TrialMetrics | None:
    """Return the metrics of a training log; None before the end of the first epoch."""
    epochs = [e for e in log if e["event"] == "epoch"]
    best = next((e for e in reversed(epochs) if e.get("best")), None)
    if best is None:
        return None
    rate = statistics.median(e["structures_per_s"] for e in epochs)
    energy_mae, force_mae = best["validation_energy_mae_ev_per_atom"], best.get("validation_force_mae_ev_per_angstrom")
    return TrialMetrics(energy_mae, force_mae, rate, len(epochs))


def read_accuracies(path: Path) -> list[tuple[int, float]]:
    """Return (number of epochs, accuracy after this number) for each epoch in a training log."""
    epochs = [e for e in events.read_last_events(path) if e["event"] == "epoch"]
    by_epoch = [(k, read_metrics(epochs[:k])) for k in range(1, len(epochs) + 1)]
    return [(k, metrics.accuracy) for k, metrics in by_epoch if metrics is not None]


def run_trial(trial: Trial, nodes: list[Node], port: int, halving: Halving | None, stop: threading.Event) -> Result:
    """Run a trial; if an earlier search left the same trial running, wait for it first.

    Args:
        trial: The trial.
        nodes: The nodes of the trial; empty without a scheduler.
        port: MASTER_PORT of its ranks.
        halving: The rule that stops unpromising trials; None if all trials run to the end.
        stop: The event that is set when the search must end.

    Raises:
        Interrupted: The search must end.
    """
    start_time_s = time.time()

    def make_result(state: State, reason: str | None, metrics: TrialMetrics | None = None) -> Result:
        return Result(state, reason, metrics, start_time_s, time.time(), [node.name for node in nodes])

    with (trial.folder / LOCK).open("a") as file, closing(FileLock(trial.folder / LOCK, file.fileno())) as lock:
        if not _acquire(lock, trial.limit_s, stop):
            return make_result(
                "timeout", f"left running by an earlier search, and not ended within {trial.limit_s:g} s"
            )
        log = events.read_last_events(trial.folder / events.EVENTS_FILE)
        if any(e["event"] == "done" for e in log):
            return make_result("done", None, read_metrics(log))
        process = _start(trial, nodes, port, file.fileno())
        lock.transfer(process.pid)
        monitor = TrialMonitor(trial, process, halving, stop)
        try:
            outcome = monitor.wait()
        finally:
            _kill(process)
    log = events.read_last_events(trial.folder / events.EVENTS_FILE)
    if outcome is not None:
        return make_result(*outcome, read_metrics(log) if outcome[0] == "pruned" else None)
    return make_result(*classify_result(log, process.returncode, trial.folder))


def classify_result(
    log: Sequence[events.Event], exit_code: int, folder: Path
) -> tuple[State, str | None, TrialMetrics | None]:
    """Return state, reason and metrics of a training run that was not stopped by the search."""
    metrics = read_metrics(log)
    if exit_code == 0 and any(e["event"] == "done" for e in log):
        if metrics is None or not math.isfinite(metrics.accuracy):
            return "diverged", "no validation error", None
        return "done", None, metrics
    errors = [e for e in log if e["event"] == "error"]
    if any(e.get("kind") == NotFinite.__name__ for e in errors):
        return "diverged", errors[-1]["message"], None
    if exit_code < 0:
        return "failed", f"killed by {signal.Signals(-exit_code).name}", None
    return (
        "failed",
        errors[-1]["message"] if errors else _read_last_line(folder / "stderr") or f"exit code {exit_code}",
        None,
    )


class TrialMonitor:
    """The monitor of a running trial: it watches the time limit, the accuracy at rungs, and the end of the search."""

    def __init__(
        self, trial: Trial, process: subprocess.Popen[bytes], halving: Halving | None, stop: threading.Event
    ) -> None:
        self.trial, self.process, self.halving, self.stop = trial, process, halving, stop
        self._log_size, self._epochs = -1, 0

    def wait(self) -> tuple[State, str] | None:
        """Wait until the process ends, or must be stopped.

        Returns:
            None if the process ended by itself, else the state and the reason for which it must be stopped.

        Raises:
            Interrupted: The search must end.
        """
        deadline = time.monotonic() + self.trial.limit_s
        while self.process.poll() is None:
            if self.stop.is_set():
                raise Interrupted
            if time.monotonic() > deadline:
                return "timeout", f"not ended within {self.trial.limit_s:g} s"
            if self.halving is not None and (reason := self._find_stop_reason(self.halving)):
                return "pruned", reason
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_S)
        return None

    def _find_stop_reason(self, halving: Halving) -> str | None:
        """Return why halving stops the trial, or None if it may continue."""
        path = self.trial.folder / events.EVENTS_FILE
        size = path.stat().st_size if path.exists() else 0
        if size == self._log_size:
            return None
        self._log_size = size
        for epochs, accuracy in read_accuracies(path):
            if epochs <= self._epochs:
                continue
            self._epochs = epochs
            if not halving.should_continue(self.trial.number, epochs, accuracy):
                return f"not in the best 1/{halving.eta} of the trials after {pluralize(epochs, 'epoch')}"
        return None


def _start(trial: Trial, nodes: list[Node], port: int, lock: int) -> subprocess.Popen[bytes]:
    """Start a trial in a new process group, which inherits the lock and keeps it even if the search is killed."""
    launch = trial.folder.parent.parent / LAUNCH
    command = [sys.executable, "-P", "-m", "harness.reference", str(trial.folder)]
    environment = {**os.environ, "MASTER_PORT": str(port)}
    if nodes:
        (trial.folder / NODES).write_text("".join(f"{node.name}\n" for node in nodes), encoding="utf-8")
        environment["MASTER_ADDR"] = nodes[0].host
    if launch.exists():
        command = ["bash", str(launch), str(trial.folder / NODES), *command]
    with (trial.folder / "stdout").open("ab") as out, (trial.folder / "stderr").open("ab") as err:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, pass_fds=[lock],
            start_new_session=True,
        )  # fmt: skip


def _acquire(lock: FileLock, limit_s: float, stop: threading.Event) -> bool:
    """Wait for the lock of a folder, and return whether it was acquired within the time limit."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            lock.acquire()
        except LockTaken:
            if stop.wait(POLL_S):
                raise Interrupted from None
            if time.monotonic() > deadline:
                return False
        else:
            return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the processes of a trial: first by SIGTERM, so that the launcher ends those on other nodes, then SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _read_last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    os.replace(part, path)
