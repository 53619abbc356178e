"""Time, memory and accuracy of BF16, FP32 and FP64 (suites/precision.yaml).

Every precision starts from the same weights and gets the same batches. Steps and predictions are timed in turn, so that
other load on the machine affects all precisions equally.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from harness.protocol.events import CaseLog
from harness.protocol.programs.precision import (
    REFERENCE,
    ModuleErrors,
    PeakMemory,
    PrecisionFacts,
    PrecisionModel,
    PrecisionParameters,
    PrecisionSample,
    PrecisionWorkload,
    PredictionErrors,
    TrainedErrors,
    WeightSource,
)
from harness.protocol.programs.train import OptimizerParameters, TrainSet
from harness.protocol.records import HeldOutErrors, Observed, ObservedTypes, Progress
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import DatasetCollection, load_shipped_splits
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from harness.reference.inference.precision import Precision, find_precision, observe_dtypes
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import MessageBackend, use_fused_messages
from harness.reference.potentials.physics import build_check_event
from harness.reference.potentials.reference_model import check_model
from harness.reference.profiling import timing
from harness.reference.profiling.rounds import TimedRounds
from harness.reference.profiling.timing import observe
from harness.reference.programs.precision.module_errors import compute_module_errors
from harness.reference.storage.sampling.sampler import MixtureSampler, SamplingSpec
from harness.reference.training.evaluation import evaluate_test_sets
from harness.reference.training.loader import BatchLoader, LabelledBatch, set_reference_energies
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors, backpropagate, predict_own_head
from harness.reference.training.optimizer import OptimizerState

# Checks that take most of the time, which a lower precision affects no more than the others.
SLOW_CHECKS = ("force constants",)


@dataclass
class PrecisionRun:
    """The model, batches and optimizer of one precision.

    Attributes:
        kind: The precision.
        model: The model.
        loader: The training batches.
        optimizer_state: The optimizer.
        message_backend: The implementation of the messages in use.
        finite: Whether the loss and its gradient have been finite so far.
    """

    kind: Precision
    model: FoundationModel
    loader: BatchLoader
    optimizer_state: OptimizerState
    message_backend: MessageBackend
    finite: bool = True


def run(config: PrecisionParameters, log: CaseLog, folder: Path) -> None:
    """Train in every precision, then predict with one set of weights, cast to every precision."""
    device = select_device(config.device, config.backend, RankInfo())
    model_config = ModelConfig.from_parameters(config.model)
    neighbour_spec = model_config.neighbour_spec
    names = config.datasets or [s.name for s in SHIPPED_SETS]
    parts = [
        load_shipped_splits(
            s, test_fraction=config.test_fraction, seed=config.split_seed, limit=config.max_structures_per_dataset
        )
        for s in names
    ]
    splits = {
        split: DatasetCollection([p[split] for p in parts if len(p[split].samples)], neighbour_spec) for split in SPLITS
    }
    test = splits[SPLITS[2]]
    checkpoint = None if config.checkpoint is None else load_checkpoint(config.checkpoint, model_config, test, device)
    runs = [
        make_run(find_precision(name), model_config, splits[SPLITS[0]], config, device) for name in config.precisions
    ]
    with process_group(RankInfo(), backend=config.backend, device=device, timeout_s=600) as world:
        log.record_facts(describe(runs, splits, checkpoint, config, device))
        train(runs, config, log, device)
        evaluate(runs, splits, log, world)
        steps = config.steps if checkpoint is None else None
        log.record_facts(PrecisionFacts(weights=WeightSource(checkpoint=config.checkpoint, steps=steps)))
        predict(checkpoint or runs[0].model, runs=runs, test=test, config=config, log=log, device=device)


def make_run(
    kind: Precision,
    model_config: ModelConfig,
    training: DatasetCollection,
    config: PrecisionParameters,
    device: torch.device,
) -> PrecisionRun:
    """Return a run in one precision; all runs start from the same weights, which are representable in FP32."""
    torch.manual_seed(config.seed)
    model = kind.apply(FoundationModel(model_config))
    sampling = SamplingSpec(
        training.counts, "mixed", config.sampling_temperature, config.seed, config.steps * config.batch_size
    )
    sampler = MixtureSampler(sampling, 1, config.batch_size)
    loader = BatchLoader(
        training, sampler, kind.dtype, set_reference_energies(model, training), model_config.needs_triplets
    )
    model.gate.requires_grad_(False)
    message_backend = use_fused_messages(model.to(device), device)
    weights = [*model.encoder.parameters(), *model.heads.parameters()]
    parameters = OptimizerParameters(learning_rate=config.learning_rate, clip_norm=10.0)
    return PrecisionRun(kind, model, loader, OptimizerState(model, weights, parameters, config.steps), message_backend)


def describe(
    runs: Sequence[PrecisionRun],
    splits: dict[str, DatasetCollection],
    checkpoint: FoundationModel | None,
    config: PrecisionParameters,
    device: torch.device,
) -> PrecisionFacts:
    """Return facts on the model, the data, the observed data types, and the memory of one step and one prediction."""
    first = runs[0].model
    message_backend = runs[0].message_backend
    types: dict[str, ObservedTypes] = {}
    memory: list[PeakMemory] = []
    for precision_run in runs:
        labelled = precision_run.loader.load_batch(precision_run.loader.select_indices(0, 0), device)
        types[precision_run.kind.name] = msgspec.convert(
            observe_dtypes(precision_run.model, labelled[0]), ObservedTypes
        )
        memory += measure_memory(precision_run, labelled, checkpoint, config, device)
    return PrecisionFacts(
        model=PrecisionModel(config=first.config.asdict(), parameters=sum(p.numel() for p in first.parameters())),
        workload=PrecisionWorkload(
            datasets=[
                TrainSet(dataset=d.name, head=HEADS[d.head], data_origin=d.data_origin, level_of_theory=d.level)
                for d in splits[SPLITS[0]].datasets
            ],
            batch_size=config.batch_size,
            steps=config.steps,
            seed=config.seed,
        ),
        memory=memory,
        runtime=observe(
            Observed,
            first,
            device,
            parameters=None,
            precisions=types,
            message_backend=message_backend.name,
            unfused_reason=message_backend.unfused_reason,
        ),
    )


def measure_memory(
    precision_run: PrecisionRun,
    labelled: LabelledBatch,
    checkpoint: FoundationModel | None,
    config: PrecisionParameters,
    device: torch.device,
) -> list[PeakMemory]:
    """Return the peak memory of a training step on the first batch, and of a prediction for the same structures.

    As in `predict`, the prediction is that of the checkpoint, if there is one, with its neighbours.
    """
    loader, kind = precision_run.loader, precision_run.kind
    model = kind.apply(copy.deepcopy(checkpoint or precision_run.model)).eval().requires_grad_(False)
    collection = DatasetCollection(loader.collection.datasets, model.config.neighbour_spec)
    batch, _ = replace(loader, collection=collection).load_batch(loader.select_indices(0, 0), device)

    def take_step_without_update() -> None:
        backpropagate(compute_loss(precision_run, labelled, config), precision_run.model)

    training = timing.measure_peak_bytes(take_step_without_update, device)
    precision_run.optimizer_state.optimizer.zero_grad()
    inference = timing.measure_peak_bytes(partial(predict_own_head, model, batch, create_graph=False), device)
    return [
        PeakMemory(phase="training", precision=kind.name, peak_bytes=training),
        PeakMemory(phase="inference", precision=kind.name, peak_bytes=inference),
    ]


def compute_loss(precision_run: PrecisionRun, labelled: LabelledBatch, config: PrecisionParameters) -> Tensor:
    """Return the paper's loss of one batch."""
    batch, labels = labelled
    objective = MultiTaskLoss(config.force_weight, config.batch_size)
    return objective(PerGraphErrors(precision_run.model)(batch, labels), batch.head)


