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
from harness.protocol.programs.train import GateErrors, TrainFacts, TrainParameters
from harness.protocol.records import HeldOutErrors
from harness.reference.datasets.collection import (  # fmt: skip
    Dataset,
    DatasetCollection,
    NeighbourSpec,
    find_stores,
    list_splits,
    load_shipped_splits,
    open_dataset,
    require_forces,
)
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, local_device, process_group
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import select_backend
from harness.reference.storage.collectives import get_mpi_world
from harness.reference.storage.sampling.sampler import DistributedSampler, SamplingSpec
from harness.reference.training import continuation
from harness.reference.training.compile import CompileResult, compile_loss, count_compiled_graphs
from harness.reference.training.evaluation import CONTACT_SAMPLE, evaluate_test_sets, shortest_distance
from harness.reference.training.gate_training import train_gate
from harness.reference.training.head_groups import HeadGroups
from harness.reference.training.loader import BatchLoader, set_reference_energies, wrap_ddp
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors
from harness.reference.training.meters import TrainingLimits
from harness.reference.training.optimizer import OptimizerState
from harness.reference.training.run_facts import describe, identity, observed_runtime
from harness.reference.training.trainer import Trainer

# the least unit of an error, eV/atom and eV/angstrom: what a set hardly varies in would drown all else
LEAST_UNIT = 0.05
GATE_LIMIT = 1000


Splits = dict[str, DatasetCollection]


def run(config: TrainParameters, log: CaseLog, folder: Path) -> None:
    """Train, train the gate, evaluate, and leave the checkpoint in the run folder."""
    if config.sets is None:
        config = config.model_copy(update={"sets": tuple(s.name for s in SHIPPED_SETS)})
    place = launch.detect_rank(os.environ)
    if config.continues and continuation.copy_finished_model(folder, log, place.rank):
        return
    device = local_device(config.device, config.backend, place)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    model_config = ModelConfig.from_parameters(config.model)
    splits = open_splits(config, NeighbourSpec(model_config.cutoff, model_config.max_neighbours), place)
    torch.manual_seed(config.seed)
    kind = precision(config.precision)
    model = kind.apply(FoundationModel(model_config))
    model.gate.requires_grad_(False)
    training = splits[SPLITS[0]]
    recipe = SamplingSpec(training.counts, config.sampling, config.temperature, config.seed, config.epoch_length)
    sampler = DistributedSampler(recipe, place.size, config.batch_size)
    feed = BatchLoader(
        training,
        sampler,
        kind.dtype,
        set_reference_energies(model, training),
        model_config.needs_triplets,
        config.balance,
    )
    with process_group(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        if config.continues and place.rank == 0:
            continuation.copy_state(folder)
        team.barrier()
        train(model.to(device), feed=feed, splits=splits, config=config, team=team, log=log, folder=folder)
        for corpus in splits.values():
            corpus.samples.close()


def open_splits(config: TrainParameters, reach: NeighbourSpec, place: RankInfo) -> Splits:
    """The datasets that the case asks for, by split; those of stores are opened by all ranks together."""
    datasets: list[dict[str, Dataset]]
    if config.stores:
        comm = get_mpi_world(place) if place.size > 1 and config.read in ("shared", "distributed") else None
        opened = partial(
            open_dataset, reach=reach, mode=config.read, comm=comm, width=config.width, backend=config.store_backend
        )
        found = find_stores(Path(config.stores).expanduser())
        datasets = [{split: opened(path, split=split) for split in list_splits(path)} for path in found]
    else:
        datasets = [
            load_shipped_splits(name, held_out=config.held_out, seed=config.split_seed, limit=config.limit)
            for name in config.sets or ()
        ]
    require_forces([dataset for of_split in datasets for dataset in of_split.values()], config.force_weight)
    usable = {split: [d[split] for d in datasets if split in d and len(d[split].samples)] for split in SPLITS}
    for split, some in usable.items():
        if not some:
            where = config.stores or ", ".join(config.sets or ())
            raise InputError(
                f"{where}: no dataset has a {split}; training needs one to train on, one to validate and one to test,"
                " which `harness data convert` makes of at least three groups of structures"
            )
    return {split: DatasetCollection(some, reach) for split, some in usable.items()}


def train(
    model: FoundationModel,
    *,
    feed: BatchLoader,
    splits: Splits,
    config: TrainParameters,
    team: ProcessGroup,
    log: CaseLog,
    folder: Path,
) -> None:
    """Everything that the ranks do together."""
    for fitted in (model.reference_energy, model.scale):
        fitted.copy_(team.broadcast(fitted))
    groups = None
    complete = model
    if config.heads == "parallel":
        complete = FoundationModel(model.config).to(feed.dtype)
        complete.load_state_dict(model.state_dict())
        heads = [d.head for d in feed.corpus.datasets]
        groups = HeadGroups(feed.sampler.assignment, heads, team)
        model.keep_heads(groups.heads)
    example = next(feed.evaluation_batches(1000, team.device))
    of_messages = select_backend(config.messages, model.config.backbone, team)
    module, compiled = PerGraphErrors(model, fused=of_messages.fused), CompileResult(False, "not asked for")
    if config.compile:
        compiled = compile_loss(module, example)
    log.record_facts(describe(model, feed, {s: c.datasets for s, c in splits.items()}, config, team))
    log.record_facts(
        TrainFacts(
            observed=observed_runtime(
                model, example[0], compiled=compiled, of_messages=of_messages, requested=config.precision, team=team
            )
        )
    )
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    steps = config.epochs * feed.sampler.steps
    seen = [d for d in splits[SPLITS[1]].datasets if groups is None or d.head in groups.heads]
    if not seen:
        raise InputError(
            f"heads: parallel: of the datasets of rank {team.rank} none has a {SPLITS[1]}; leave out"
            " `heads: parallel`, or convert these sets anew"
        )
    validation = replace(feed, corpus=DatasetCollection(seen, splits[SPLITS[1]].reach))
    learning = Trainer(
        replica=average_gradients(module, model, team, whole=groups is None),
        model=model,
        optimization=OptimizerState(model, parameters, config, steps),
        objective=objective(feed, config, team),
        feed=feed,
        validation=partial(
            validation.evaluation_batches,
            config.validation_limit,
            team.device,
            share=None if groups else team.rank_info,
        ),
        team=team,
        log=log,
        folder=folder,
        limits=TrainingLimits(config.epochs, config.stop_after, config.checkpoint_s, config.minutes),
        groups=groups,
        identity=identity(model, config.model_dump(), team),
    )
    learning.resume()
    learning.run(config.ahead)
    if not learning.is_finished:
        return
    log.record_facts(TrainFacts(graphs_compiled=count_compiled_graphs()))
    if groups is not None:
        groups.merge_into(model, complete)
        complete = precision(config.precision).apply(complete)
    finish(complete.to(team.device), feed=feed, splits=splits, config=config, team=team, log=log, folder=folder)


def average_gradients(module: nn.Module, model: FoundationModel, team: ProcessGroup, *, whole: bool) -> nn.Module:
    """The module with gradients averaged over ranks; not those of heads, if each rank keeps its own."""
    if team.size == 1:
        return module
    if not whole:
        own = {id(p) for p in model.heads.parameters()}
        left_out = [name for name, p in module.named_parameters() if id(p) in own]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)
    return wrap_ddp(module)


