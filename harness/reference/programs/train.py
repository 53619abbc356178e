"""Train the multi-task model and its gate on shipped sets or stores, one process per rank (suites/pretrain.yaml)."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.protocol.events import CaseLog
from harness.protocol.programs.train import GateErrors, HeadFactor, TrainFacts, TrainParameters
from harness.protocol.records import HeldOutErrors, Progress
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import (  # fmt: skip
    Dataset,
    DatasetCollection,
    find_stores,
    list_splits,
    load_shipped_splits,
    open_dataset,
    require_forces,
)
from harness.reference.datasets.holdout import OUTSIDE, check_datasets, hold_out, open_files
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from harness.reference.inference.precision import find_precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import select_backend
from harness.reference.potentials.physics import build_check_event
from harness.reference.potentials.reference_model import check_model
from harness.reference.programs.train_holdout import log_structure_errors
from harness.reference.storage.collectives import get_mpi_world
from harness.reference.storage.sampling.rank_assignment import compute_loss_weights
from harness.reference.storage.sampling.sampler import MixtureSampler, SamplingSpec
from harness.reference.training import state
from harness.reference.training.compile import CompileResult, compile_loss, count_compiled_graphs
from harness.reference.training.evaluation import CONTACT_SAMPLE, evaluate_test_sets, find_shortest_distance
from harness.reference.training.gate_training import train_gate
from harness.reference.training.head_groups import HeadGroups
from harness.reference.training.loader import BatchLoader, set_reference_energies, wrap_ddp
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors
from harness.reference.training.meters import TrainingLimits
from harness.reference.training.optimizer import OptimizerState
from harness.reference.training.run_facts import describe_identity, describe_run, observe_runtime
from harness.reference.training.shrinkage import find_best_factors
from harness.reference.training.trainer import Trainer

# The smallest units of errors; without them, a dataset with little variation dominates the loss.
MIN_ENERGY_UNIT = 0.05  # eV/atom
MIN_FORCE_UNIT = 0.1  # eV/angstrom
PHYSICS_DYNAMICS_STEPS = 100
SHRINKAGE_LIMIT = 1000  # number of validation structures of each dataset from which the factor of its head follows
GATE_LIMIT = 1000  # number of structures of each dataset on which the gate is trained

Splits = dict[str, DatasetCollection]


def run(config: TrainParameters, log: CaseLog, folder: Path) -> None:
    """Train the model and its gate, evaluate them, and write the checkpoint to the folder of the case."""
    if config.datasets is None:
        config = config.model_copy(update={"datasets": tuple(s.name for s in SHIPPED_SETS)})
    rank_info = launch.detect_rank(os.environ)
    if config.resume_previous and state.copy_finished_model(folder, log, rank_info.rank):
        return
    device = select_device(config.device, config.backend, rank_info)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    model_config = ModelConfig.from_parameters(config.model)
    splits = open_splits(config, model_config.neighbour_spec, rank_info)
    torch.manual_seed(config.seed)
    precision = find_precision(config.precision)
    model = precision.apply(FoundationModel(model_config))
    model.gate.requires_grad_(False)
    training = splits[SPLITS[0]]
    sampling = SamplingSpec(
        training.counts, config.sampling, config.sampling_temperature, config.seed, config.samples_per_epoch
    )
    sampler = MixtureSampler(sampling, rank_info.size, config.batch_size)
    loader = BatchLoader(
        training,
        sampler,
        precision.dtype,
        set_reference_energies(model, training),
        model_config.needs_triplets,
        config.balance,
    )
    with process_group(rank_info, backend=config.backend, device=device, timeout_s=config.timeout_s) as world:
        if config.resume_previous and rank_info.rank == 0:
            state.copy_state(folder)
        world.barrier()
        train(model.to(device), loader=loader, splits=splits, config=config, world=world, log=log, folder=folder)
        for split in SPLITS:
            splits[split].samples.close()


def open_splits(config: TrainParameters, neighbour_spec: NeighbourSpec, rank_info: RankInfo) -> Splits:
    """Open the training, validation and test sets of the case, by split; the call is collective for stores.

    With a holdout, there is also the split OUTSIDE: the test structures that satisfy the rule, and those of its files.

    Args:
        config: Parameters of the case.
        neighbour_spec: The definition of neighbours.
        rank_info: The rank of this process.

    Raises:
        InputError: There is no dataset for one of the splits, or forces are missing.
    """
    datasets: list[dict[str, Dataset]]
    if config.store_folder:
        comm = (
            get_mpi_world(rank_info) if rank_info.size > 1 and config.read_mode in ("shared", "distributed") else None
        )
        open_split = partial(
            open_dataset,
            neighbour_spec=neighbour_spec,
            mode=config.read_mode,
            comm=comm,
            width=config.replica_ranks,
            backend=config.store_backend,
        )
        paths = find_stores(Path(config.store_folder).expanduser())
        datasets = [{split: open_split(path, split=split) for split in list_splits(path)} for path in paths]
    else:
        datasets = [
            load_shipped_splits(
                name,
                test_fraction=config.test_fraction,
                seed=config.split_seed,
                limit=config.max_structures_per_dataset,
            )
            for name in config.datasets or ()
        ]
    require_forces([dataset for by_split in datasets for dataset in by_split.values()], config.force_weight)
    names = SPLITS
    available = {split for by_split in datasets for split, dataset in by_split.items() if len(dataset.samples)}
    if config.holdout is not None:
        check_datasets(config.holdout, [by_split[SPLITS[0]].name for by_split in datasets])
        if config.holdout.has_rule:
            datasets = [hold_out(by_split, config.holdout) for by_split in datasets]
        names = (*SPLITS, OUTSIDE)
    usable = {split: [d[split] for d in datasets if split in d and len(d[split].samples)] for split in names}
    if config.holdout is not None:
        usable[OUTSIDE] += open_files(config.holdout, usable[SPLITS[0]], neighbour_spec)
    for split, split_datasets in usable.items():
        if not split_datasets and config.holdout is not None and available.issuperset(SPLITS):
            rule = config.holdout.describe()
            raise InputError(f"holdout ({rule}): no structure is in the split {split!r}; choose another rule")
        if not split_datasets:
            source = config.store_folder or ", ".join(config.datasets or ())
            raise InputError(
                f"{source}: no dataset has a {split}; training needs {', '.join(SPLITS)}, which"
                " `harness data convert` makes of datasets with at least three groups of structures"
            )
    return {split: DatasetCollection(split_datasets, neighbour_spec) for split, split_datasets in usable.items()}


def train(
    model: FoundationModel,
    *,
    loader: BatchLoader,
    splits: Splits,
    config: TrainParameters,
    world: ProcessGroup,
    log: CaseLog,
    folder: Path,
) -> None:
    """Train on all ranks and, if all epochs are done, evaluate the model and write its checkpoint; collective."""
    for fitted in (model.reference_energy, model.scale):
        fitted.copy_(world.broadcast(fitted))
    groups = None
    complete = model
    if config.heads == "parallel":
        complete = FoundationModel(model.config).to(loader.dtype)
        complete.load_state_dict(model.state_dict())
        heads = [d.head for d in loader.collection.datasets]
        groups = HeadGroups(loader.sampler.assignment, heads, world)
        model.keep_heads(groups.heads)
    example = next(loader.iter_evaluation_batches(1000, world.device))
    message_backend = select_backend(config.message_backend, model, world)
    module, compiled = PerGraphErrors(model), CompileResult(False, "not requested")
    if config.compile:
        compiled = compile_loss(module, example)
    log.record_facts(describe_run(model, loader, {s: c.datasets for s, c in splits.items()}, config, world))
    log.record_facts(
        TrainFacts(
            runtime=observe_runtime(
                model,
                example[0],
                compiled=compiled,
                message_backend=message_backend,
                precision=config.precision,
                world=world,
            )
        )
    )
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    steps = config.epochs * loader.sampler.steps
    validation_sets = [d for d in splits[SPLITS[1]].datasets if groups is None or d.head in groups.heads]
    if not validation_sets:
        raise InputError(
            f"heads: parallel: none of the datasets of rank {world.rank} has a {SPLITS[1]}; remove"
            " `heads: parallel`, or convert these datasets again"
        )
    validation = replace(loader, collection=DatasetCollection(validation_sets, splits[SPLITS[1]].neighbour_spec))
    trainer = Trainer(
        replica=average_gradients(module, model, world, has_all_heads=groups is None),
        model=model,
        optimizer_state=OptimizerState(model, parameters, config, steps),
        objective=make_objective(loader, config, world),
        loader=loader,
        validation=partial(
            validation.iter_evaluation_batches,
            config.max_validation_structures,
            world.device,
            share=None if groups else world.rank_info,
        ),
        world=world,
        log=log,
        folder=folder,
        limits=TrainingLimits(
            config.epochs, config.early_stopping_patience, config.checkpoint_interval_s, config.time_limit_minutes
        ),
        groups=groups,
        identity=describe_identity(model, config.model_dump(), world),
    )
    trainer.resume()
    trainer.run(config.prefetch_batches)
    if not trainer.is_finished:
        return
    log.record_facts(TrainFacts(compiled_graphs=count_compiled_graphs()))
    if groups is not None:
        groups.merge_into(model, complete)
        complete = find_precision(config.precision).apply(complete)
        complete.fused = model.fused
    finish(complete.to(world.device), loader=loader, splits=splits, config=config, world=world, log=log, folder=folder)


def average_gradients(
    module: nn.Module, model: FoundationModel, world: ProcessGroup, *, has_all_heads: bool
) -> nn.Module:
    """Wrap the module so that gradients are averaged over ranks.

    Args:
        module: The module.
        model: The model inside the module.
        world: The ranks.
        has_all_heads: Whether every rank has all heads; otherwise gradients of heads are not averaged.
    """
    if world.size == 1:
        return module
    if not has_all_heads:
        head_parameters = {id(p) for p in model.heads.parameters()}
        ignored = [name for name, p in module.named_parameters() if id(p) in head_parameters]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    return wrap_ddp(module)


def make_objective(loader: BatchLoader, config: TrainParameters, world: ProcessGroup) -> MultiTaskLoss:
    """Return the loss, with errors in eV or in units of the variation of each dataset, divided by their weights."""
    if config.loss_units == "physical" and config.loss_temperature is None:
        return MultiTaskLoss(config.force_weight, config.batch_size)
    units = torch.ones(2, loader.references.shape[0], dtype=loader.dtype)
    weights = compute_loss_weights(loader.collection.counts, loader.sampler.draws, config.loss_temperature)
    for dataset, weight in zip(loader.collection.datasets, weights.tolist(), strict=True):
        if config.loss_units == "per_head":
            records = dataset.samples.get(np.arange(min(len(dataset.samples), 2000)))
            forces = [np.abs(r["forces"]).mean() for r in records if "forces" in r]
            units[0, dataset.head] = max(dataset.references.mae_ev_per_atom, MIN_ENERGY_UNIT)
            # the median, since a few structures far from equilibrium would hide the scale of those near it
            units[1, dataset.head] = max(float(np.median(forces)) if forces else 1.0, MIN_FORCE_UNIT)
        units[:, dataset.head] /= weight
    shared = world.broadcast(units.to(world.device))
    return MultiTaskLoss(config.force_weight, config.batch_size, shared[0], shared[1])


def finish(
    model: FoundationModel,
    *,
    loader: BatchLoader,
    splits: Splits,
    config: TrainParameters,
    world: ProcessGroup,
    log: CaseLog,
    folder: Path,
) -> None:
    """Train the gate on rank 0, evaluate on the test sets on all ranks, and write the checkpoint; collective."""
    notes: dict[str, Any] = {"training": config.model_dump()}
    model.eval().requires_grad_(False)
    if config.shrink_heads:
        notes["head_factors"] = shrink_heads(model, loader=loader, splits=splits, config=config, world=world, log=log)
    if config.gate_steps and len(loader.collection.datasets) > 1 and world.rank == 0:
        model.gate.requires_grad_(True)
        batches = (batch for batch, _ in loader.iter_evaluation_batches(GATE_LIMIT, world.device))
        gate_errors = train_gate(
            model, batches, temperature=config.sampling_temperature, steps=config.gate_steps, seed=config.seed
        )
        log.record_facts(TrainFacts(gate=msgspec.convert(asdict(gate_errors), GateErrors)))
        notes["gate"] = asdict(gate_errors)
        model.gate.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(world.broadcast(parameter))
    for dataset in splits[SPLITS[0]].datasets:
        model.closest[dataset.head] = find_shortest_distance(splits[SPLITS[0]], dataset, world)
    notes["closest_of"] = CONTACT_SAMPLE
    notes["test_errors"] = evaluate_test_sets(model, splits[SPLITS[0]], splits[SPLITS[2]], loader.references, world)
    log.record_facts(TrainFacts(test_errors=msgspec.convert(notes["test_errors"], list[HeldOutErrors])))
    if world.rank == 0:
        if config.holdout is not None:
            log_structure_errors(model, splits, references=loader.references, rule=config.holdout, world=world, log=log)
        checkpoints.save(model, folder / state.MODEL, notes)
        if config.physics_transformations:
            log_physics(folder / state.MODEL, config, world.device, log)


def shrink_heads(
    model: FoundationModel,
    *,
    loader: BatchLoader,
    splits: Splits,
    config: TrainParameters,
    world: ProcessGroup,
    log: CaseLog,
) -> dict[str, float]:
    """Multiply the scale of each head by its best factor on validation structures; return the factors; collective."""
    validation = replace(loader, collection=splits[SPLITS[1]])
    batches = validation.iter_evaluation_batches(SHRINKAGE_LIMIT, world.device)
    factors = world.broadcast(find_best_factors(model, batches, make_objective(loader, config, world)))
    model.scale.mul_(factors.to(model.scale))
    by_head = {HEADS[d.head]: round(float(factors[d.head]), 4) for d in loader.collection.datasets}
    log.record_facts(TrainFacts(head_factors=[HeadFactor(head=h, factor=f) for h, f in by_head.items()]))
    return by_head


def log_physics(checkpoint: Path, config: TrainParameters, device: torch.device, log: CaseLog) -> None:
    """Check the physics of the checkpoint as it was written, in the precision of the training."""
    log.write(Progress(done=0, total=1, activity="physics of the checkpoint"))
    model = find_precision(config.precision).apply(checkpoints.load(checkpoint)[0])
    model.to(device).eval().requires_grad_(False)
    for violation in check_model(
        model,
        transformations=config.physics_transformations,
        dynamics_steps=PHYSICS_DYNAMICS_STEPS,
        seed=config.seed,
    ):
        log.write(build_check_event(violation))
