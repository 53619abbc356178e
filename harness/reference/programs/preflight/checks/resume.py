"""Resuming: a training that is killed continues from its state, and ends in the same state as without the kill."""

from __future__ import annotations

import math
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from harness.protocol.events import EVENTS_FILE, CaseLog, read_last_events
from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.train import TrainEpoch, TrainParameters
from harness.protocol.records import EventRecord
from harness.reference.models import sealed
from harness.reference.programs import train
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome
from harness.reference.training import state

EPOCHS, KILLED_EPOCH = 3, 1
TINY = 1e-30  # the smallest divisor
# The beginnings of the variables by which a process would belong to the ranks of the launcher.
LAUNCHER_VARIABLES = ("PMI", "MPI", "OMPI", "PALS", "SLURM")
# Relative differences of the states. Sums on accelerators may have another order after a resume.
TOLERANCES = {"cpu": 0.0}
ACCELERATOR_TOLERANCE = 1e-3
EXPECTED = "a training that is killed and resumed ends in the state of one that is not killed"
ADVICE = "Do not rely on resumed runs on this system before the cause is known; see the logs in `preflight/resume`."


class TrainingFailed(RuntimeError):
    """A training did not end as expected."""


def check(context: CheckContext) -> Outcome:
    """Train without interruption, then train, kill and resume, and compare the last states."""
    # not the first accelerator that torch sees: once this process has used one, those that it forks cannot
    kind = context.config.device or "cpu"
    config = TrainParameters(
        datasets=("ani1x",), max_structures_per_dataset=40, epochs=EPOCHS, batch_size=4, compile=False,
        precision="fp32", model=ModelParameters(hidden_dim=8, num_conv_layers=1, dim_headlayers=8), gate_steps=0,
        checkpoint_interval_s=1e-6, device=kind,  # the state is saved after every step
    )  # fmt: skip
    whole, killed = (context.folder / name for name in ("whole", "killed"))
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    train_in_process(config, whole)
    train_in_process(config, killed, is_killed=True)
    train_in_process(config, killed)
    events = read_last_events(killed / EVENTS_FILE)
    step = next((event["step"] for event in events if event["event"] == "resumed"), None)
    difference = compare_states(whole / state.FILE_NAME, killed / state.FILE_NAME)
    tolerance = TOLERANCES.get(kind, ACCELERATOR_TOLERANCE)
    problems = [] if step else ["the training started from the beginning instead of its state"]
    if not difference <= tolerance:
        problems.append(f"the states differ by {difference:.1e}, relative to the largest number")
    return make_outcome(EXPECTED, f"resumed at step {step}; the states differ by {difference:.1e}", problems, ADVICE)


def train_in_process(config: TrainParameters, folder: Path, *, is_killed: bool = False) -> None:
    """Run a training in a separate process; raise TrainingFailed if it does not end as expected."""
    process = get_context("fork").Process(target=run_training, args=(config, folder, is_killed))
    process.start()
    process.join()
    if process.exitcode != (-signal.SIGKILL if is_killed else 0):
        raise TrainingFailed(f"a training ended with the exit code {process.exitcode}; see `stderr`")


def run_training(config: TrainParameters, folder: Path, is_killed: bool) -> None:
    """Run a training as the only rank, with or without a kill."""
    for name in [name for name in os.environ if name.startswith(LAUNCHER_VARIABLES)]:
        del os.environ[name]
    torch.set_num_threads(1)
    log = KillingLog if is_killed else CaseLog
    train.run(config, log(folder / EVENTS_FILE, "train"), folder)


class KillingLog(CaseLog):
    """A log that kills the process at the end of an epoch, before the state of that moment is saved."""

    def write(self, event: EventRecord) -> None:
        """Append an event, or kill the process."""
        if isinstance(event, TrainEpoch) and event.epoch == KILLED_EPOCH:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(event)


def compare_states(first: Path, second: Path) -> float:
    """Return the largest difference of two states, relative to the largest number of its tensor; NaN if one is NaN.

    A state contains the optimizer and the last weights, on which the best ones in the checkpoint may not depend.
    """
    a, b = (sealed.read_tensors(path) for path in (first, second))
    if a.keys() != b.keys():
        return math.inf
    differing = [(a[name].double(), b[name].double()) for name in a if not torch.equal(a[name], b[name])]
    differences = [float((x - y).abs().max()) / max(float(x.abs().max()), TINY) for x, y in differing]
    return float(np.max(differences, initial=0.0))  # unlike max(), np.max returns NaN if there is one
