"""Training steps three ways, timed in turn on the same batches: forward, loss, backward; the update is left out.

An untrained model on the random workload, with labels drawn at random: a step takes as long whatever they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import Unavailable, WarmUp
from harness.protocol.programs.training_steps import StepSample, TrainingStepsParameters
from harness.protocol.records import Progress
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import unavailable_reason
from harness.reference.profiling import fom_client, timing
from harness.reference.programs.training_steps.step import STAGES, Stage, TimedStep, step_errors
from harness.reference.programs.training_steps.workload import describe, make_batches, make_model
from harness.reference.training.compile import compile_loss
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors


def run(config: TrainingStepsParameters, log: CaseLog, folder: Path) -> None:
    """Warm every stage up, then time them in turn, round after round."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # as training has it
    model = make_model(config)
    batches = make_batches(model, config)
    log.record_facts(describe(model, batches, config))
    wanted = [s for s in STAGES if s.name in config.stages]
    total = len(wanted) * (config.rounds + 1)
    steppers: list[TimedStep] = []
    for k, stage in enumerate(wanted):
        log.write(Progress(done=k, total=total, what=f"warm-up: {stage.name}"))
        stepper = warm_up(stage, model, batches, config, log)
        if stepper is not None:
            steppers.append(stepper)
    if not steppers:
        raise InputError("none of the stages can run here")
    references = [steppers[0].result(b) for b in batches] if steppers[0].name == STAGES[0].name else []
    for number in range(config.rounds):
        log.write(Progress(done=len(wanted) * (number + 1), total=total, what=f"round {number + 1}"))
        start = number % len(steppers)
        for index, batch in enumerate(batches):
            for stepper in [*steppers[start:], *steppers[:start]]:
                load = os.getloadavg()[0]
                device_s = timing.seconds(partial(stepper, batch), torch.device(config.device))
                ended_s = time.time()
                fom_client.post_figure_of_merit("graphs_per_s", config.batch_size / device_s)
                errors = step_errors(stepper.last, references[index]) if references else {}
                log.write(
                    StepSample(
                        stage=stepper.name, round=number, batch=index, structures=config.batch_size,
                        device_s=device_s, ended_s=round(ended_s, 6), load_1min=load,
                        dtype=str(stepper.last.gradient.dtype), **errors,
                    )
                )  # fmt: skip


def warm_up(
    stage: Stage,
    model: FoundationModel,
    batches: Sequence[LabelledBatch],
    config: TrainingStepsParameters,
    log: CaseLog,
) -> TimedStep | None:
    """The stage at work, its first step and its memory on record; None, with the reason, if it cannot run here."""
    device = torch.device(config.device)
    why = unavailable_reason(model.config.backbone, device) if stage.fused else None
    module = PerGraphErrors(model, fused=stage.fused)
    began = time.perf_counter()
    if why is None and stage.compiled:
        why = compile_loss(module, batches[0]).why_eager
    if why is not None:
        log.write(Unavailable(stage=stage.name, reason=why))
        return None
    stepper = TimedStep(stage.name, module, model, MultiTaskLoss(config.force_weight, config.batch_size))
    if not stage.compiled:
        stepper(batches[0])
    first_s = time.perf_counter() - began
    for batch in batches:
        stepper(batch)
    peak_bytes = timing.peak_bytes(partial(stepper, batches[0]), device)
    log.write(WarmUp(stage=stage.name, first_s=first_s, peak_bytes=peak_bytes))
    return stepper
