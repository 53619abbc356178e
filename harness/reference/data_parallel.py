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

import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.events import EventLog
from harness.reference import ranks
from harness.reference.agreement import gradient_error, parameter_divergence
from harness.reference.corpus import Corpus, Neighbourhood, shipped, stored, stores_in
from harness.reference.datasets.mini import MINI_SETS
from harness.reference.errors import InputError
from harness.reference.losses import GraphErrors, Objective
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.precision import precision
from harness.reference.ranks import Place
from harness.reference.regions import REGIONS, cut_step
from harness.reference.steps import Feed, Labelled, Pass, adopted, one_pass, replicate
from harness.reference.store.modes import Mode
from harness.reference.store.prefetch import Prefetch
from harness.reference.store.sampling import Recipe, Sampler
from harness.reference.store.together import world
from harness.reference.team import Team, joined, own_device

MOST_SIZES = 2000
CUT_STEPS = 11
EXCHANGES = 7


@dataclass(frozen=True)
class DataParallelConfig:
    """One scaling point; weights as in Objective.

    sets: shipped sets, of which only structures of atoms[0]..atoms[1] atoms; or stores: a folder of them, read in
    one of the modes, if distributed with one copy for every `width` ranks, by DDStore or by MPI
    (store_backend; auto: DDStore where it is installed). sampling: all ranks draw from all datasets
    (mixed) or each from its own (assigned), weighed by count ** (1 / temperature). batch_size: graphs per rank and
    step. steps: per epoch. ahead: batches made ready beforehand. max_neighbours holds in place of the model's own
    limit. timeout_s: how long a rank waits for the others before it gives the run up. network: what a projection to
    other numbers of ranks assumes of the machine; nothing here reads it.
    """

    batch_size: int
    precision: str
    backend: str = "gloo"
    device: str = "cpu"
    model: dict[str, object] = field(default_factory=dict)
    sets: tuple[str, ...] = tuple(s.name for s in MINI_SETS)
    atoms: tuple[int, int] | None = None
    stores: str = ""
    read: Mode = "preload"
    width: int | None = None
    store_backend: str = "auto"
    sampling: Literal["mixed", "assigned"] = "mixed"
    temperature: float = 1.0
    ahead: int = 2
    steps: int = 20
    epochs: int = 4
    learning_rate: float = 1e-3
    force_weight: float = 10.0
    max_neighbours: int | None = 20
    seed: int = 0
    timeout_s: float = 600.0
    network: dict[str, float] | None = None


