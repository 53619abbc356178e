"""Training steps in three formulations (forward pass, loss, backward pass), timed in turn on the same batches.

An untrained model runs on the random workload with random labels; the time of a step does not depend on either.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import Flops, Unavailable, WarmUp
from harness.protocol.programs.training_steps import (
    STEP_STAGES,
    StepModel,
    StepSample,
    StepStageName,
    StepWorkload,
    TrainingStepsFacts,
    TrainingStepsParameters,
)
from harness.protocol.records import Observed, Progress
from harness.reference.data.neighbours import NeighbourList
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.errors import InputError
from harness.reference.inference.bucketing import get_shape
from harness.reference.inference.precision import find_precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import find_unavailable_reason
from harness.reference.profiling import fom_client, timing
from harness.reference.profiling.ceilings import measure_ceilings
from harness.reference.profiling.flops import WorkCount, count_work
from harness.reference.profiling.rounds import TimedRounds
from harness.reference.profiling.timing import observe
from harness.reference.training.compile import compile_loss
from harness.reference.training.loader import LabelledBatch, flatten
from harness.reference.training.loss import Labels, MultiTaskLoss, PerGraphErrors, collate_labelled


def make_model(config: TrainingStepsParameters) -> FoundationModel:
    """Return a model in which all parameters but the gate's are trained, as in pretraining."""
    torch.manual_seed(config.seed)
    model = find_precision(config.precision).apply(FoundationModel(ModelConfig.from_parameters(config.model)))
    model.gate.requires_grad_(False)
    return model.to(config.device)


def make_batches(model: FoundationModel, config: TrainingStepsParameters) -> list[LabelledBatch]:
    """Return batches of random structures for all heads in turn, with labels from a normal distribution (eV, A)."""
    rng = np.random.default_rng(config.seed)
    dtype = find_precision(config.precision).dtype
    spec = model.config.limit_neighbours(config.max_neighbours)
    graphs: list[NeighbourList] = []
    for k, structure in enumerate(make_random_structures(config.batches * config.batch_size, atoms=config.atoms)):
        labelled = replace(
            structure,
            head=k % len(HEADS),
            energy=float(rng.normal() * len(structure)),
            forces=rng.normal(size=structure.positions.shape),
        )
        graphs.append(spec.build_list(labelled))
    batches = []
    for first in range(0, len(graphs), config.batch_size):
        references = torch.zeros_like(model.reference_energy, dtype=torch.float64, device="cpu")
        batch, labels = collate_labelled(
            graphs[first : first + config.batch_size], references, dtype, with_triplets=model.config.needs_triplets
        )
        batches.append((batch.to(config.device, dtype), Labels(*(t.to(config.device) for t in labels))))
    return batches


def describe(
    model: FoundationModel, batches: Sequence[LabelledBatch], config: TrainingStepsParameters
) -> TrainingStepsFacts:
    """Return the facts on the model, the workload, the hardware and the software."""
    trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return TrainingStepsFacts(
        model=StepModel(config=model.config.asdict(), parameters=trained_parameters, trained=False),
        workload=StepWorkload(
            name="random",
            structures=config.batches * config.batch_size,
            atoms=sum(len(b.numbers) for b, _ in batches),
            edges=sum(len(b.receiver) for b, _ in batches),
            batches=config.batches,
            batch_size=config.batch_size,
            max_neighbours=model.config.limit_neighbours(config.max_neighbours).max_neighbours,
        ),
        runtime=observe(Observed, model, config.device, precision=config.precision),
    )


@dataclass(frozen=True)
class Stage:
    """One formulation of a training step."""

    name: StepStageName
    fused: bool = False
    compiled: bool = False


STAGES = tuple(Stage(name, fused=name == "fused_messages", compiled=name != "baseline") for name in STEP_STAGES)


class Result(NamedTuple):
    """The result of a step.

    Attributes:
        loss: The loss.
        gradient: [p] the gradient of all parameters.
    """

    loss: float
    gradient: Tensor


