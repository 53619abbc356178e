"""Training steps in three formulations (forward pass, loss, backward pass), timed in turn on the same batches.

An untrained model runs on the random workload with random labels: the same operations run, whatever the labels are.
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
from harness.reference.distributed.group import check_device, synchronize
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
from harness.reference.training.loss import Labels, MultiTaskLoss, PerGraphErrors, backpropagate, collate_labelled


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
    """One formulation of a training step.

    Attributes:
        name: The name in parameters and logs.
        fused: Whether messages are computed by the fused operator.
        compiled: Whether torch.compile compiles the step; fused messages are timed in compiled code alone.
    """

    name: StepStageName
    fused: bool = False
    compiled: bool = False


STAGES = tuple(Stage(name, fused=name == "fused_messages", compiled=name != "baseline") for name in STEP_STAGES)


class StepResult(NamedTuple):
    """The result of a step.

    Attributes:
        loss: The loss.
        gradient: [p] the gradient of all parameters.
    """

    loss: float
    gradient: Tensor


class TimedStep:
    """A stage with its model, ready to be timed: a call takes one step, and `copy_result` returns its result.

    Attributes:
        name: The name of the stage.
        work: The work of a step on the first batch, as it is without compilation.
    """

    def __init__(self, name: str, module: PerGraphErrors, model: FoundationModel, objective: MultiTaskLoss) -> None:
        self.name = name
        self._module, self._model, self._objective = module, model, objective
        self._loss: Tensor | None = None
        self.work = WorkCount()

    def __call__(self, labelled_batch: LabelledBatch) -> None:
        """Run forward pass, loss and backward pass."""
        batch, labels = labelled_batch
        self._model.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        self._loss = self._objective(self._module(leaf, labels), batch.head)
        backpropagate(self._loss, self._module)

    def copy_result(self) -> StepResult:
        """Return the result of the last step; call it before another stage takes a step on the same model."""
        assert self._loss is not None
        return StepResult(self._loss.item(), flatten([p.grad for p in self._model.parameters() if p.grad is not None]))

    def take_step(self, labelled_batch: LabelledBatch) -> StepResult:
        """Take a step and return its result."""
        self(labelled_batch)
        return self.copy_result()


def is_finite(result: StepResult) -> bool:
    """Return whether the loss and all elements of the gradient are finite."""
    return math.isfinite(result.loss) and bool(result.gradient.isfinite().all())


def compute_step_errors(result: StepResult, baseline: StepResult) -> dict[str, Any]:
    """Return the relative errors of loss and gradient as fields of a `StepSample`.

    If the result is not finite, the only field is `finite`; if only the baseline's is not finite, there is none.
    """
    if not is_finite(result):
        return {"finite": False}
    if not is_finite(baseline):
        return {}
    gradient = baseline.gradient.to(result.gradient.device)
    difference = torch.linalg.vector_norm((result.gradient - gradient).double())
    return {
        "finite": True,
        "loss_error": abs(result.loss - baseline.loss) / abs(baseline.loss),
        "gradient_error": float(difference / torch.linalg.vector_norm(gradient.double())),
    }


def run(config: TrainingStepsParameters, log: CaseLog, folder: Path) -> None:
    """Warm up all stages, then time them in turn in rounds."""
    check_device(config.device)
    torch.use_deterministic_algorithms(True, warn_only=True)  # as in training
    model = make_model(config)
    batches = make_batches(model, config)
    log.record_facts(describe(model, batches, config))
    stages = [s for s in STAGES if s.name in config.stages]
    total = len(stages) * (config.rounds + 1)
    timed_steps: list[TimedStep] = []
    for k, stage in enumerate(stages):
        log.write(Progress(done=k, total=total, activity=f"warm-up: {stage.name}"))
        step = warm_up(stage, model, batches, config, log)
        if step is not None:
            timed_steps.append(step)
    if not timed_steps:
        raise InputError("none of the stages can run here")
    kinds = {kind: sizes for step in timed_steps for kind, sizes in step.work.kinds.items()}
    log.record_facts(TrainingStepsFacts(ceilings=measure_ceilings(kinds, torch.device(config.device))))
    first = timed_steps[0]
    references = [move_to_host(first.take_step(b)) for b in batches] if first.name == STAGES[0].name else []
    rounds = TimedRounds(config)
    for number in rounds:
        total = len(stages) * (rounds.planned + 1)
        log.write(Progress(done=len(stages) * (number + 1), total=total, activity=f"round {number + 1}"))
        start = number % len(timed_steps)
        for index, batch in enumerate(batches):
            for step in [*timed_steps[start:], *timed_steps[:start]]:
                load = os.getloadavg()[0]
                device_s = timing.time_call(partial(step, batch), torch.device(config.device))
                end_time_s = time.time()
                rounds.add(step.name, device_s)
                fom_client.post_figure_of_merit("structures_per_s", config.batch_size / device_s)
                result = step.copy_result()
                errors = compute_step_errors(result, references[index]) if references else {}
                log.write(
                    StepSample(
                        stage=step.name, round=number, batch=index, structures=config.batch_size,
                        device_s=device_s, end_time_s=round(end_time_s, 6), load_1min=load,
                        dtype=str(result.gradient.dtype), **errors,
                    )
                )  # fmt: skip
    log.write(rounds.build_event())


def move_to_host(result: StepResult) -> StepResult:
    """Return the result with its gradient on the host, where the gradients of all batches have room."""
    return result._replace(gradient=result.gradient.cpu())


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
    if not stage.compiled:  # the compilation takes a first step
        step(batches[0])
    synchronize(device)
    first_s = time.perf_counter() - started
    eager = TimedStep(stage.name, PerGraphErrors(model, fused=stage.fused), model, objective)
    step.work = count_work(partial(eager, batches[0]), get_shape(batches[0][0]))
    for batch in batches:
        step(batch)
    largest = max(batches, key=lambda labelled_batch: len(labelled_batch[0].receiver))
    model.zero_grad()  # the step would free these gradients, and its peak would lack their bytes
    peak_bytes = timing.measure_peak_bytes(partial(step, largest), device)
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
