"""The program `train` with HydraGNN's code: train on a store of one dataset, and evaluate the trained weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.train import TrainEpoch, TrainFacts, TrainModel, TrainParameters, TrainSet, TrainWorkload
from harness.protocol.records import HeldOutErrors, Observed
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import Dataset, DatasetCollection
from harness.reference.datasets.hydragnn.export import CUTOFF_ANGSTROM, MAX_NEIGHBOURS
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.distributed.group import process_group
from harness.reference.distributed.launch import RankInfo
from harness.reference.external.training import (
    RUN_NAME,
    Epoch,
    Record,
    TrainingRun,
    describe_runtime,
    find_first_record,
    group_by_epoch,
    list_rank_places,
)
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.hydragnn import load_hydragnn
from harness.reference.training import state
from harness.reference.training.evaluation import evaluate_test_sets
from harness.reference.training.loader import set_reference_energies

Splits = Mapping[str, Dataset]
# The fields of `TrainSet` with the number of structures of each of SPLITS.
COUNTS = ("train", "validation", "test")


def run(config: TrainParameters, log: CaseLog, folder: Path) -> None:
    """Run HydraGNN's training program on this rank; rank 0 logs the epochs and the errors on the test set."""
    rank_info = launch.detect_rank(os.environ)
    training = TrainingRun.from_parameters(config, folder, stops_early=config.early_stopping_patience is not None)
    splits = training.export(Path(config.store_folder), rank_info)
    records = training.run(rank_info, folder / f"hydragnn.p{rank_info.rank}.log")
    if rank_info.rank > 0:
        return
    environment = find_first_record(records[0], "environment")
    source = training.checkout.describe_source(environment["python"], environment["packages"])
    log.record_facts(TrainFacts(implementation=source))
    log.record_facts(describe(config, training, splits, records))
    log_epochs([group_by_epoch(rank_records) for rank_records in records], log)
    evaluate(training, splits, log, folder)


def log_epochs(ranks: Sequence[Sequence[Epoch]], log: CaseLog) -> None:
    """Log each epoch.

    Args:
        ranks: The epochs of each rank; the losses are taken from rank 0, since HydraGNN reduces them over the ranks.
        log: The log of the case.
    """
    steps, lowest_loss, train_s = 0, float("inf"), 0.0
    for number, epochs in enumerate(zip(*ranks, strict=True)):
        steps += len(epochs[0].steps)
        duration_s = max(epoch.train_s for epoch in epochs)
        train_s += duration_s
        structures = sum(step.structures for epoch in epochs for step in epoch.steps)
        train, validation = (epochs[0].losses.get(split) for split in ("train", "validation"))
        loss = validation["loss"] if validation else None
        is_best = loss is not None and loss <= lowest_loss
        lowest_loss = min(lowest_loss, loss) if loss is not None else lowest_loss
        log.write(
            TrainEpoch(
                epoch=number,
                step=steps,
                duration_s=duration_s,
                structures_per_s=structures / duration_s,
                loss=train["loss"] if train else None,
                energy_mae_ev_per_atom=find_error(train, 1),
                force_mae_ev_per_angstrom=find_error(train, 2),
                validation_loss=loss,
                validation_energy_mae_ev_per_atom=find_error(validation, 1),
                validation_force_mae_ev_per_angstrom=find_error(validation, 2),
                wait_s=max(sum(step.regions["dataload"] for step in epoch.steps) for epoch in epochs),
                best=is_best,
            )
        )
    log.record_facts(TrainFacts(train_s=train_s))


def find_error(losses: Record | None, position: int) -> float | None:
    """Return one of the errors that HydraGNN reports: of energy (0), energy per atom (1) or forces (2).

    The result is None if HydraGNN reports no losses, or another number of errors.
    """
    return losses["errors"][position] if losses and len(losses["errors"]) == 3 else None


def describe(
    config: TrainParameters, training: TrainingRun, splits: Splits, records: Sequence[Sequence[Record]]
) -> TrainFacts:
    """Return the facts about the model, the data, the runtime and the ranks."""
    train = splits[SPLITS[0]]
    epoch = group_by_epoch(records[0])[0]
    return TrainFacts(
        model=TrainModel(
            config=training.model_config.asdict(), parameters=find_first_record(records[0], "model")["parameters"]
        ),
        workload=TrainWorkload(
            datasets=[
                TrainSet(
                    dataset=train.name,
                    head=HEADS[train.head],
                    data_origin=train.data_origin,
                    level_of_theory=train.level,
                    **{name: len(splits[split].samples) for name, split in zip(COUNTS, SPLITS, strict=True)},
                    samples_per_epoch=sum(step.structures for step in epoch.steps) * len(records),
                )
            ],
            elements=np.flatnonzero(np.isfinite(train.references.energy_ev)).tolist(),
            global_batch_size=config.batch_size * len(records),
            steps_per_epoch=len(epoch.steps),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            loss_units="physical",
            read_mode="on_demand",
        ),
        runtime=Observed(**describe_runtime(records, config.precision, config.backend)),
        ranks=list_rank_places(records),
    )


def load_trained(training: TrainingRun, head: int) -> FoundationModel:
    """Return the trained model, whose single branch becomes the given head."""
    model = load_hydragnn(training.log_folder / f"{RUN_NAME}.pk", training.log_folder / "config.json")
    model.eval().requires_grad_(False)
    for parameter in model.heads.parameters():
        parameter[[0, head]] = parameter[[head, 0]]
    model.trained.zero_()
    model.known_elements.zero_()
    return model


def evaluate(training: TrainingRun, splits: Splits, log: CaseLog, folder: Path) -> None:
    """Log the errors of the trained model on the test set, and save the model as a checkpoint of the harness."""
    model = load_trained(training, splits[SPLITS[0]].head)
    spec = NeighbourSpec(CUTOFF_ANGSTROM, MAX_NEIGHBOURS)
    train, test = (DatasetCollection([splits[split]], spec) for split in (SPLITS[0], SPLITS[2]))
    references = set_reference_energies(model, train)
    model.scale.fill_(1.0)
    with process_group(RankInfo(), backend="gloo", device=torch.device("cpu"), timeout_s=training.timeout_s) as world:
        rows = evaluate_test_sets(model, train, test, references, world)
    log.record_facts(TrainFacts(test_errors=msgspec.convert(rows, list[HeldOutErrors])))
    checkpoints.save(model, folder / state.MODEL, {"test_errors": rows})
