"""The program: warm every stage up, then time them in turn, round after round, each over all batches."""

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
from harness.reference.inference.precision import precision
from harness.reference.inference.prediction import Prediction
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client, timing
from harness.reference.profiling.memory import free_bytes
from harness.reference.programs.ladder.prepared_stage import PreparedStage, apply_allocator, prepare_stage
from harness.reference.programs.ladder.run_facts import describe_workload, measure_ceilings
from harness.reference.programs.ladder.stages import selected_stages
from harness.reference.programs.ladder.workload import make_groups, make_model, prepare


def run(config: LadderParameters, log: CaseLog, folder: Path) -> None:
    """Warm every stage up, then time them in turn, and log where the time of the last one goes."""
    device = torch.device(config.device)
    model, fact = make_model(config)
    log.record_facts(LadderFacts(model=fact))
    model = precision(config.precision).apply(model).to(device)
    groups = make_groups(config, model, log)
    batches = [prepare(group, model, config)[0] for group in groups]
    log.record_facts(describe_workload(batches, model, config))
    rungs: list[PreparedStage] = []
    total = len(config.stages) * (config.rounds + 1)
    for k, stage in enumerate(selected_stages(config)):
        log.write(Progress(done=k, total=total, what=f"warm-up: {stage.name}"))
        rung = prepare_stage(stage, model, batches, log)
        if rung is not None:
            rungs.append(rung)
    if not rungs:
        raise InputError("none of the stages can run here")
    kinds = {kind: sizes for rung in rungs for kind, sizes in rung.work.kinds.items()}
    log.record_facts(LadderFacts(free_bytes=free_bytes(device), ceilings=measure_ceilings(kinds, device)))
    for number in range(config.rounds):
        one_round(number, rungs=rungs, groups=groups, model=model, config=config, log=log)
    for rung in rungs:
        if padding := rung.padding():
            log.write(padding)
    last, batch = rungs[-1], batches[0]
    reset_allocator(last, rungs, model, batch)
    spots = timing.profile_call(lambda: last(model, batch), device)
    log.write(msgspec.convert({"event": "profile", "stage": last.stage.name, **spots}, Profile))


def one_round(
    number: int,
    *,
    rungs: Sequence[PreparedStage],
    groups: Sequence[Sequence[Structure]],
    model: FoundationModel,
    config: LadderParameters,
    log: CaseLog,
) -> None:
    """Every stage once on every batch, starting with another stage each round; samples follow each batch."""
    device = torch.device(config.device)
    start = number % len(rungs)
    total = len(rungs) * (config.rounds + 1)
    log.write(Progress(done=len(rungs) * (number + 1), total=total, what=f"round {number + 1}"))
    for index, group in enumerate(groups):
        timed: dict[str, tuple[float, float]] = {}
        outputs: dict[str, Prediction] = {}
        load = os.getloadavg()[0]
        batch, prepared = prepare(group, model, config)
        for rung in [*rungs[start:], *rungs[:start]]:
            reset_allocator(rung, rungs, model, batch)
            device_s = timing.seconds(partial(store_output, outputs, rung, model, batch), device)
            timed[rung.stage.name] = device_s, time.time()
            fom_client.post_figure_of_merit("structures_per_s", len(group) / device_s)
        reference = outputs.get("baseline")
        for name, (device_s, ended_s) in timed.items():
            errors = output_errors(outputs[name], reference, batch) if reference is not None else {}
            log.write(
                LadderSample(
                    stage=name, round=number, batch=index, structures=len(group), device_s=device_s,
                    ended_s=round(ended_s, 6), load_1min=load, energy_dtype=str(outputs[name].energy.dtype),
                    force_dtype=str(outputs[name].forces.dtype), **prepared, **errors,
                )
            )  # fmt: skip


def reset_allocator(rung: PreparedStage, rungs: Sequence[PreparedStage], model: FoundationModel, batch: Batch) -> None:
    """Have the allocator as the stage wants it; when it is tuned anew, with what it would have kept by then.

    That is what calls of the tuned stages leave. What these leave in caches, which no other stage finds there, is
    written over.
    """
    if apply_allocator(rung.stage, batch.head.device) and rung.stage.tuned:
        for other in rungs:
            if other.stage.tuned:
                other(model, batch)
        torch.ones(timing.COPY_BYTES, dtype=torch.uint8)


def store_output(outputs: dict[str, Prediction], rung: PreparedStage, model: FoundationModel, batch: Batch) -> None:
    """Run a stage and keep what it gives."""
    outputs[rung.stage.name] = rung(model, batch)


def output_errors(got: Prediction, expected: Prediction, batch: Batch) -> dict[str, Any]:
    """Largest errors of a prediction and the scales they are to be held against; only finite=False if it is not."""
    if not all(bool(t.isfinite().all()) for t in (*got, *expected)):
        return {"finite": False}
    energy_error = ((got.energy - expected.energy).double().abs() / batch.atoms.double()).max()
    return {
        "finite": True,
        "energy_error_ev_per_atom": float(energy_error),
        "force_error_ev_per_a": float((got.forces - expected.forces).double().abs().max()),
        "energy_scale_ev_per_atom": float((expected.energy.double().abs() / batch.atoms.double()).max()),
        "force_scale_ev_per_a": float(expected.forces.double().abs().max()),
    }