class TimedStep:
    """A stage with its model, ready to be timed: a call takes one step, and `last` is the result of that step.

    Attributes:
        work: The work of a step on the first batch, as it is without compilation.
    """

    def __init__(self, name: str, module: PerGraphErrors, model: FoundationModel, objective: MultiTaskLoss) -> None:
        self.name = name
        self._module, self._model, self._objective = module, model, objective
        self._loss: Tensor | None = None
        self.work = WorkCount()

    def __call__(self, labelled: LabelledBatch) -> None:
        """Run forward pass, loss and backward pass."""
        batch, labels = labelled
        self._model.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        self._loss = self._objective(self._module(leaf, labels), batch.head)
        self._loss.backward()

    @property
    def last(self) -> Result:
        """The result of the last step; it is valid until another stage takes a step on the same model."""
        assert self._loss is not None
        return Result(self._loss.item(), flatten([p.grad for p in self._model.parameters() if p.grad is not None]))

    def take_step(self, labelled: LabelledBatch) -> Result:
        """Take a step and return its result."""
        self(labelled)
        return self.last


def compute_step_errors(result: Result, expected: Result) -> dict[str, Any]:
    """Return the relative errors of loss and gradient, or only finite=False if the result is not finite."""
    if not math.isfinite(result.loss) or not bool(result.gradient.isfinite().all()):
        return {"finite": False}
    difference = torch.linalg.vector_norm((result.gradient - expected.gradient).double())
    return {
        "finite": True,
        "loss_error": abs(result.loss - expected.loss) / abs(expected.loss),
        "gradient_error": float(difference / torch.linalg.vector_norm(expected.gradient.double())),
    }


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
        log.write(Progress(done=k, total=total, activity=f"warm-up: {stage.name}"))
        step = warm_up(stage, model, batches, config, log)
        if step is not None:
            steps.append(step)
    if not steps:
        raise InputError("none of the stages can run here")
    kinds = {kind: sizes for step in steps for kind, sizes in step.work.kinds.items()}
    log.record_facts(TrainingStepsFacts(ceilings=measure_ceilings(kinds, torch.device(config.device))))
    references = [steps[0].take_step(b) for b in batches] if steps[0].name == STAGES[0].name else []
    rounds = TimedRounds(config)
    for number in rounds:
        total = len(stages) * (rounds.planned + 1)
        log.write(Progress(done=len(stages) * (number + 1), total=total, activity=f"round {number + 1}"))
        start = number % len(steps)
        for index, batch in enumerate(batches):
            for step in [*steps[start:], *steps[:start]]:
                load = os.getloadavg()[0]
                device_s = timing.time_call(partial(step, batch), torch.device(config.device))
                end_time_s = time.time()
                rounds.add(step.name, device_s)
                fom_client.post_figure_of_merit("structures_per_s", config.batch_size / device_s)
                errors = compute_step_errors(step.last, references[index]) if references else {}
                log.write(
                    StepSample(
                        stage=step.name, round=number, batch=index, structures=config.batch_size,
                        device_s=device_s, end_time_s=round(end_time_s, 6), load_1min=load,
                        dtype=str(step.last.gradient.dtype), **errors,
                    )
                )  # fmt: skip
    log.write(rounds.build_event())


def warm_up(
    stage: Stage,
    model: FoundationModel,
    batches: Sequence[LabelledBatch],
    config: TrainingStepsParameters,
    log: CaseLog,
) -> TimedStep | None:
    """Warm up a stage, and log the time of its first step and its memory, or why it cannot run.

    Returns:
        The step of the stage, ready to be timed, or None if the stage cannot run.
    """
    device = torch.device(config.device)
    reason = find_unavailable_reason(model.config.network, device) if stage.fused else None
    module = PerGraphErrors(model, fused=stage.fused)
    started = time.perf_counter()
    if reason is None and stage.compiled:
        reason = compile_loss(module, batches[0]).eager_reason
    if reason is not None:
        log.write(Unavailable(stage=stage.name, reason=reason))
        return None
    objective = MultiTaskLoss(config.force_weight, config.batch_size)
    step = TimedStep(stage.name, module, model, objective)
    eager = TimedStep(stage.name, PerGraphErrors(model, fused=stage.fused), model, objective)
    step.work = count_work(partial(eager, batches[0]), get_shape(batches[0][0]))
    if not stage.compiled:
        step(batches[0])
    first_s = time.perf_counter() - started
    for batch in batches:
        step(batch)
    peak_bytes = timing.measure_peak_bytes(partial(step, batches[0]), device)
    log.write(
        WarmUp(
            stage=stage.name,
            first_call_s=first_s,
            peak_bytes=peak_bytes,
            matrix_flops=step.work.matrix_flops,
            flops=[Flops(operation=of, dtype=dtype, flops=n) for (of, dtype), n in step.work.flops.items()],
        )
    )
    return step
