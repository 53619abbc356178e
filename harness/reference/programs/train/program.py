"""Train the multi-task model and its gate on shipped sets or stores, one process per rank (suites/pretrain.yaml).

Events besides those of every program:
    epoch     means over an epoch's training graphs and over the validation sets, and how fast it went
    head      the same for each head and split
    resumed   the run goes on from a state on disk; what it had told before is told again above
    skipped   a step was left out, as its gradient was no number; worst: the structure of rank 0 with the largest error
    stopped   why a run ended before its last epoch
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.protocol.events import EventLog
from harness.reference.datasets.collection import (  # fmt: skip
    Corpus,
    Dataset,
    Neighbourhood,
    parted,
    require_forces,
    splits_in,
    stored,
    stores_in,
)
from harness.reference.datasets.shipped_sets import MINI_SETS
from harness.reference.datasets.splitting.splits import SEED, SPLITS
from harness.reference.distributed import launch
from harness.reference.distributed.group import Team, joined, own_device
from harness.reference.distributed.launch import Place
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import Messages, chosen
from harness.reference.options import build
from harness.reference.storage.collectives import world
from harness.reference.storage.open import Mode
from harness.reference.storage.sampling.sampler import Recipe, Sampler
from harness.reference.training import continuation
from harness.reference.training.compile import Compiled, compiled_errors, times_compiled
from harness.reference.training.evaluation import CLOSEST_OF, held_out, shortest_distance
from harness.reference.training.gate_training import train_gate
from harness.reference.training.head_groups import HeadGroups
from harness.reference.training.loader import Feed, adopted, replicate
from harness.reference.training.loss import GraphErrors, Objective
from harness.reference.training.meters import Length
from harness.reference.training.optimizer import Optimization, OptimizerConfig
from harness.reference.training.run_facts import as_run, describe, identity
from harness.reference.training.trainer import Learning

# the least unit of an error, eV/atom and eV/angstrom: what a set hardly varies in would drown all else
LEAST_UNIT = 0.05
GATE_LIMIT = 1000


@dataclass(frozen=True)
class TrainingConfig(OptimizerConfig):
    """One training run; weights as in Objective, rates and schedules as in OptimizerConfig.

    sets: shipped sets, a share `held_out` of each for the test and half of it for validation, only the first `limit`
    structures; or stores: a folder of them with splits of their own, read as in DataParallelConfig. batch_size: graphs
    per rank and step. epoch_length: graphs an epoch draws, by default as many as there are; sampling and temperature as
    there. units: errors count in eV and eV/angstrom ("plain", as in the paper), or each head's in what composition and
    zero forces miss on its training set ("head"). heads: on every rank ("replicated"), or only those of the rank's own
    datasets ("parallel", with assigned sampling). balance: ranks get batches of as many atoms instead of as many
    graphs. messages: of PaiNN and PNAEq, through tensors of edges ("plain") or through one operator ("fused"); where
    there is none plain ones run, and the fact `observed` says why. validation_limit: structures of each set that are
    looked at after an epoch. stop_after: epochs without a better validation loss. gate_steps: 0 leaves the gate
    untrained. minutes: after which the run leaves its state and ends, one link of a chain; continues: it goes on from
    the state of the case before it.
    """

    precision: str = "fp32"
    model: dict[str, object] = field(default_factory=dict)
    sets: tuple[str, ...] = tuple(s.name for s in MINI_SETS)
    stores: str = ""
    read: Mode = "preload"
    width: int | None = None
    store_backend: str = "auto"
    held_out: float = 0.1
    split_seed: int = SEED
    limit: int | None = None
    sampling: Literal["mixed", "assigned"] = "mixed"
    temperature: float = 1.0
    balance: Literal["none", "atoms"] = "none"
    batch_size: int = 16
    epochs: int = 20
    epoch_length: int | None = None
    ahead: int = 2
    force_weight: float = 10.0
    units: Literal["plain", "head"] = "plain"
    stop_after: int | None = None
    validation_limit: int = 64
    heads: Literal["replicated", "parallel"] = "replicated"
    messages: Messages = "plain"
    compile: bool = True
    deterministic: bool = True
    gate_steps: int = 3000
    checkpoint_s: float = 300.0
    backend: str = "gloo"
    device: str = "cpu"
    seed: int = 0
    timeout_s: float = 600.0
    minutes: float | None = None
    continues: bool = False


Splits = dict[str, Corpus]


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: train, train the gate, evaluate, and leave its checkpoint in the run folder."""
    config = configure(parameters)
    place = launch.find(os.environ)
    if config.continues and continuation.ended_before(folder, log, place.rank):
        return
    device = own_device(config.device, config.backend, place)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    model_config = build(ModelConfig, config.model)
    splits = assembled(config, Neighbourhood(model_config.cutoff, model_config.max_neighbours), place)
    torch.manual_seed(config.seed)
    kind = precision(config.precision)
    model = kind.of(FoundationModel(model_config))
    model.gate.requires_grad_(False)
    training = splits[SPLITS[0]]
    recipe = Recipe(training.counts, config.sampling, config.temperature, config.seed, config.epoch_length)
    sampler = Sampler(recipe, place.size, config.batch_size)
    feed = Feed(training, sampler, kind.dtype, adopted(model, training), model_config.needs_triplets, config.balance)
    with joined(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        if config.continues and place.rank == 0:
            continuation.take_over(folder)
        team.meet()
        train(model.to(device), feed, splits, config, team, log, folder)
        for corpus in splits.values():
            corpus.samples.close()


def assembled(config: TrainingConfig, reach: Neighbourhood, place: Place) -> Splits:
    """The datasets that the case asks for, by split; those of stores are opened by all ranks together."""
    datasets: list[dict[str, Dataset]]
    if config.stores:
        comm = world(place) if place.size > 1 and config.read in ("shared", "distributed") else None
        opened = partial(
            stored, reach=reach, mode=config.read, comm=comm, width=config.width, backend=config.store_backend
        )
        found = stores_in(Path(config.stores).expanduser())
        datasets = [{split: opened(path, split=split) for split in splits_in(path)} for path in found]
    else:
        datasets = [
            parted(name, held_out=config.held_out, seed=config.split_seed, limit=config.limit) for name in config.sets
        ]
    require_forces([dataset for of_split in datasets for dataset in of_split.values()], config.force_weight)
    usable = {split: [d[split] for d in datasets if split in d and len(d[split].samples)] for split in SPLITS}
    for split, some in usable.items():
        if not some:
            where = config.stores or ", ".join(config.sets)
            raise InputError(
                f"{where}: no dataset has a {split}; training needs one to train on, one to validate and one to test,"
                " which `harness data convert` makes of at least three groups of structures"
            )
    return {split: Corpus(some, reach) for split, some in usable.items()}


def train(
    model: FoundationModel,
    feed: Feed,
    splits: Splits,
    config: TrainingConfig,
    team: Team,
    log: EventLog,
    folder: Path,
) -> None:
    """Everything that the ranks do together."""
    for fitted in (model.reference_energy, model.scale):
        fitted.copy_(team.from_first(fitted))
    groups = None
    complete = model
    if config.heads == "parallel":
        complete = FoundationModel(model.config).to(feed.dtype)
        complete.load_state_dict(model.state_dict())
        heads = [d.head for d in feed.corpus.datasets]
        groups = HeadGroups(feed.sampler.assignment, heads, team)
        model.keep(groups.heads)
    example = next(feed.every(1000, team.device))
    of_messages = chosen(config.messages, model.config.backbone, team)
    module, compiled = GraphErrors(model, fused=of_messages.fused), Compiled(False, "not asked for")
    if config.compile:
        compiled = compiled_errors(module, example)
    described = describe(model, feed, {s: c.datasets for s, c in splits.items()}, asdict(config), team)
    for name, value in described.items():
        log.fact(name, value)
    log.fact("observed", as_run(model, example[0], compiled, of_messages, config.precision, team))
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    steps = config.epochs * feed.sampler.steps
    seen = [d for d in splits[SPLITS[1]].datasets if groups is None or d.head in groups.heads]
    if not seen:
        raise InputError(
            f"heads: parallel: of the datasets of rank {team.place.rank} none has a {SPLITS[1]}; leave out"
            " `heads: parallel`, or convert these sets anew"
        )
    validation = replace(feed, corpus=Corpus(seen, splits[SPLITS[1]].reach))
    learning = Learning(
        exchanged(module, model, team, whole=groups is None),
        model,
        Optimization(model, parameters, config, steps),
        objective(feed, config, team),
        feed,
        partial(validation.every, config.validation_limit, team.device, share=None if groups else team.place),
        team,
        log,
        folder,
        Length(config.epochs, config.stop_after, config.checkpoint_s, config.minutes),
        groups,
        identity(model, asdict(config), team),
    )
    learning.resume()
    learning.run(config.ahead)
    if not learning.finished:
        return
    log.fact("graphs_compiled", times_compiled())
    if groups is not None:
        groups.whole(model, complete)
        complete = precision(config.precision).of(complete)
    finish(complete.to(team.device), feed, splits, config, team, log, folder)


def exchanged(module: nn.Module, model: FoundationModel, team: Team, *, whole: bool) -> nn.Module:
    """The module with gradients averaged over ranks; not those of heads, if each rank keeps its own."""
    if team.place.size == 1:
        return module
    if not whole:
        own = {id(p) for p in model.heads.parameters()}
        left_out = [name for name, p in module.named_parameters() if id(p) in own]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)
    return replicate(module)


