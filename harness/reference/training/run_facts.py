"""Facts of a training run: model, workload, observed precision, and the identity of its state on disk."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.protocol.programs.train import TrainFacts, TrainModel, TrainParameters, TrainSet, TrainWorkload
from harness.protocol.records import Observed, RankPlace
from harness.reference.data.batch import Batch
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import Dataset
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed.group import ProcessGroup
from harness.reference.inference.precision import observe_dtypes
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import MessageBackend
from harness.reference.profiling.timing import observe
from harness.reference.training.compile import CompileResult
from harness.reference.training.loader import BatchLoader

# A resumed run may change these options, as they change neither the model nor the sequence of steps.
NON_IDENTITY_OPTIONS = {
    "prefetch_batches", "checkpoint_interval_s", "timeout_s", "max_validation_structures", "gate_steps", "read_mode",
    "replica_ranks", "store_backend", "time_limit_minutes",
    "resume_previous", "shrink_heads",
}  # fmt: skip
# An option that was added later is omitted if it has its default, so that earlier states can be resumed.
OMITTED_DEFAULTS = {"message_backend": "unfused", "holdout": None, "loss_temperature": None}


def describe_identity(model: FoundationModel, config: Mapping[str, Any], world: ProcessGroup) -> dict[str, Any]:
    """Return the identity of a run; a state on disk can be resumed only by a run with the same identity."""
    options = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in config.items()
        if k not in NON_IDENTITY_OPTIONS and not (k in OMITTED_DEFAULTS and v == OMITTED_DEFAULTS[k])
    }
    return options | {"model": model.config.asdict(), "ranks": world.size}


def describe_run(
    model: FoundationModel,
    loader: BatchLoader,
    splits: Mapping[str, Sequence[Dataset]],
    config: TrainParameters,
    world: ProcessGroup,
) -> TrainFacts:
    """Return facts on the model, its training sets and the ranks."""
    modules = {"encoder": model.encoder, "heads": model.heads, "gate": model.gate}
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    train, validation, test = ({d.head: len(d.samples) for d in splits[split]} for split in SPLITS)
    return TrainFacts(
        model=TrainModel(config=model.config.asdict(), parameters=sum(sizes.values()), parts=sizes),
        workload=TrainWorkload(
            datasets=[
                TrainSet(
                    dataset=d.name, head=HEADS[d.head], data_origin=d.data_origin, level_of_theory=d.level,
                    train=train.get(d.head, 0), validation=validation.get(d.head, 0), test=test.get(d.head, 0),
                    samples_per_epoch=count,
                )
                for d, count in zip(loader.collection.datasets, loader.sampler.draws.tolist(), strict=True)
            ],
            elements=np.flatnonzero(model.elements.cpu().numpy()).tolist(),
            global_batch_size=config.batch_size * world.rank_info.size,
            steps_per_epoch=loader.sampler.steps,
            batch_size=config.batch_size,
            epochs=config.epochs,
            sampling_temperature=config.sampling_temperature,
            seed=config.seed,
            sampling=config.sampling,
            split_seed=config.split_seed,
            loss_units=config.loss_units,
            loss_temperature=config.loss_temperature,
            heads=config.heads,
            balance=config.balance,
        ),
        ranks=world.gather(RankPlace(rank=world.rank, host=platform.node(), device=str(world.device))) or None,
    )  # fmt: skip


def observe_runtime(
    model: FoundationModel,
    example: Batch,
    *,
    compiled: CompileResult,
    message_backend: MessageBackend,
    precision: str,
    world: ProcessGroup,
) -> Observed:
    """Return the requested precision, the data types observed in one evaluation of `example`, and the backends."""
    return observe(
        Observed,
        model,
        world.device,
        precision=precision,
        **observe_dtypes(model, example),
        compiled=compiled.active,
        eager_reason=compiled.eager_reason,
        message_backend=message_backend.name,
        unfused_reason=message_backend.unfused_reason,
        world_size=world.rank_info.size,
    )
