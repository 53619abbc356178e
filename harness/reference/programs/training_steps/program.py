"""Training steps three ways, timed in turn on the same batches: forward, loss, backward; the update is left out.

An untrained model on the random workload, with labels drawn at random: a step takes as long whatever they are. Events
besides those of every program:
    warm_up      of a stage: first_s, its first step with compilation; peak_bytes of a step
    unavailable  a stage that cannot run here, and why
    sample       one step: device_s; relative differences from the baseline's step on the same batch, of the loss and of
                 the gradient of all parameters in one row (norm of the difference over norm)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from harness.protocol.events import EventLog
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import lacking
from harness.reference.profiling import fom_client, timing
from harness.reference.programs.training_steps.config import STAGES, Stage, StepsConfig, configure
from harness.reference.programs.training_steps.step import Stepper, difference
from harness.reference.programs.training_steps.workload import describe, make_batches, make_model
from harness.reference.training.compile import compiled_errors
from harness.reference.training.loader import Labelled
from harness.reference.training.loss import GraphErrors, Objective


def run(parameters: dict[str, object], log: EventLog, folder: Path) -> None:
    """The program: warm every stage up, then time them in turn, round after round."""
    config = configure(parameters)
    torch.use_deterministic_algorithms(True, warn_only=True)  # as training has it
    model = make_model(config)
    batches = make_batches(model, config)
    describe(model, batches, config, log)
    wanted = [s for s in STAGES if s.name in config.stages]
    total = len(wanted) * (config.rounds + 1)
    steppers: list[Stepper] = []
    for k, stage in enumerate(wanted):
        log.write("progress", done=k, total=total, what=f"warm-up: {stage.name}")
        stepper = warm_up(stage, model, batches, config, log)
        if stepper is not None:
            steppers.append(stepper)
    if not steppers:
        raise InputError("none of the stages can run here")
    references = [steppers[0].result(b) for b in batches] if steppers[0].name == STAGES[0].name else []
    for number in range(config.rounds):
        log.write("progress", done=len(wanted) * (number + 1), total=total, what=f"round {number + 1}")
        start = number % len(steppers)
        for index, batch in enumerate(batches):
            for stepper in [*steppers[start:], *steppers[:start]]:
                load = os.getloadavg()[0]
                device_s = timing.seconds(partial(stepper, batch), torch.device(config.device))
                ended_s = time.time()
                fom_client.post("graphs_per_s", config.batch_size / device_s)
                errors = difference(stepper.last, references[index]) if references else {}
                log.write(
                    "sample", stage=stepper.name, round=number, batch=index, structures=config.batch_size,
                    device_s=device_s, ended_s=round(ended_s, 6), load_1min=load,
                    dtype=str(stepper.last.gradient.dtype), **errors,
                )  # fmt: skip


def warm_up(
    stage: Stage, model: FoundationModel, batches: Sequence[Labelled], config: StepsConfig, log: EventLog
) -> Stepper | None:
    """The stage at work, its first step and its memory on record; None, with the reason, if it cannot run here."""
    device = torch.device(config.device)
    why = lacking(model.config.backbone, device) if stage.fused else None
    module = GraphErrors(model, fused=stage.fused)
    began = time.perf_counter()
    if why is None and stage.compiled:
        why = compiled_errors(module, batches[0]).why_eager
    if why is not None:
        log.write("unavailable", stage=stage.name, reason=why)
        return None
    stepper = Stepper(stage.name, module, model, Objective(config.force_weight, config.batch_size))
    if not stage.compiled:
        stepper(batches[0])
    first_s = time.perf_counter() - began
    for batch in batches:
        stepper(batch)
    peak_bytes = timing.peak_bytes(partial(stepper, batches[0]), device)
    log.write("warm_up", stage=stage.name, first_s=first_s, peak_bytes=peak_bytes)
    return stepper
