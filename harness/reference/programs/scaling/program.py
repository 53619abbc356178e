"""Data-parallel training steps of the multi-task model, one process per rank: a point of weak or strong scaling.

Batches come from shipped sets or from stores, made ready in a thread while the one before is trained on. Epochs are
trained through without a barrier, each rank keeping its own step times; the first is discarded, as in the paper. One
more pass over the last epoch's batches without exchange of gradients tells computing from communicating: 1 - sum of
`compute_only` seconds / sum of `busy` seconds of the last epoch's samples is the share of communication.

Events besides those of every program:
    sample        one step: seconds (slowest rank), seconds_mean; busy: without the wait for data, on a device with it
                  (slowest rank); wait_mean: of the host for data; graphs, atoms, edges of all ranks; loss, their mean
    epoch         train_s and wait_s (slowest rank), and their means; wait_s is part of train_s
    own_step      one step of rank 0: busy seconds, graphs, atoms and edges of its own batch; exchanged: whether a
                  gradient was exchanged meanwhile
    compute_only  one step of the last pass: seconds (slowest rank), seconds_mean
    exchange      one all-reduce of so many bytes, on its own: seconds (slowest rank)
    region        seconds of one kind of work in one step, cut up (slowest rank), and their mean; see regions.py
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.protocol.events import EventLog
from harness.reference.datasets.collection import Corpus, Neighbourhood, require_forces, shipped, stored, stores_in
from harness.reference.distributed import launch
from harness.reference.distributed.group import Team, joined, own_device
from harness.reference.distributed.launch import Place
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.programs.scaling.consistency import gradient_error, parameter_divergence
from harness.reference.programs.scaling.run import DataParallelConfig, Scaling, sizes_of
from harness.reference.storage.collectives import world
from harness.reference.storage.prefetch import Prefetch
from harness.reference.storage.sampling.sampler import Recipe, Sampler
from harness.reference.training.loader import Feed, Labelled, adopted, replicate
from harness.reference.training.loss import GraphErrors, Objective


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: check the exchanged gradient, train, check that the ranks agree, and time steps on their own."""
    config = configure(parameters)
    place = launch.find(os.environ)
    device = own_device(config.device, config.backend, place)
    model_config = replace(build(ModelConfig, config.model), max_neighbours=config.max_neighbours)
    corpus = assembled(config, Neighbourhood(model_config.cutoff, config.max_neighbours), place)
    kind = precision(config.precision)
    recipe = Recipe(corpus.counts, config.sampling, config.temperature, config.seed)
    torch.manual_seed(config.seed)
    model = kind.of(FoundationModel(model_config))
    model.gate.requires_grad_(False)
    sampler = Sampler(recipe, place.size, config.batch_size)
    feed = Feed(corpus, sampler, kind.dtype, adopted(model, corpus), model_config.needs_triplets)
    with corpus.samples, joined(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        scale(model.to(device), feed, config, team, log)


def assembled(config: DataParallelConfig, reach: Neighbourhood, place: Place) -> Corpus:
    """The datasets that the case asks for; those of stores are opened by all ranks together."""
    if not config.stores:
        return Corpus([shipped(name, config.atoms) for name in config.sets], reach)
    comm = world(place) if place.size > 1 and config.read in ("shared", "distributed") else None
    found = stores_in(Path(config.stores).expanduser())
    datasets = [stored(path, reach, config.read, comm, config.width, config.store_backend) for path in found]
    require_forces(datasets, config.force_weight)
    return Corpus(datasets, reach)


def scale(model: FoundationModel, feed: Feed, config: DataParallelConfig, team: Team, log: EventLog) -> None:
    """Everything that the ranks do together."""
    for fitted in (model.reference_energy, model.scale):
        fitted.copy_(team.from_first(fitted))
    describe(model, feed, config, team, log)
    replica = replicate(GraphErrors(model))
    error, counted, graphs = gradient_error(replica, Objective(config.force_weight, config.batch_size), feed, team)
    log.fact("gradient_error", error)
    log.fact("gradient_check", {"ranks": counted, "graphs": graphs})

    def made(step: int) -> Labelled:
        return feed.batch(feed.dealt(step, team.place.rank), team.device)

    steps = range((config.epochs + 1) * config.steps)
    with Prefetch(made, steps, depth=config.ahead, samples=feed.corpus.samples) as ahead:
        scaling = Scaling(replica, ahead, config, team, log)
        batches: list[Labelled] = []
        for number in range(config.epochs):
            batches = scaling.epoch(number)
        log.fact("throughput_graphs_per_s", scaling.throughput)
        log.fact("parameter_divergence", parameter_divergence(model, team))
        scaling.compute_only(batches)
        scaling.exchange()
        scaling.regions(model, feed)
    log.fact("graph_sizes", sizes_of(batches))


def describe(model: FoundationModel, feed: Feed, config: DataParallelConfig, team: Team, log: EventLog) -> None:
    """Facts of model and workload, and of the ranks as each one finds itself."""
    place, device = team.place, team.device
    log.fact(
        "model",
        {
            "config": model.config.asdict(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
    )
    corpus = feed.corpus
    log.fact(
        "workload",
        {
            "sets": [
                {"set": d.name, "role": d.role, "level": d.level, "structures": len(d.samples), "drawn": n}
                for d, n in zip(corpus.datasets, feed.sampler.draws.tolist(), strict=True)
            ],
            "structures": sum(corpus.counts),
            "atoms": config.atoms,
            "read": config.read if config.stores else "preload",
            "sampling": config.sampling,
            "temperature": config.temperature,
            "batch_size": config.batch_size,
            "global_batch_size": config.batch_size * place.size,
            "steps": config.steps,
            "epochs": config.epochs,
            "passes": config.epochs * config.steps * config.batch_size * place.size / sum(corpus.counts),
            "max_neighbours": config.max_neighbours,
            "seed": config.seed,
        },
    )
    on_accelerator = device.type != "cpu"
    log.fact(
        "observed",
        {
            "requested": config.precision,
            "parameters": sorted({str(p.dtype) for p in model.parameters()}),
            "world_size": place.size,
            "backend": config.backend,
            "device": config.device,
            "device_name": torch.get_device_module(device).get_device_name(device) if on_accelerator else None,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )
    host = platform.node()
    own = {
        "rank": place.rank,
        "host": host,
        "node": os.environ.get("SLURMD_NODENAME", host),
        "local_rank": place.local_rank,
        "device": str(device),
        "cores": len(os.sched_getaffinity(0)),
    }
    log.fact("ranks", team.gathered(own))


def configure(parameters: dict[str, Any]) -> DataParallelConfig:
    """The case's parameters, checked; raises InputError for what the program does not know."""
    config = build(DataParallelConfig, parameters)
    precision(config.precision)
    if min(config.batch_size, config.steps) < 1:
        raise InputError(f"batch_size {config.batch_size}, steps {config.steps}: expected at least 1 of each")
    if config.epochs < 2:
        raise InputError(f"epochs: the first is discarded, so at least 2 are needed, got {config.epochs}")
    if config.stores and config.atoms is not None:
        raise InputError("atoms: only shipped sets can be limited to some sizes, not stores")
    if not config.sets or len(set(config.sets)) < len(config.sets):
        raise InputError("sets: expected at least one name, and none twice")
    return config
