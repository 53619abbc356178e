"""The program `data_parallel` with HydraGNN's code: training with a fixed number of steps in each epoch."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from harness.protocol.events import CaseLog
from harness.protocol.programs.data_parallel import (
    DataParallelFacts,
    DataParallelParameters,
    Region,
    ScalingEpoch,
    ScalingModel,
    ScalingObserved,
    ScalingSample,
    ScalingSet,
    ScalingWorkload,
)
from harness.reference.datasets.collection import Dataset
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.external.training import (
    Epoch,
    Record,
    TrainingRun,
    describe_runtime,
    find_first_record,
    group_by_epoch,
    list_rank_places,
)

# HydraGNN's regions of a step and their names in events; `forward` includes the computation of the forces.
REGIONS = {"dataload": "data", "forward": "forward", "backward": "backward", "opt_step": "optimizer"}


def run(config: DataParallelParameters, log: CaseLog, folder: Path) -> None:
    """Run HydraGNN's training program on this rank; rank 0 logs steps, epochs and throughput."""
    rank_info = launch.detect_rank(os.environ)
    training = TrainingRun.from_parameters(
        config, folder, environment={"HYDRAGNN_MAX_NUM_BATCH": str(config.steps), "HYDRAGNN_VALTEST": "0"}
    )
    train = training.export(Path(config.store_folder), rank_info)[SPLITS[0]]
    records = training.run(rank_info, folder / f"hydragnn.p{rank_info.rank}.log")
    if rank_info.rank > 0:
        return
    ranks = [group_by_epoch(rank_records) for rank_records in records]
    steps = min(len(epoch.steps) for epochs in ranks for epoch in epochs)
    if steps < config.steps:
        raise InputError(
            f"steps: {train.name} has {steps} batches of {config.batch_size} structures for each rank, but the case"
            f" asks for {config.steps}"
        )
    epoch_sizes = [sum(step.structures for epochs in ranks for step in epochs[k].steps) for k in range(len(ranks[0]))]
    log.record_facts(describe(config, training, train, records, epoch_sizes))
    for number in range(len(epoch_sizes)):
        log_epoch(number, [epochs[number] for epochs in ranks], log)
    slowest = [max(epochs[k].train_s for epochs in ranks) for k in range(len(epoch_sizes))]
    rates = [structures / seconds for structures, seconds in zip(epoch_sizes, slowest, strict=True)]
    log.record_facts(DataParallelFacts(throughput_structures_per_s=rates[1:]))


def describe(
    config: DataParallelParameters,
    training: TrainingRun,
    train: Dataset,
    records: Sequence[Sequence[Record]],
    epoch_sizes: Sequence[int],
) -> DataParallelFacts:
    """Return the facts about the code, the model, the workload, the runtime and the ranks.

    Args:
        config: The parameters of the case.
        training: The training run.
        train: The training split.
        records: The records of each rank.
        epoch_sizes: The number of structures of each epoch, over all ranks.
    """
    environment = find_first_record(records[0], "environment")
    structures = len(train.samples)
    return DataParallelFacts(
        implementation=training.checkout.describe_source(environment["python"], environment["packages"]),
        model=ScalingModel(
            config=training.model_config.asdict(), parameters=find_first_record(records[0], "model")["parameters"]
        ),
        workload=ScalingWorkload(
            datasets=[
                ScalingSet(
                    dataset=train.name,
                    data_origin=train.data_origin,
                    level_of_theory=train.level,
                    structures=structures,
                    samples_per_epoch=epoch_sizes[0],
                )
            ],
            structures=structures,
            read_mode="on_demand",
            batch_size=config.batch_size,
            global_batch_size=config.batch_size * len(records),
            steps=config.steps,
            epochs=len(epoch_sizes),
            passes=sum(epoch_sizes) / structures,
            max_neighbours=training.model_config.max_neighbours,
        ),
        runtime=ScalingObserved(**describe_runtime(records, config.precision, config.backend)),
        ranks=list_rank_places(records),
    )


def log_epoch(number: int, ranks: Sequence[Epoch], log: CaseLog) -> None:
    """Log an epoch, its steps and their regions; the first epoch is a warm-up.

    Args:
        number: The index of the epoch.
        ranks: The epoch on each rank.
        log: The log of the case.
    """
    times = [epoch.train_s for epoch in ranks]
    waits = [sum(step.regions["dataload"] for step in epoch.steps) for epoch in ranks]
    is_warmup = number == 0
    log.write(
        ScalingEpoch(
            epoch=number,
            is_warmup=is_warmup,
            structures=sum(step.structures for epoch in ranks for step in epoch.steps),
            train_s=max(times),
            train_mean_s=statistics.fmean(times),
            wait_s=max(waits),
            wait_mean_s=statistics.fmean(waits),
        )
    )
    for k, steps in enumerate(zip(*(epoch.steps for epoch in ranks), strict=True)):
        waits = [step.regions["dataload"] for step in steps]
        log.write(
            ScalingSample(
                epoch=number,
                step=k,
                is_warmup=is_warmup,
                duration_s=max(step.duration_s for step in steps),
                duration_mean_s=statistics.fmean(step.duration_s for step in steps),
                busy_s=max(step.duration_s - wait for step, wait in zip(steps, waits, strict=True)),
                wait_mean_s=statistics.fmean(waits),
                structures=sum(step.structures for step in steps),
                atoms=sum(step.atoms for step in steps),
                edges=sum(step.edges for step in steps),
                atoms_max=max(step.atoms for step in steps),
                edges_max=max(step.edges for step in steps),
            )
        )
        if is_warmup:
            continue
        for name, region in REGIONS.items():
            seconds = [step.regions[name] for step in steps]
            log.write(Region(step=k, name=region, duration_s=max(seconds), duration_mean_s=statistics.fmean(seconds)))
