"""The measurements of a scaling run on one rank: epochs, computation alone, all-reduce alone, and regions of a step.

The regions are timed in separate steps without prefetching and without all-reduce of gradients, with a time mark after
each region. On a GPU, the marks are events in its queue, which do not interrupt the computation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.protocol.events import CaseLog
from harness.protocol.programs.data_parallel import (
    REGIONS,
    AllReduce,
    ComputeOnly,
    DataParallelParameters,
    LocalStep,
    RankSteps,
    Region,
    ScalingEpoch,
    ScalingSample,
)
from harness.protocol.records import Progress
from harness.reference.datasets.collection import DatasetCollection
from harness.reference.distributed.group import ProcessGroup, synchronize
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training.loader import BatchLoader, EpochTiming, LabelledBatch, Stopwatch, time_epoch
from harness.reference.training.loss import MultiTaskLoss, backpropagate, compare_with_labels


def time_regions(
    model: FoundationModel,
    *,
    objective: MultiTaskLoss,
    optimizer: torch.optim.Optimizer,
    loader: BatchLoader,
    indices: SampleIndices,
    device: torch.device,
) -> Tensor:
    """Take one training step, and return the seconds of each of REGIONS, [7].

    Args:
        model: The model, without DistributedDataParallel.
        objective: The loss function.
        optimizer: The optimizer of the parameters of the model.
        loader: The loader that builds the batch.
        indices: The structures of the batch.
        device: The device of the model.
    """
    collection: DatasetCollection = loader.collection
    times = [time.perf_counter()]
    records = collection.load_records(indices)
    times.append(time.perf_counter())
    graphs = collection.build_graphs(indices, records)
    times.append(time.perf_counter())
    batch, labels = loader.collate(graphs, device)
    synchronize(device)
    times.append(time.perf_counter())
    optimizer.zero_grad()
    watch = Stopwatch(device)
    watch.mark()
    positions = batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    energy, slope = model.own_energies(pooled, batch)
    watch.mark()
    (gradient,) = torch.autograd.grad(pooled, positions, slope, create_graph=True)
    watch.mark()
    backpropagate(objective(compare_with_labels(energy, -gradient, batch, labels), batch.head), model)
    watch.mark()
    optimizer.step()
    watch.mark()
    synchronize(device)
    host_times = [after - before for before, after in pairwise(times)]
    return torch.tensor([*host_times, *watch.laps()], dtype=torch.float64)


MAX_GRAPHS = 2000  # number of structures whose sizes are logged
REGION_STEPS = 11  # number of steps whose regions are timed
EXCHANGES = 7  # number of timed all-reduces of each size


class ScalingRun:
    """The measurements of a model that is replicated on all ranks; every method is collective.

    Args:
        replica: The model, wrapped in DistributedDataParallel.
        batches: The batches of this rank, at least (epochs + 1) x steps.
        config: Parameters of the case.
        world: The ranks.
        log: The log of the case.

    Attributes:
        throughput: The structures per second, over all ranks, of each epoch after the first.
    """

    def __init__(
        self,
        replica: DistributedDataParallel,
        batches: Iterator[LabelledBatch],
        config: DataParallelParameters,
        world: ProcessGroup,
        log: CaseLog,
    ) -> None:
        self.replica, self.batches, self.config, self.world, self.log = replica, batches, config, world, log
        self.objective = MultiTaskLoss(config.force_weight, config.batch_size)
        parameters = [p for p in replica.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, fused=True)
        self.throughput: list[float] = []

    def run_epoch(self, number: int) -> list[LabelledBatch]:
        """Train for one epoch, log its samples, and return its batches; raise InputError if a loss is not finite."""
        config, world = self.config, self.world
        self.log.write(
            Progress(done=number * config.steps, total=config.epochs * config.steps, activity="training steps")
        )
        batches: list[LabelledBatch] = []
        world.barrier()
        timing = time_epoch(
            self.replica,
            self.objective,
            self.optimizer,
            record_batches(islice(self.batches, config.steps), batches),
            world.device,
        )
        times = torch.tensor([timing.seconds, timing.waits.sum()], dtype=torch.float64)
        slowest, mean = world.all_reduce_max(times).tolist(), world.all_reduce_mean(times).tolist()
        structures = world.size * config.batch_size * config.steps
        is_warmup = number == 0
        self.log.write(
            ScalingEpoch(
                epoch=number, is_warmup=is_warmup, structures=structures, train_s=slowest[0], train_mean_s=mean[0],
                wait_s=slowest[1], wait_mean_s=mean[1],
            )
        )  # fmt: skip
        if not is_warmup:
            self.throughput.append(structures / slowest[0])
            fom_client.post_figure_of_merit("structures_per_s", structures / slowest[0])
        self._log_samples(number, timing, batches)
        self._log_local_steps(number, timing.busy, batches, synchronized=world.size > 1)
        return batches

    def _log_local_steps(
        self, epoch: int, busy: Tensor, batches: Sequence[LabelledBatch], *, synchronized: bool
    ) -> None:
        """Log the steps of this rank with the sizes of its batches; only rank 0 has a log."""
        for step, (seconds, (batch, _)) in enumerate(zip(busy.tolist(), batches, strict=False)):
            self.log.write(
                LocalStep(
                    epoch=epoch, step=step, is_warmup=epoch == 0, gradients_synchronized=synchronized, busy_s=seconds,
                    structures=len(batch.head), atoms=len(batch.numbers), edges=len(batch.receiver),
                )
            )  # fmt: skip

    def _log_samples(self, epoch: int, timing: EpochTiming, batches: Sequence[LabelledBatch]) -> None:
        """Log the times and sizes of each step, reduced over ranks; raise InputError if a loss is not finite."""
        sizes = torch.tensor([[len(b.numbers), len(b.receiver)] for b, _ in batches])
        columns = zip(
            self.world.all_reduce_max(timing.steps).tolist(),
            self.world.all_reduce_mean(timing.steps).tolist(),
            self.world.all_reduce_max(timing.busy).tolist(),
            self.world.all_reduce_mean(timing.waits).tolist(),
            self.world.all_reduce_mean(timing.losses).tolist(),
            self.world.all_reduce_sum(sizes).long().tolist(),
            self.world.all_reduce_max(sizes).long().tolist(),
            strict=True,
        )
        for step, (slowest, mean, busy, wait, loss, (atoms, edges), largest) in enumerate(columns):
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at epoch {epoch}, step {step}")
            self.log.write(
                ScalingSample(
                    epoch=epoch, step=step, is_warmup=epoch == 0, duration_s=slowest, duration_mean_s=mean, busy_s=busy,
                    wait_mean_s=wait, structures=self.world.size * self.config.batch_size, atoms=atoms, edges=edges,
                    atoms_max=largest[0], edges_max=largest[1], loss=loss,
                )
            )  # fmt: skip

    def time_computation(self, batches: Sequence[LabelledBatch]) -> None:
        """Time steps on the batches without exchange of gradients; afterwards, the parameters differ between ranks.

        Other batches are loaded meanwhile, since the loader also competes for the cores during training.
        """
        self.world.barrier()
        repeated = (batch for batch, _ in zip(batches, self.batches, strict=False))
        seconds = time_epoch(
            self.replica, self.objective, self.optimizer, repeated, self.world.device, exchange=False
        ).busy
        slowest, mean = self.world.all_reduce_max(seconds).tolist(), self.world.all_reduce_mean(seconds).tolist()
        for step in range(len(batches)):
            self.log.write(ComputeOnly(step=step, duration_s=slowest[step], duration_mean_s=mean[step]))
        self._log_rank_steps(seconds, batches)
        self._log_local_steps(self.config.epochs, seconds, batches, synchronized=False)

    def _log_rank_steps(self, seconds: Tensor, batches: Sequence[LabelledBatch]) -> None:
        """Log the time and the edges of each step on every rank."""
        edges = [len(batch.receiver) for batch, _ in batches]
        by_rank = self.world.gather((seconds.tolist(), edges))
        for step in range(len(edges) if by_rank else 0):
            self.log.write(
                RankSteps(
                    step=step,
                    duration_s=[durations[step] for durations, _ in by_rank],
                    edges=[float(counts[step]) for _, counts in by_rank],
                )
            )

    def time_exchange(self) -> None:
        """Time the all-reduce of a tensor of the gradient's size, and of a single number, to measure the latency."""
        if self.world.size == 1:
            return
        parameters = [p for p in self.replica.parameters() if p.requires_grad]
        for count in (sum(p.numel() for p in parameters), 1):
            values = torch.zeros(count, dtype=parameters[0].dtype, device=self.world.device)
            for repeat in range(EXCHANGES + 1):
                self.world.barrier()
                seconds = self.world.time_all_reduce(values)
                if repeat:  # the first all-reduce includes one-time costs
                    self.log.write(AllReduce(bytes=values.nbytes, duration_s=seconds))

    def time_regions(self, model: FoundationModel, loader: BatchLoader) -> None:
        """Time the regions of some steps; the first step, which includes one-time costs, is discarded."""
        times = []
        for step in range(max(2, min(self.config.steps, REGION_STEPS))):
            self.world.barrier()
            times.append(
                time_regions(
                    model,
                    objective=self.objective,
                    optimizer=self.optimizer,
                    loader=loader,
                    indices=loader.select_indices(step, self.world.rank),
                    device=self.world.device,
                )
            )
        slowest, mean = self.world.all_reduce_max(torch.stack(times)), self.world.all_reduce_mean(torch.stack(times))
        for step in range(1, len(times)):
            for k, name in enumerate(REGIONS):
                seconds, seconds_mean = slowest[step, k].item(), mean[step, k].item()
                self.log.write(Region(step=step, name=name, duration_s=seconds, duration_mean_s=seconds_mean))


def measure_graph_sizes(batches: Sequence[LabelledBatch]) -> list[tuple[float, float]]:
    """Return the numbers of atoms and edges of the structures in the batches, for at most MAX_GRAPHS structures."""
    sizes: list[tuple[float, float]] = []
    for batch, _ in batches:
        count = len(batch.head)
        atoms, edges = (torch.bincount(owner, minlength=count).tolist() for owner in (batch.graph, batch.edge_graph))
        sizes += [(a, e) for a, e in zip(atoms, edges, strict=True)]
    return sizes[:MAX_GRAPHS]


def record_batches(batches: Iterable[LabelledBatch], record: list[LabelledBatch]) -> Iterator[LabelledBatch]:
    """Yield the batches, and append each of them to `record`."""
    for batch in batches:
        record.append(batch)
        yield batch