def train(runs: Sequence[PrecisionRun], config: PrecisionParameters, log: CaseLog, device: torch.device) -> None:
    """Take every step in every precision, in rotating order.

    A precision whose loss or gradient is not finite takes no further step.
    """
    for step in range(config.steps):
        first = step % len(runs)
        indices = runs[0].loader.select_indices(step, 0)
        for precision_run in [*runs[first:], *runs[:first]]:
            if not precision_run.finite:
                continue
            labelled = precision_run.loader.load_batch(indices, device)
            losses: list[float] = []
            seconds = timing.time_call(partial(take_step, precision_run, labelled, config, losses), device)
            precision_run.finite = math.isfinite(losses[0])
            log.write(
                PrecisionSample(
                    phase="training", precision=precision_run.kind.name, round=step, structures=config.batch_size,
                    is_warmup=step < config.timing_warmup_steps, duration_s=seconds,
                    loss=losses[0] if precision_run.finite else None,
                )
            )  # fmt: skip
        if step % 10 == 0:
            log.write(Progress(done=step, total=config.steps, activity="training steps in each precision"))


def take_step(
    precision_run: PrecisionRun, labelled: LabelledBatch, config: PrecisionParameters, losses: list[float]
) -> None:
    """Run forward pass, backward pass and update; append the loss to `losses`, or NaN if a gradient is not finite."""
    precision_run.optimizer_state.optimizer.zero_grad()
    loss = compute_loss(precision_run, labelled, config)
    backpropagate(loss, precision_run.model)
    has_updated = precision_run.optimizer_state.step()
    losses.append(loss.item() if has_updated else math.nan)


