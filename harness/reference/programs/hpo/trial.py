"""One trial: a training run in a folder and a process group of its own, watched until it has ended, however it does."""

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
from harness.reference.errors import NotFinite
from harness.reference.programs.hpo.halving import Halving
from harness.reference.programs.hpo.nodes import Node
from harness.reference.programs.hpo.space import BACKBONE

State = Literal["done", "stopped", "failed", "not finite", "timeout", "lost"]
RESULT, LAUNCH, NODES, LOCK = "trial.json", "launch.sh", "nodes", "lock"
POLL_S = 0.1
GRACE_S = 5.0
MODEL = set(ModelParameters.model_fields)


class Interrupted(Exception):
    """The search is to end; the trial goes on where it was when the search does."""


@dataclass(frozen=True)
class Measured:
    """A trial's validation errors, eV/atom and eV/angstrom, in its best epoch; graphs/s over all its ranks."""

    energy_mae_ev_per_atom: float
    force_mae_ev_per_a: float
    graphs_per_s: float
    epochs: int

    @property
    def accuracy(self) -> float:
        """-(MAE(E/atom) + MAE(F)) / 2, the paper's objective."""
        return -0.5 * (self.energy_mae_ev_per_atom + self.force_mae_ev_per_a)


@dataclass(frozen=True)
class Trial:
    """What one trial is asked to do. limit_s: wall time after which it counts as hung."""

    number: int
    configuration: dict[str, Any]
    folder: Path
    limit_s: float


@dataclass(frozen=True)
class Result:
    """How a trial ended. began_s, ended_s: Unix time. nodes: names, none on a machine without a scheduler."""

    state: State
    reason: str | None
    measured: Measured | None
    began_s: float
    ended_s: float
    nodes: list[str]


def write(trial: Trial, fixed: Mapping[str, Any], active: Mapping[str, Any], of: str) -> None:
    """The trial's folder with case.json: fixed parameters of training, and over them those of the point."""
    chosen = {k: v for k, v in active.items() if k in MODEL and k != BACKBONE}
    model = {**fixed.get("model", {}), **{k: v for k, v in active.items() if k == BACKBONE}, **chosen}
    others = {k: v for k, v in active.items() if k not in MODEL}
    case = {"id": f"{of}/{trial.number}", "program": "train", "parameters": {**fixed, "model": model, **others}}
    trial.folder.mkdir(parents=True, exist_ok=True)
    _replace(trial.folder / "configuration.json", trial.configuration)
    _replace(trial.folder / "case.json", case)


def load_trial(folder: Path) -> tuple[dict[str, Any], Result | None]:
    """The configuration of a trial of an earlier attempt, and how it ended, if it did."""
    configuration = json.loads((folder / "configuration.json").read_text(encoding="utf-8"))
    try:
        plain = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return configuration, None
    measured = plain.pop("measured")
    return configuration, Result(**plain, measured=Measured(**measured) if measured else None)


def save_result(trial: Trial, result: Result) -> None:
    """Put the result into the trial's folder."""
    _replace(trial.folder / RESULT, asdict(result))


def measured(log: Sequence[events.Event]) -> Measured | None:
    """What a run's epochs say; None before the first has ended."""
    epochs = [e for e in log if e["event"] == "epoch"]
    best = next((e for e in reversed(epochs) if e.get("best")), None)
    if best is None:
        return None
    rate = statistics.median(e["graphs_per_s"] for e in epochs)
    return Measured(best["validation_energy_mae_ev_per_atom"], best["validation_force_mae_ev_per_a"], rate, len(epochs))


def after_epochs(path: Path) -> list[tuple[int, float]]:
    """Accuracy that the run of a log had come to after each of its epochs."""
    epochs = [e for e in events.last_run(path) if e["event"] == "epoch"]
    found = [(k, measured(epochs[:k])) for k in range(1, len(epochs) + 1)]
    return [(k, of.accuracy) for k, of in found if of is not None]


