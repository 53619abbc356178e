"""The ladder: warm up all stages, then time them in turn in rounds, each on all batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import LadderFacts, LadderParameters, LadderSample, Profile
from harness.protocol.records import Progress
from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import Prediction
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client, timing
from harness.reference.profiling.memory import measure_free_bytes
from harness.reference.programs.ladder.prepared_stage import PreparedStage, apply_allocator, prepare_stage
from harness.reference.programs.ladder.run_facts import describe_workload, measure_ceilings
from harness.reference.programs.ladder.stages import selected_stages
from harness.reference.programs.ladder.workload import make_groups, make_model, prepare_batch


def run(config: LadderParameters, log: CaseLog, folder: Path) -> None:
    """Warm up all stages, time them in turn, and log a profile of the last one."""
    device = torch.device(config.device)
    model, model_fact = make_model(config)
    log.record_facts(LadderFacts(model=model_fact))
    model = find_precision(config.precision).apply(model).to(device)
    groups = make_groups(config, model, log)
    batches = [prepare_batch(group, model, config)[0] for group in groups]
    log.record_facts(describe_workload(batches, model, config))
    stages: list[PreparedStage] = []
    total = len(config.stages) * (config.rounds + 1)
    for k, stage in enumerate(selected_stages(config)):
        log.write(Progress(done=k, total=total, what=f"warm-up: {stage.name}"))
        prepared = prepare_stage(stage, model, batches, log)
        if prepared is not None:
            stages.append(prepared)
    if not stages:
        raise InputError("none of the stages can run here")
    kinds = {kind: sizes for prepared in stages for kind, sizes in prepared.work.kinds.items()}
    log.record_facts(LadderFacts(free_bytes=measure_free_bytes(device), ceilings=measure_ceilings(kinds, device)))
    for number in range(config.rounds):
        time_round(number, stages=stages, groups=groups, model=model, config=config, log=log)
    for prepared in stages:
        if padding := prepared.padding():
            log.write(padding)
    last, batch = stages[-1], batches[0]
    reset_allocator(last, stages, model, batch)
    profile = timing.profile_call(lambda: last(model, batch), device)
    log.write(msgspec.convert({"event": "profile", "stage": last.stage.name, **profile}, Profile))


def time_round(
    number: int,
    *,
    stages: Sequence[PreparedStage],
    groups: Sequence[Sequence[Structure]],
    model: FoundationModel,
    config: LadderParameters,
    log: CaseLog,
) -> None:
    """Run every stage once on every batch, starting with another stage each round, and log samples after each batch."""
    device = torch.device(config.device)
    start = number % len(stages)
    total = len(stages) * (config.rounds + 1)
    log.write(Progress(done=len(stages) * (number + 1), total=total, what=f"round {number + 1}"))
    for index, group in enumerate(groups):
        times: dict[str, tuple[float, float]] = {}
        outputs: dict[str, Prediction] = {}
        load = os.getloadavg()[0]
        batch, preparation_s = prepare_batch(group, model, config)
        for prepared in [*stages[start:], *stages[:start]]:
            reset_allocator(prepared, stages, model, batch)
            device_s = timing.time_call(partial(store_output, outputs, prepared, model, batch), device)
            times[prepared.stage.name] = device_s, time.time()
            fom_client.post_figure_of_merit("structures_per_s", len(group) / device_s)
        reference = outputs.get("baseline")
        for name, (device_s, ended_s) in times.items():
            errors = output_errors(outputs[name], reference, batch) if reference is not None else {}
            log.write(
                LadderSample(
                    stage=name, round=number, batch=index, structures=len(group), device_s=device_s,
                    ended_s=round(ended_s, 6), load_1min=load, energy_dtype=str(outputs[name].energy.dtype),
                    force_dtype=str(outputs[name].forces.dtype), **preparation_s, **errors,
                )
            )  # fmt: skip


def reset_allocator(
    prepared: PreparedStage, stages: Sequence[PreparedStage], model: FoundationModel, batch: Batch
) -> None:
    """Set the allocator mode of a stage; after a switch to the tuned mode, restore the pages that it would have kept.

    Untimed calls of the tuned stages restore them. A large buffer then overwrites the caches that these calls have
    filled, since no other stage starts with warm caches.
    """
    if apply_allocator(prepared.stage, batch.head.device) and prepared.stage.tuned:
        for other in stages:
            if other.stage.tuned:
                other(model, batch)
        torch.ones(timing.COPY_BYTES, dtype=torch.uint8)


def store_output(outputs: dict[str, Prediction], prepared: PreparedStage, model: FoundationModel, batch: Batch) -> None:
    """Run a stage and store its prediction under its name."""
    outputs[prepared.stage.name] = prepared(model, batch)


def output_errors(prediction: Prediction, expected: Prediction, batch: Batch) -> dict[str, Any]:
    """Return the largest errors of a prediction and their scales, or only finite=False if it is not finite."""
    if not all(bool(t.isfinite().all()) for t in (*prediction, *expected)):
        return {"finite": False}
    energy_error = ((prediction.energy - expected.energy).double().abs() / batch.atoms.double()).max()
    return {
        "finite": True,
        "energy_error_ev_per_atom": float(energy_error),
        "force_error_ev_per_a": float((prediction.forces - expected.forces).double().abs().max()),
        "energy_scale_ev_per_atom": float((expected.energy.double().abs() / batch.atoms.double()).max()),
        "force_scale_ev_per_a": float(expected.forces.double().abs().max()),
    }