def evaluate(
    runs: Sequence[PrecisionRun], splits: dict[str, DatasetCollection], log: CaseLog, world: ProcessGroup
) -> None:
    """Log the test errors of each trained model in its own precision."""
    for precision_run in runs:
        precision_run.model.eval().requires_grad_(False)
        if precision_run.finite:
            rows = evaluate_test_sets(
                precision_run.model, splits[SPLITS[0]], splits[SPLITS[2]], precision_run.loader.references, world
            )
            log.write(TrainedErrors(precision=precision_run.kind.name, rows=msgspec.convert(rows, list[HeldOutErrors])))


def load_checkpoint(
    name: str, model_config: ModelConfig, test: DatasetCollection, device: torch.device
) -> FoundationModel:
    """Load the model whose predictions are compared.

    Args:
        name: The name or the path of a checkpoint.
        model_config: The configuration of the models that are trained.
        test: The test sets.
        device: The device of the model.

    Raises:
        InputError: The checkpoint cannot be read, has another backbone, or was not trained on the head of a test set.
    """
    model, _ = checkpoints.load_named(name)
    if model.config.backbone != model_config.backbone:
        raise InputError(f"{name}: has the backbone {model.config.backbone}, expected {model_config.backbone}")
    if untrained := [d.name for d in test.datasets if not bool(model.trained[d.head])]:
        raise InputError(f"{name}: was not trained on the head of {untrained[0]}")
    use_fused_messages(model, device)
    return model.eval().requires_grad_(False).to(device)


