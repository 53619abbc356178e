"""One scaling run of a rank: epochs trained through and timed, and what tells computing from communicating."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.protocol.events import CaseLog
from harness.protocol.programs.data_parallel import (
    REGIONS,
    ComputeOnly,
    DataParallelParameters,
    Exchange,
    OwnStep,
    Region,
    ScalingEpoch,
    ScalingSample,
)
from harness.protocol.records import Progress
from harness.reference.distributed.group import ProcessGroup
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client
from harness.reference.programs.scaling.phases import time_regions
from harness.reference.training.loader import BatchLoader, EpochTiming, LabelledBatch, timed_epoch
from harness.reference.training.loss import MultiTaskLoss

MOST_SIZES = 2000
CUT_STEPS = 11
EXCHANGES = 7


class Scaling:
    """One run: a model on every rank, its optimizer, and the batches that come to it."""

    def __init__(
        self,
        replica: DistributedDataParallel,
        batches: Iterator[LabelledBatch],
        config: DataParallelParameters,
        team: ProcessGroup,
        log: CaseLog,
    ) -> None:
        self.replica, self.batches, self.config, self.team, self.log = replica, batches, config, team, log
        self.objective = MultiTaskLoss(config.force_weight, config.batch_size)
        trained = [p for p in replica.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate)
        self.throughput: list[float] = []

    def epoch(self, number: int) -> list[LabelledBatch]:
        """Train one epoch, write its samples, and return its batches."""
        config, team = self.config, self.team
        self.log.write(Progress(done=number * config.steps, total=config.epochs * config.steps, what="training steps"))
        batches: list[LabelledBatch] = []
        team.barrier()
        own = timed_epoch(
            self.replica,
            self.objective,
            self.optimizer,
            record_batches(islice(self.batches, config.steps), batches),
            team.device,
        )
        times = torch.tensor([own.seconds, own.waits.sum()], dtype=torch.float64)
        slowest, mean = team.all_reduce_max(times).tolist(), team.all_reduce_mean(times).tolist()
        graphs = team.size * config.batch_size * config.steps
        discarded = number == 0
        self.log.write(
            ScalingEpoch(
                epoch=number, discarded=discarded, graphs=graphs, train_s=slowest[0], train_s_mean=mean[0],
                wait_s=slowest[1], wait_s_mean=mean[1],
            )
        )  # fmt: skip
        if not discarded:
            self.throughput.append(graphs / slowest[0])
            fom_client.post_figure_of_merit("graphs_per_s", graphs / slowest[0])
        self._samples(number, own, batches)
        self._own_steps(number, own.busy, batches, exchanged=team.size > 1)
        return batches

    def _own_steps(self, epoch: int, busy: Tensor, batches: Sequence[LabelledBatch], *, exchanged: bool) -> None:
        """Write rank 0's own steps with the size of what it worked on."""
        for step, (seconds, (batch, _)) in enumerate(zip(busy.tolist(), batches, strict=False)):
            self.log.write(
                OwnStep(
                    epoch=epoch, step=step, discarded=epoch == 0, exchanged=exchanged, busy=seconds,
                    graphs=len(batch.head), atoms=len(batch.numbers), edges=len(batch.receiver),
                )
            )  # fmt: skip

    def _samples(self, epoch: int, own: EpochTiming, batches: Sequence[LabelledBatch]) -> None:
        """Write what the ranks have measured of each step of an epoch; raise InputError if a loss is not finite."""
        sizes = torch.tensor([[len(b.numbers), len(b.receiver)] for b, _ in batches])
        columns = zip(
            self.team.all_reduce_max(own.steps).tolist(),
            self.team.all_reduce_mean(own.steps).tolist(),
            self.team.all_reduce_max(own.busy).tolist(),
            self.team.all_reduce_mean(own.waits).tolist(),
            self.team.all_reduce_mean(own.losses).tolist(),
            self.team.all_reduce_sum(sizes).long().tolist(),
            self.team.all_reduce_max(sizes).long().tolist(),
            strict=True,
        )
        for step, (slowest, mean, busy, wait, loss, (atoms, edges), most) in enumerate(columns):
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at epoch {epoch}, step {step}")
            self.log.write(
                ScalingSample(
                    epoch=epoch, step=step, discarded=epoch == 0, seconds=slowest, seconds_mean=mean, busy=busy,
                    wait_mean=wait, graphs=self.team.rank_info.size * self.config.batch_size, atoms=atoms, edges=edges,
                    atoms_most=most[0], edges_most=most[1], loss=loss,
                )
            )  # fmt: skip

    def compute_only(self, batches: Sequence[LabelledBatch]) -> None:
        """The same steps without exchange; the ranks' parameters part, so this comes last.

        Others are made ready meanwhile, as in training, where that takes part of the cores.
        """
        self.team.barrier()
        again = (batch for batch, _ in zip(batches, self.batches, strict=False))
        seconds = timed_epoch(
            self.replica, self.objective, self.optimizer, again, self.team.device, exchange=False
        ).busy
        slowest, mean = self.team.all_reduce_max(seconds).tolist(), self.team.all_reduce_mean(seconds).tolist()
        for step in range(len(batches)):
            self.log.write(ComputeOnly(step=step, seconds=slowest[step], seconds_mean=mean[step]))
        self._own_steps(self.config.epochs, seconds, batches, exchanged=False)

    def exchange(self) -> None:
        """All-reduces on their own: of the whole gradient, and of one number, for what a message costs."""
        if self.team.size == 1:
            return
        trained = [p for p in self.replica.parameters() if p.requires_grad]
        for count in (sum(p.numel() for p in trained), 1):
            content = torch.zeros(count, dtype=trained[0].dtype, device=self.team.device)
            for repeat in range(EXCHANGES + 1):
                self.team.barrier()
                seconds = self.team.time_all_reduce(content)
                if repeat:  # the first one pays for what comes once
                    self.log.write(Exchange(bytes=content.nbytes, seconds=seconds))

    def regions(self, model: FoundationModel, feed: BatchLoader) -> None:
        """As many steps once more, cut up; after the first, which pays for what comes once."""
        times = []
        for step in range(min(self.config.steps, CUT_STEPS)):
            self.team.barrier()
            drawn = feed.indices_for(step, self.team.rank_info.rank)
            times.append(
                time_regions(
                    model,
                    objective=self.objective,
                    optimizer=self.optimizer,
                    feed=feed,
                    drawn=drawn,
                    device=self.team.device,
                )
            )
        slowest, mean = self.team.all_reduce_max(torch.stack(times)), self.team.all_reduce_mean(torch.stack(times))
        for step in range(1, len(times)):
            for k, name in enumerate(REGIONS):
                seconds, seconds_mean = slowest[step, k].item(), mean[step, k].item()
                self.log.write(Region(step=step, name=name, seconds=seconds, seconds_mean=seconds_mean))


def graph_sizes(batches: Sequence[LabelledBatch]) -> list[tuple[float, float]]:
    """Atoms and edges of graphs that rank 0 was dealt, at most MOST_SIZES of them."""
    found: list[tuple[float, float]] = []
    for batch, _ in batches:
        count = len(batch.head)
        atoms, edges = (torch.bincount(of, minlength=count).tolist() for of in (batch.graph, batch.edge_graph))
        found += [(a, e) for a, e in zip(atoms, edges, strict=True)]
    return found[:MOST_SIZES]


def record_batches(batches: Iterable[LabelledBatch], there: list[LabelledBatch]) -> Iterator[LabelledBatch]:
    """The batches, which are also put there."""
    for batch in batches:
        there.append(batch)
        yield batch
