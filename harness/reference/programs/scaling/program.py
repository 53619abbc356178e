"""The program `data_parallel`: timed steps of data-parallel training of the multi-task model, one process per rank.

A thread prefetches the batches from shipped sets or stores. The steps of an epoch run without a barrier, and each rank
records the times of its steps; the first epoch is discarded, as in the paper. An additional epoch repeats the batches
of the last epoch without exchange of gradients, to separate computation from communication: the fraction of
communication is 1 - sum(`compute_only` seconds) / sum(`busy_s` of the samples of the last epoch). The program also
compares the gradient with that of a single process, and the parameters of all ranks with each other.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.host.launch_line import format_cpu_list
from harness.protocol.events import CaseLog
from harness.protocol.programs.data_parallel import (
    DataParallelFacts,
    DataParallelParameters,
    GradientCheck,
    ScalingModel,
    ScalingObserved,
    ScalingSet,
    ScalingWorkload,
)
from harness.protocol.records import RankPlace
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.collection import (
    DatasetCollection,
    find_stores,
    load_shipped,
    open_dataset,
    require_forces,
)
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from harness.reference.inference.precision import find_precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import MessageBackend, select_backend
from harness.reference.profiling.timing import observe
from harness.reference.programs.scaling.run import ScalingRun, measure_graph_sizes
from harness.reference.storage.collectives import get_mpi_world
from harness.reference.storage.prefetch import Prefetch
from harness.reference.storage.sampling.sampler import MixtureSampler, SampleIndices, SamplingSpec
from harness.reference.training.loader import BatchLoader, LabelledBatch, flatten, set_reference_energies, wrap_ddp
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors, backpropagate

CHECKED_RANKS = 64  # ranks whose batches contribute to the checked gradient
CHECKED_GRAPHS = 2  # structures of each of these ranks


def measure_gradient_error(
    replica: DistributedDataParallel, objective: MultiTaskLoss, loader: BatchLoader, world: ProcessGroup
) -> tuple[float, int, int]:
    """Compare the all-reduced gradient of a small batch with the gradient that rank 0 computes alone; collective.

    Ranks after the first CHECKED_RANKS take part with weight 0.

    Returns:
        The largest difference relative to the largest gradient, the number of ranks and the number of structures; zeros
        on ranks other than 0.

    Raises:
        InputError: The gradient is 0, or not finite.
    """
    rank_info = world.rank_info
    counted = min(rank_info.size, CHECKED_RANKS)
    parts = [loader.select_indices(0, rank)[:CHECKED_GRAPHS] for rank in range(counted)]
    indices = parts[rank_info.rank] if rank_info.rank < counted else parts[0]
    weight = rank_info.size / counted if rank_info.rank < counted else 0.0
    parameters = [p for p in replica.parameters() if p.requires_grad]
    batch, labels = loader.load_batch(indices, world.device)
    loss = replace(objective, graphs_per_rank=len(indices))(replica(batch, labels), batch.head)
    backpropagate(weight * loss, replica)
    reduced = flatten([p.grad for p in parameters if p.grad is not None])
    if rank_info.rank > 0:
        return 0.0, 0, 0
    combined = SampleIndices(np.concatenate([p.dataset for p in parts]), np.concatenate([p.index for p in parts]))
    # autograd.grad, not backward(), whose DDP hooks would wait for the other ranks.
    batch, labels = loader.load_batch(combined, world.device)
    loss = replace(objective, graphs_per_rank=len(combined))(replica.module(batch, labels), batch.head)
    alone = flatten(torch.autograd.grad(loss, parameters))
    error = float((reduced - alone).abs().max() / alone.abs().max())
    if not math.isfinite(error):
        raise InputError(f"the gradient of the untrained model over {len(combined)} structures is 0, or not finite")
    return error, counted, len(combined)


def measure_parameter_divergence(model: nn.Module, world: ProcessGroup) -> float:
    """Return the largest difference of parameters between rank 0 and any rank, relative to the largest; collective.

    Raises:
        InputError: The parameters of a rank are not finite.
    """
    local = flatten([p.detach() for p in model.parameters()])
    first = world.broadcast(local)
    # A maximum over ranks may ignore NaN, but never an infinity.
    difference = ((local - first).abs().max() / first.abs().max()).nan_to_num(nan=math.inf)
    divergence = float(world.all_reduce_max(difference.reshape(1)))
    if not math.isfinite(divergence):
        raise InputError("the parameters are no longer finite after training")
    return divergence


def run(config: DataParallelParameters, log: CaseLog, folder: Path) -> None:
    """Check the all-reduced gradient, train, check that the ranks agree, and time the parts of a step."""
    rank_info = launch.detect_rank(os.environ)
    device = select_device(config.device, config.backend, rank_info)
    limit = None if config.model.adaptive_neighbours else config.max_neighbours
    model_config = ModelConfig.from_parameters(config.model, max_neighbours=limit)
    collection = open_collection(config, model_config.neighbour_spec, rank_info)
    precision = find_precision(config.precision)
    sampling = SamplingSpec(collection.counts, config.sampling, config.sampling_temperature, config.seed)
    torch.manual_seed(config.seed)
    model = precision.apply(FoundationModel(model_config))
    model.gate.requires_grad_(False)
    sampler = MixtureSampler(sampling, rank_info.size, config.batch_size)
    loader = BatchLoader(
        collection, sampler, precision.dtype, set_reference_energies(model, collection), model_config.needs_triplets
    )
    with (
        collection.samples,
        process_group(rank_info, backend=config.backend, device=device, timeout_s=config.timeout_s) as world,
    ):
        run_measurements(model.to(device), loader, config, world, log)


def open_collection(
    config: DataParallelParameters, neighbour_spec: NeighbourSpec, rank_info: RankInfo
) -> DatasetCollection:
    """Open the datasets of the case; collective if they are stores."""
    if not config.store_folder:
        names = config.datasets or [s.name for s in SHIPPED_SETS]
        return DatasetCollection([load_shipped(name, config.atoms) for name in names], neighbour_spec)
    comm = get_mpi_world(rank_info) if rank_info.size > 1 and config.read_mode in ("shared", "distributed") else None
    paths = find_stores(Path(config.store_folder).expanduser())
    datasets = [
        open_dataset(
            path, neighbour_spec, config.read_mode, comm=comm, width=config.replica_ranks, backend=config.store_backend
        )
        for path in paths
    ]
    require_forces(datasets, config.force_weight)
    return DatasetCollection(datasets, neighbour_spec)


def run_measurements(
    model: FoundationModel, loader: BatchLoader, config: DataParallelParameters, world: ProcessGroup, log: CaseLog
) -> None:
    """Run and log all measurements of the case; collective."""
    for buffer in (model.reference_energy, model.scale):
        buffer.copy_(world.broadcast(buffer))
    backend = select_backend(config.message_backend, model, world)
    log.record_facts(describe(model, loader, config, world, backend))
    replica = wrap_ddp(PerGraphErrors(model))
    error, counted, structures = measure_gradient_error(
        replica, MultiTaskLoss(config.force_weight, config.batch_size), loader, world
    )
    check = GradientCheck(ranks=counted, structures=structures)
    log.record_facts(DataParallelFacts(gradient_error=error, gradient_check=check))

    def load_batch(step: int) -> LabelledBatch:
        return loader.load_batch(loader.select_indices(step, world.rank), world.device)

    steps = range((config.epochs + 1) * config.steps)
    with Prefetch(load_batch, steps, depth=config.prefetch_batches, samples=loader.collection.samples) as prefetched:
        scaling = ScalingRun(replica, prefetched, config, world, log)
        batches: list[LabelledBatch] = []
        for number in range(config.epochs):
            batches = scaling.run_epoch(number)
        divergence = measure_parameter_divergence(model, world)
        log.record_facts(
            DataParallelFacts(throughput_structures_per_s=scaling.throughput, parameter_divergence=divergence)
        )
        scaling.time_computation(batches)
        scaling.time_exchange()
        scaling.time_regions(model, loader)
    log.record_facts(DataParallelFacts(graph_sizes=measure_graph_sizes(batches)))


def describe(
    model: FoundationModel,
    loader: BatchLoader,
    config: DataParallelParameters,
    world: ProcessGroup,
    message_backend: MessageBackend,
) -> DataParallelFacts:
    """Return the facts about the model, the workload, the runtime and the ranks; collective."""
    rank_info, collection, host = world.rank_info, loader.collection, platform.node()
    structures = sum(collection.counts)
    return DataParallelFacts(
        model=ScalingModel(
            config=model.config.asdict(),
            parameters=sum(p.numel() for p in model.parameters()),
            trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        ),
        workload=ScalingWorkload(
            datasets=[
                ScalingSet(
                    dataset=d.name,
                    data_origin=d.data_origin,
                    level_of_theory=d.level,
                    structures=len(d.samples),
                    samples_per_epoch=n,
                )
                for d, n in zip(collection.datasets, loader.sampler.draws.tolist(), strict=True)
            ],
            structures=structures,
            atoms=list(config.atoms) if config.atoms else None,
            read_mode=config.read_mode if config.store_folder else "preload",
            sampling=config.sampling,
            sampling_temperature=config.sampling_temperature,
            batch_size=config.batch_size,
            global_batch_size=config.batch_size * rank_info.size,
            steps=config.steps,
            epochs=config.epochs,
            passes=config.epochs * config.steps * config.batch_size * rank_info.size / structures,
            max_neighbours=None if config.model.adaptive_neighbours else config.max_neighbours,
            seed=config.seed,
        ),
        runtime=observe(
            ScalingObserved,
            model,
            config.device,
            precision=config.precision,
            world_size=rank_info.size,
            backend=config.backend,
            message_backend=message_backend.name,
            unfused_reason=message_backend.unfused_reason,
        ),
        ranks=world.gather(
            RankPlace(
                rank=rank_info.rank,
                host=host,
                node=os.environ.get("SLURMD_NODENAME", host),
                local_rank=rank_info.local_rank,
                device=str(world.device),
                cores=len(os.sched_getaffinity(0)),
                cpus=format_cpu_list(os.sched_getaffinity(0)),
            )
        )
        or None,
    )