def run_trial(trial: Trial, nodes: list[Node], port: int, halving: Halving | None, stop: threading.Event) -> Result:
    """Start the trial, or wait for the one that an earlier search left running, and say how it ended.

    Raises Interrupted if the search is to end meanwhile.
    """
    began = time.time()

    def ended(state: State, reason: str | None, found: Measured | None = None) -> Result:
        return Result(state, reason, found, began, time.time(), [node.name for node in nodes])

    with (trial.folder / LOCK).open("a") as file, closing(FileLock(trial.folder / LOCK, file.fileno())) as lock:
        if not _acquired(lock, trial.limit_s, stop):
            return ended("timeout", f"left running by an earlier search, and not ended within {trial.limit_s:g} s")
        log = events.last_run(trial.folder / events.FILE_NAME)
        if any(e["event"] == "done" for e in log):
            return ended("done", None, measured(log))
        process = _started(trial, nodes, port, file.fileno())
        lock.transfer(process.pid)
        watch = TrialMonitor(trial, process, halving, stop)
        try:
            verdict = watch.until_end()
        finally:
            _kill(process)
    log = events.last_run(trial.folder / events.FILE_NAME)
    if verdict is not None:
        return ended(*verdict, measured(log) if verdict[0] == "stopped" else None)
    return ended(*classify_result(log, process.returncode, trial.folder))


def classify_result(
    log: Sequence[events.Event], exit_code: int, folder: Path
) -> tuple[State, str | None, Measured | None]:
    """State, reason and measurements of a run that has ended by itself."""
    found = measured(log)
    if exit_code == 0 and any(e["event"] == "done" for e in log):
        if found is None or not math.isfinite(found.accuracy):
            return "not finite", "no validation error", None
        return "done", None, found
    errors = [e for e in log if e["event"] == "error"]
    if any(e.get("kind") == NotFinite.__name__ for e in errors):
        return "not finite", errors[-1]["message"], None
    if exit_code < 0:
        return "failed", f"killed by {signal.Signals(-exit_code).name}", None
    return (
        "failed",
        errors[-1]["message"] if errors else _last_line(folder / "stderr") or f"exit code {exit_code}",
        None,
    )


class TrialMonitor:
    """Looks after a running trial: its time, its epochs, and whether the search goes on."""

    def __init__(
        self, trial: Trial, process: subprocess.Popen[bytes], halving: Halving | None, stop: threading.Event
    ) -> None:
        self.trial, self.process, self.halving, self.stop = trial, process, halving, stop
        self._size, self._epochs = -1, 0

    def until_end(self) -> tuple[State, str] | None:
        """None if the process ended by itself, else state and reason of what it is to be ended for."""
        deadline = time.monotonic() + self.trial.limit_s
        while self.process.poll() is None:
            if self.stop.is_set():
                raise Interrupted
            if time.monotonic() > deadline:
                return "timeout", f"not ended within {self.trial.limit_s:g} s"
            if self.halving is not None and (lagging := self._lags(self.halving)):
                return "stopped", lagging
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_S)
        return None

    def _lags(self, halving: Halving) -> str | None:
        """Why the trial is not worth another epoch, if it is not."""
        path = self.trial.folder / events.FILE_NAME
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return None
        self._size = size
        for epochs, accuracy in after_epochs(path):
            if epochs <= self._epochs:
                continue
            self._epochs = epochs
            if not halving.goes_on(self.trial.number, epochs, accuracy):
                return f"not among the best 1/{halving.eta} after {epochs} epochs"
        return None


def _started(trial: Trial, nodes: list[Node], port: int, lock: int) -> subprocess.Popen[bytes]:
    """The trial's process group. It inherits the lock, so that a search that is killed leaves a mark while it runs."""
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


def _acquired(lock: FileLock, limit_s: float, stop: threading.Event) -> bool:
    """Wait for the lock of the folder; return whether it was taken within the limit."""
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
    """End the trial's processes, gently at first: a launcher ends those on other nodes."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def _replace(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    os.replace(part, path)