def objective(feed: Feed, config: TrainingConfig, team: Team) -> Objective:
    """The loss, in the units asked for."""
    if config.units == "plain":
        return Objective(config.force_weight, config.batch_size)
    units = torch.ones(2, feed.references.shape[0], dtype=feed.dtype)
    for dataset in feed.corpus.datasets:
        records = dataset.samples.get(np.arange(min(len(dataset.samples), 2000)))
        forces = [np.abs(r["forces"]).mean() for r in records if "forces" in r]
        units[0, dataset.head] = max(dataset.references.mae_ev_per_atom, LEAST_UNIT)
        units[1, dataset.head] = max(float(np.mean(forces)) if forces else 1.0, LEAST_UNIT)
    shared = team.from_first(units.to(team.device))
    return Objective(config.force_weight, config.batch_size, shared[0], shared[1])


def finish(
    model: FoundationModel,
    feed: Feed,
    splits: Splits,
    config: TrainingConfig,
    team: Team,
    log: EventLog,
    folder: Path,
) -> None:
    """Train the gate, evaluate on the test sets, and write the model; all ranks evaluate, rank 0 does the rest."""
    notes: dict[str, Any] = {"training": asdict(config)}
    model.eval().requires_grad_(False)
    if config.gate_steps and len(feed.corpus.datasets) > 1 and team.place.rank == 0:
        model.gate.requires_grad_(True)
        batches = (batch for batch, _ in feed.every(GATE_LIMIT, team.device))
        found = train_gate(model, batches, temperature=config.temperature, steps=config.gate_steps, seed=config.seed)
        log.fact("gate", asdict(found))
        notes["gate"] = asdict(found)
        model.gate.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(team.from_first(parameter))
    for dataset in splits[SPLITS[0]].datasets:
        model.closest[dataset.head] = shortest_distance(splits[SPLITS[0]], dataset, team)
    notes["closest_of"] = CLOSEST_OF
    notes["held_out"] = held_out(model, splits[SPLITS[0]], splits[SPLITS[2]], feed.references, team)
    log.fact("held_out", notes["held_out"])
    if team.place.rank == 0:
        checkpoints.save(model, folder / continuation.MODEL, notes)


def configure(parameters: dict[str, Any]) -> TrainingConfig:
    """The case's parameters, checked; raises InputError for what the program does not know."""
    config = build(TrainingConfig, parameters)
    precision(config.precision)
    if not config.sets or len(set(config.sets)) < len(config.sets):
        raise InputError("sets: expected at least one name, and none twice")
    if min(config.batch_size, config.epochs, config.validation_limit) < 1:
        raise InputError(
            f"batch_size {config.batch_size}, epochs {config.epochs}, validation_limit {config.validation_limit}:"
            " expected at least 1 of each"
        )
    if not 0 < config.held_out < 0.5:
        raise InputError(f"held_out is {config.held_out}, expected a share above 0 and below 0.5")
    if config.heads == "parallel" and config.sampling != "assigned":
        raise InputError("heads: only with assigned sampling can a rank do with the heads of its own datasets")
    return config
