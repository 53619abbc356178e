"""The program: warm every stage up, then time them in turn, round after round, each over all batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from harness.protocol.events import EventLog
from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.inference.prediction import Prediction
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client, timing
from harness.reference.profiling.memory import free_bytes
from harness.reference.programs.ladder.batching import batched
from harness.reference.programs.ladder.ceilings import ceilings
from harness.reference.programs.ladder.config import LadderConfig, configure
from harness.reference.programs.ladder.prepared_stage import Rung, allow, climb
from harness.reference.programs.ladder.run_facts import describe
from harness.reference.programs.ladder.workload import make_model, prepare


def run(parameters: dict[str, object], log: EventLog, folder: Path) -> None:
    """The program."""
    config = configure(parameters)
    device = torch.device(config.device)
    model, about = make_model(config)
    log.fact("model", about)
    model = precision(config.precision).of(model).to(device)
    groups = batched(config, model, log)
    batches = [prepare(group, model, config)[0] for group in groups]
    describe(batches, model, config, log)
    rungs: list[Rung] = []
    for k, stage in enumerate(config.climbed):
        log.write("progress", done=k, total=len(config.stages) * (config.rounds + 1), what=f"warm-up: {stage.name}")
        made = climb(stage, model, batches, log)
        if made is not None:
            rungs.append(made)
    if not rungs:
        raise InputError("none of the stages can run here")
    log.fact("free_bytes", free_bytes(device))
    log.fact("ceilings", ceilings({k: sizes for rung in rungs for k, sizes in rung.work.kinds.items()}, device))
    for number in range(config.rounds):
        one_round(number, rungs, groups, model, config, log)
    for rung in rungs:
        if filled := rung.padding():
            log.write("padding", stage=rung.stage.name, **filled)
    last, batch = rungs[-1], batches[0]
    settle(last, rungs, model, batch)
    log.write("profile", stage=last.stage.name, **timing.hot_spots(lambda: last(model, batch), device))


def one_round(
    number: int,
    rungs: Sequence[Rung],
    groups: Sequence[Sequence[Structure]],
    model: FoundationModel,
    config: LadderConfig,
    log: EventLog,
) -> None:
    """Every stage once on every batch, starting with another stage each round; samples follow each batch."""
    device = torch.device(config.device)
    start = number % len(rungs)
    total = len(rungs) * (config.rounds + 1)
    log.write("progress", done=len(rungs) * (number + 1), total=total, what=f"round {number + 1}")
    for index, group in enumerate(groups):
        timed: dict[str, tuple[float, float]] = {}
        outputs: dict[str, Prediction] = {}
        load = os.getloadavg()[0]
        batch, prepared = prepare(group, model, config)
        for rung in [*rungs[start:], *rungs[:start]]:
            settle(rung, rungs, model, batch)
            device_s = timing.seconds(partial(keep, outputs, rung, model, batch), device)
            timed[rung.stage.name] = device_s, time.time()
            fom_client.post("structures_per_s", len(group) / device_s)
        reference = outputs.get("baseline")
        for name, (device_s, ended_s) in timed.items():
            errors = difference(outputs[name], reference, batch) if reference is not None else {}
            log.write(
                "sample",
                stage=name,
                round=number,
                batch=index,
                structures=len(group),
                device_s=device_s,
                ended_s=round(ended_s, 6),
                load_1min=load,
                energy_dtype=str(outputs[name].energy.dtype),
                force_dtype=str(outputs[name].forces.dtype),
                **prepared,
                **errors,
            )


def settle(rung: Rung, rungs: Sequence[Rung], model: FoundationModel, batch: Batch) -> None:
    """Have the allocator as the stage wants it; when it is tuned anew, with what it would have kept by then.

    That is what calls of the tuned stages leave. What these leave in caches, which no other stage finds there, is
    written over.
    """
    if allow(rung.stage, batch.head.device) and rung.stage.tuned:
        for other in rungs:
            if other.stage.tuned:
                other(model, batch)
        torch.ones(timing.COPIED, dtype=torch.uint8)


def keep(outputs: dict[str, Prediction], rung: Rung, model: FoundationModel, batch: Batch) -> None:
    """Run a stage and keep what it gives."""
    outputs[rung.stage.name] = rung(model, batch)


def difference(got: Prediction, expected: Prediction, batch: Batch) -> dict[str, object]:
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