def objective(feed: BatchLoader, config: TrainParameters, team: ProcessGroup) -> MultiTaskLoss:
    """The loss, in the units asked for."""
    if config.units == "plain":
        return MultiTaskLoss(config.force_weight, config.batch_size)
    units = torch.ones(2, feed.references.shape[0], dtype=feed.dtype)
    for dataset in feed.corpus.datasets:
        records = dataset.samples.get(np.arange(min(len(dataset.samples), 2000)))
        forces = [np.abs(r["forces"]).mean() for r in records if "forces" in r]
        units[0, dataset.head] = max(dataset.references.mae_ev_per_atom, LEAST_UNIT)
        units[1, dataset.head] = max(float(np.mean(forces)) if forces else 1.0, LEAST_UNIT)
    shared = team.broadcast(units.to(team.device))
    return MultiTaskLoss(config.force_weight, config.batch_size, shared[0], shared[1])


def finish(
    model: FoundationModel,
    *,
    feed: BatchLoader,
    splits: Splits,
    config: TrainParameters,
    team: ProcessGroup,
    log: CaseLog,
    folder: Path,
) -> None:
    """Train the gate, evaluate on the test sets, and write the model; all ranks evaluate, rank 0 does the rest."""
    notes: dict[str, Any] = {"training": config.model_dump()}
    model.eval().requires_grad_(False)
    if config.gate_steps and len(feed.corpus.datasets) > 1 and team.rank == 0:
        model.gate.requires_grad_(True)
        batches = (batch for batch, _ in feed.evaluation_batches(GATE_LIMIT, team.device))
        found = train_gate(model, batches, temperature=config.temperature, steps=config.gate_steps, seed=config.seed)
        log.record_facts(TrainFacts(gate=msgspec.convert(asdict(found), GateErrors)))
        notes["gate"] = asdict(found)
        model.gate.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(team.broadcast(parameter))
    for dataset in splits[SPLITS[0]].datasets:
        model.closest[dataset.head] = shortest_distance(splits[SPLITS[0]], dataset, team)
    notes["closest_of"] = CONTACT_SAMPLE
    notes["held_out"] = evaluate_test_sets(model, splits[SPLITS[0]], splits[SPLITS[2]], feed.references, team)
    log.record_facts(TrainFacts(held_out=msgspec.convert(notes["held_out"], list[HeldOutErrors])))
    if team.rank_info.rank == 0:
        checkpoints.save(model, folder / continuation.MODEL, notes)
