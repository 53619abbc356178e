"""One scaling run of a rank: epochs trained through and timed, and what tells computing from communicating."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.protocol.events import EventLog
from harness.reference.datasets.shipped_sets import MINI_SETS
from harness.reference.distributed.group import Team
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client
from harness.reference.programs.scaling.phases import REGIONS, cut_step
from harness.reference.storage.open import Mode
from harness.reference.training.loader import Feed, Labelled, Pass, one_pass
from harness.reference.training.loss import Objective

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
            fom_client.post("graphs_per_s", graphs / slowest[0])
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
