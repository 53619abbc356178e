"""Training steps in three formulations, timed in turn on the same batches: forward, loss, backward, without the update.

An untrained model runs on the random workload with random labels, on which the time of a step does not depend.
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
from harness.reference.models.message_backend import find_unavailable_reason
from harness.reference.profiling import fom_client, timing
from harness.reference.programs.training_steps.step import STAGES, Stage, TimedStep, step_errors
from harness.reference.programs.training_steps.workload import describe, make_batches, make_model
from harness.reference.training.compile import compile_loss
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors


def run(config: TrainingStepsParameters, log: CaseLog, folder: Path) -> None:
    """Warm up all stages, then time them in turn in rounds."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # as in training
    model = make_model(config)
    batches = make_batches(model, config)
    log.record_facts(describe(model, batches, config))
    stages = [s for s in STAGES if s.name in config.stages]
    total = len(stages) * (config.rounds + 1)
    steps: list[TimedStep] = []
    for k, stage in enumerate(stages):
        log.write(Progress(done=k, total=total, what=f"warm-up: {stage.name}"))
        step = warm_up(stage, model, batches, config, log)
        if step is not None:
            steps.append(step)
    if not steps:
        raise InputError("none of the stages can run here")
    references = [steps[0].result(b) for b in batches] if steps[0].name == STAGES[0].name else []
    for number in range(config.rounds):
        log.write(Progress(done=len(stages) * (number + 1), total=total, what=f"round {number + 1}"))
        start = number % len(steps)
        for index, batch in enumerate(batches):
            for step in [*steps[start:], *steps[:start]]:
                load = os.getloadavg()[0]
                device_s = timing.time_call(partial(step, batch), torch.device(config.device))
                ended_s = time.time()
                fom_client.post_figure_of_merit("graphs_per_s", config.batch_size / device_s)
                errors = step_errors(step.last, references[index]) if references else {}
                log.write(
                    StepSample(
                        stage=step.name, round=number, batch=index, structures=config.batch_size,
                        device_s=device_s, ended_s=round(ended_s, 6), load_1min=load,
                        dtype=str(step.last.gradient.dtype), **errors,
                    )
                )  # fmt: skip


def warm_up(
    stage: Stage,
    model: FoundationModel,
    batches: Sequence[LabelledBatch],
    config: TrainingStepsParameters,
    log: CaseLog,
) -> TimedStep | None:
    """Return the stage after its warm-up, or None if it cannot run here; log first step and memory, or the reason."""
    device = torch.device(config.device)
    reason = find_unavailable_reason(model.config.backbone, device) if stage.fused else None
    module = PerGraphErrors(model, fused=stage.fused)
    started = time.perf_counter()
    if reason is None and stage.compiled:
        reason = compile_loss(module, batches[0]).why_eager
    if reason is not None:
        log.write(Unavailable(stage=stage.name, reason=reason))
        return None
    step = TimedStep(stage.name, module, model, MultiTaskLoss(config.force_weight, config.batch_size))
    if not stage.compiled:
        step(batches[0])
    first_s = time.perf_counter() - started
    for batch in batches:
        step(batch)
    peak_bytes = timing.measure_peak_bytes(partial(step, batches[0]), device)
    log.write(WarmUp(stage=stage.name, first_s=first_s, peak_bytes=peak_bytes))
    return step
