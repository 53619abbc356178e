"""Data-parallel training by HydraGNN's own program, with a fixed number of steps in each epoch."""

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
from harness.reference.datasets.hydragnn.export import MAX_NEIGHBOURS
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.external.architecture import find_sizes
from harness.reference.external.checkout import find_checkout
from harness.reference.external.training import (
    NEEDED,
    Epoch,
    TrainingRun,
    find_record,
    group_by_epoch,
    list_places,
    observe,
)

# HydraGNN's regions of a step and those of this program; `forward` includes the gradient that gives forces.
REGIONS = {"dataload": "data", "forward": "forward", "backward": "backward", "opt_step": "optimizer"}


def run(config: DataParallelParameters, log: CaseLog, folder: Path) -> None:
    """Train on all ranks; rank 0 logs steps, epochs and throughput."""
    rank_info = launch.detect_rank(os.environ)
    checkout = find_checkout(folder, NEEDED)
    training = TrainingRun(
        checkout,
        folder / "hydragnn",
        find_sizes(config.model, heads=1, max_neighbours=MAX_NEIGHBOURS),
        batch_size=config.batch_size,
        epochs=config.epochs,
        precision=config.precision,
        learning_rate=config.learning_rate,
        force_weight=config.force_weight,
        stops_early=False,
        device=config.device,
        environment={
            "HYDRAGNN_BACKEND": config.backend,
            "HYDRAGNN_MAX_NUM_BATCH": str(config.steps),
            "HYDRAGNN_VALTEST": "0",
        },
        timeout_s=config.timeout_s,
    )
    train = training.export(Path(config.store_folder), rank_info)[SPLITS[0]]
    records = training.run(rank_info, folder / f"hydragnn.p{rank_info.rank}.log")
    if rank_info.rank > 0:
        return
    ranks = [group_by_epoch(some) for some in records]
    steps = min(len(epoch.steps) for epochs in ranks for epoch in epochs)
    if steps < config.steps:
        message = f"{train.name} gives each rank {steps} batches of {config.batch_size}, and the case asks for"
        raise InputError(f"steps: {message} {config.steps}")
    environment = find_record(records[0], "environment")
    samples = [sum(step.structures for epochs in ranks for step in epochs[k].steps) for k in range(len(ranks[0]))]
    log.record_facts(
        DataParallelFacts(
            implementation=checkout.describe(environment["python"], environment["packages"]),
            model=ScalingModel(
                config=training.sizes.asdict(), parameters=find_record(records[0], "model")["parameters"]
            ),
            workload=ScalingWorkload(
                datasets=[
                    ScalingSet(
                        dataset=train.name,
                        data_origin=train.role,
                        level_of_theory=train.level,
                        structures=len(train.samples),
                        samples_per_epoch=samples[0],
                    )
                ],
                structures=len(train.samples),
                read_mode="on_demand",
                batch_size=config.batch_size,
                global_batch_size=config.batch_size * rank_info.size,
                steps=config.steps,
                epochs=len(samples),
                passes=sum(samples) / len(train.samples),
                max_neighbours=training.sizes.max_neighbours,
            ),
            runtime=ScalingObserved(**observe(records, config.precision, config.backend)),
            ranks=list_places(records),
        )
    )
    for number in range(len(samples)):
        log_epoch(number, [epochs[number] for epochs in ranks], log)
    slowest = [max(epochs[k].train_s for epochs in ranks) for k in range(len(samples))]
    rates = [structures / seconds for structures, seconds in zip(samples, slowest, strict=True)]
    log.record_facts(DataParallelFacts(throughput_structures_per_s=rates[1:]))


def log_epoch(number: int, ranks: Sequence[Epoch], log: CaseLog) -> None:
    """Log an epoch, its steps and their regions; the first epoch is discarded."""
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