class Scaling:
    """One run: a model on every rank, its optimizer, and the batches that come to it."""

    def __init__(
        self,
        replica: DistributedDataParallel,
        batches: Iterator[Labelled],
        config: DataParallelConfig,
        team: Team,
        log: EventLog,
    ) -> None:
        self.replica, self.batches, self.config, self.team, self.log = replica, batches, config, team, log
        self.objective = Objective(config.force_weight, config.batch_size)
        trained = [p for p in replica.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate)
        self.throughput: list[float] = []

    def epoch(self, number: int) -> list[Labelled]:
        """Train one epoch, write its samples, and return its batches."""
        config, team = self.config, self.team
        self.log.write(
            "progress", done=number * config.steps, total=config.epochs * config.steps, what="training steps"
        )
        batches: list[Labelled] = []
        team.meet()
        own = one_pass(
            self.replica, self.objective, self.optimizer, kept(islice(self.batches, config.steps), batches), team.device
        )
        times = torch.tensor([own.seconds, own.waits.sum()], dtype=torch.float64)
        slowest, mean = team.largest(times).tolist(), team.mean(times).tolist()
        graphs = team.place.size * config.batch_size * config.steps
        discarded = number == 0
        self.log.write(
            "epoch",
            epoch=number,
            discarded=discarded,
            graphs=graphs,
            train_s=slowest[0],
            train_s_mean=mean[0],
            wait_s=slowest[1],
            wait_s_mean=mean[1],
        )
        if not discarded:
            self.throughput.append(graphs / slowest[0])
        self._samples(number, own, batches)
        self._own_steps(number, own.busy, batches, exchanged=team.place.size > 1)
        return batches

    def _own_steps(self, epoch: int, busy: Tensor, batches: Sequence[Labelled], *, exchanged: bool) -> None:
        """Write rank 0's own steps with the size of what it worked on."""
        for step, (seconds, (batch, _)) in enumerate(zip(busy.tolist(), batches, strict=False)):
            size = {"graphs": len(batch.head), "atoms": len(batch.numbers), "edges": len(batch.receiver)}
            about = {"epoch": epoch, "step": step, "discarded": epoch == 0, "exchanged": exchanged}
            self.log.write("own_step", **about, busy=seconds, **size)

    def _samples(self, epoch: int, own: Pass, batches: Sequence[Labelled]) -> None:
        """Write what the ranks have measured of each step of an epoch; raise InputError if a loss is not finite."""
        sizes = torch.tensor([[len(b.numbers), len(b.receiver)] for b, _ in batches])
        columns = zip(
            self.team.largest(own.steps).tolist(),
            self.team.mean(own.steps).tolist(),
            self.team.largest(own.busy).tolist(),
            self.team.mean(own.waits).tolist(),
            self.team.mean(own.losses).tolist(),
            self.team.total(sizes).long().tolist(),
            self.team.largest(sizes).long().tolist(),
            strict=True,
        )
        for step, (slowest, mean, busy, wait, loss, (atoms, edges), most) in enumerate(columns):
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at epoch {epoch}, step {step}")
            self.log.write(
                "sample",
                epoch=epoch,
                step=step,
                discarded=epoch == 0,
                seconds=slowest,
                seconds_mean=mean,
                busy=busy,
                wait_mean=wait,
                graphs=self.team.place.size * self.config.batch_size,
                atoms=atoms,
                edges=edges,
                atoms_most=most[0],
                edges_most=most[1],
                loss=loss,
            )

    def compute_only(self, batches: Sequence[Labelled]) -> None:
        """The same steps without exchange; the ranks' parameters part, so this comes last.

        Others are made ready meanwhile, as in training, where that takes part of the cores.
        """
        self.team.meet()
        again = (batch for batch, _ in zip(batches, self.batches, strict=False))
        seconds = one_pass(self.replica, self.objective, self.optimizer, again, self.team.device, exchange=False).busy
        slowest, mean = self.team.largest(seconds).tolist(), self.team.mean(seconds).tolist()
        for step in range(len(batches)):
            self.log.write("compute_only", step=step, seconds=slowest[step], seconds_mean=mean[step])
        self._own_steps(self.config.epochs, seconds, batches, exchanged=False)

    def exchange(self) -> None:
        """All-reduces on their own: of the whole gradient, and of one number, for what a message costs."""
        if self.team.place.size == 1:
            return
        trained = [p for p in self.replica.parameters() if p.requires_grad]
        for count in (sum(p.numel() for p in trained), 1):
            content = torch.zeros(count, dtype=trained[0].dtype, device=self.team.device)
            for repeat in range(EXCHANGES + 1):
                self.team.meet()
                seconds = self.team.reduce_s(content)
                if repeat:  # the first one pays for what comes once
                    self.log.write("exchange", bytes=content.nbytes, seconds=seconds)

    def regions(self, model: FoundationModel, feed: Feed) -> None:
        """As many steps once more, cut up; after the first, which pays for what comes once."""
        times = []
        for step in range(min(self.config.steps, CUT_STEPS)):
            self.team.meet()
            drawn = feed.dealt(step, self.team.place.rank)
            times.append(cut_step(model, self.objective, self.optimizer, feed, drawn, self.team.device))
        slowest, mean = self.team.largest(torch.stack(times)), self.team.mean(torch.stack(times))
        for step in range(1, len(times)):
            for k, name in enumerate(REGIONS):
                self.log.write("region", step=step, name=name, seconds=slowest[step, k].item(),
                               seconds_mean=mean[step, k].item())  # fmt: skip


def sizes_of(batches: Sequence[Labelled]) -> list[list[int]]:
    """Atoms and edges of graphs that rank 0 was dealt, at most MOST_SIZES of them."""
    found: list[list[int]] = []
    for batch, _ in batches:
        count = len(batch.head)
        atoms, edges = (torch.bincount(of, minlength=count).tolist() for of in (batch.graph, batch.edge_graph))
        found += [[a, e] for a, e in zip(atoms, edges, strict=True)]
    return found[:MOST_SIZES]


def kept(batches: Iterable[Labelled], there: list[Labelled]) -> Iterator[Labelled]:
    """The batches, which are also put there."""
    for batch in batches:
        there.append(batch)
        yield batch


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: check the exchanged gradient, train, check that the ranks agree, and time steps on their own."""
    config = configure(parameters)
    place = ranks.find(os.environ)
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
    return Corpus([stored(path, reach, config.read, comm, config.width, config.store_backend) for path in found], reach)


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