def predict(
    model: FoundationModel,
    *,
    runs: Sequence[PrecisionRun],
    test: DatasetCollection,
    config: PrecisionParameters,
    log: CaseLog,
    device: torch.device,
) -> None:
    """Predict with one model in every precision: log the errors, then time rounds of predictions in turn.

    Neighbours are those of this model, and structures with elements that it was not trained on are left out.
    """
    models, batches = {}, {}
    test = DatasetCollection(test.datasets, model.config.neighbour_spec)
    known_elements = model.known_elements.cpu().numpy()
    for precision_run in runs:
        models[precision_run.kind.name] = precision_run.kind.apply(copy.deepcopy(model))
        references = model.reference_energy.double().cpu()
        loader = BatchLoader(
            test, precision_run.loader.sampler, precision_run.kind.dtype, references, model.config.needs_triplets
        )
        batches[precision_run.kind.name] = list(
            loader.iter_evaluation_batches(config.predictions, device, known_elements=known_elements)
        )
    if not batches[REFERENCE]:
        raise InputError("no test structure has only elements that the model was trained on")
    exact = [predict_own_head(models[REFERENCE], batch, create_graph=False) for batch, _ in batches[REFERENCE]]
    for name, cast in models.items():
        for k, labelled in enumerate(batches[name]):
            log.write(compute_prediction_errors(name, cast, labelled, exact[k], batches[REFERENCE][k]))
        if name != REFERENCE:
            for row in compute_module_errors(models[REFERENCE], cast, batches[REFERENCE][0][0], batches[name][0][0]):
                log.write(ModuleErrors(precision=name, **row))
        if config.physics_transformations:
            log.write(Progress(done=0, total=config.rounds, activity=f"physics of {name}"))
            for violation in check_model(
                cast, transformations=config.physics_transformations, skip=SLOW_CHECKS, seed=config.seed
            ):
                log.write(build_check_event(violation, precision=name))
    names = list(models)
    total = sum(len(batch.head) for batch, _ in batches[REFERENCE])
    rounds = TimedRounds(config)
    for number in rounds:
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            seconds = timing.time_call(partial(predict_all, models[name], batches[name]), device)
            rounds.add(name, seconds)
            log.write(
                PrecisionSample(
                    phase="inference",
                    precision=name,
                    round=number,
                    is_warmup=False,
                    structures=total,
                    duration_s=seconds,
                )
            )
        log.write(Progress(done=number + 1, total=rounds.planned, activity="rounds of predictions"))
    log.write(rounds.build_event())


def predict_all(model: FoundationModel, batches: Sequence[LabelledBatch]) -> None:
    """Predict energy and forces of every batch."""
    for batch, _ in batches:
        predict_own_head(model, batch, create_graph=False)


def compute_prediction_errors(
    precision_name: str,
    model: FoundationModel,
    labelled: LabelledBatch,
    exact: tuple[Tensor, Tensor],
    reference: LabelledBatch,
) -> PredictionErrors:
    """Return the errors of the predictions for one batch, relative to FP64 and to the labels.

    Args:
        precision_name: The name of the precision.
        model: The model in this precision.
        labelled: A batch of one head, in this precision.
        exact: Energies [g] and forces [n, 3] in FP64.
        reference: The same batch and labels in FP64.

    Returns:
        The errors; an error that is not finite is None.
    """
    energy, forces = (t.detach().double() for t in predict_own_head(model, labelled[0], create_graph=False))
    exact_energy, exact_forces = (t.detach().double() for t in exact)
    batch, labels = reference
    known = labels.force_mask.squeeze(1) > 0
    values = {
        "energy_deviation_mean_ev_per_atom": ((energy - exact_energy).abs() / batch.n_atoms).mean(),
        "energy_deviation_max_ev_per_atom": ((energy - exact_energy).abs() / batch.n_atoms).max(),
        "force_deviation_mean_ev_per_angstrom": (forces - exact_forces).abs().mean(),
        "force_deviation_max_ev_per_angstrom": (forces - exact_forces).abs().max(),
        "force_scale_ev_per_angstrom": exact_forces.abs().max(),
        "energy_mae_ev_per_atom": ((energy - labels.residual_energy).abs() / batch.n_atoms).mean(),
        "force_mae_ev_per_angstrom": (forces - labels.forces)[known].abs().mean(),
    }
    plain = {name: value.item() if bool(value.isfinite()) else None for name, value in values.items()}
    return PredictionErrors(
        precision=precision_name, head=HEADS[int(batch.head[0])], structures=len(batch.head), **plain
    )
