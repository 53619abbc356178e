"""The program: warm every stage up, then time them in turn, round after round, each over all batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from harness.events import EventLog
from harness.reference import measure, merit
from harness.reference.batches import Batch
from harness.reference.errors import InputError
from harness.reference.inference import Prediction
from harness.reference.ladder.config import LadderConfig, configure
from harness.reference.ladder.facts import describe
from harness.reference.ladder.rungs import Rung, warm_up
from harness.reference.ladder.stages import LADDER
from harness.reference.ladder.workload import make_model, make_structures, prepare
from harness.reference.models.foundation import FoundationModel
from harness.reference.precision import precision
from harness.reference.structures import Structure


def run(parameters: dict[str, object], log: EventLog, folder: Path) -> None:
    """The program: warm every stage up, then time them in turn, round after round, each over all batches."""
    config = configure(parameters)
    device = torch.device(config.device)
    model, about = make_model(config)
    log.fact("model", about)
    structures = make_structures(config)
    groups = [structures[k : k + config.batch_size] for k in range(0, len(structures), config.batch_size)]
    if config.workload != "random":
        for structure in structures:
            model.check_elements(structure)
    model = precision(config.precision).of(model).to(device)
    batches = [prepare(group, model, config)[0] for group in groups]
    describe(batches, model, config, log)
    log.fact("ceilings", measure.ceilings(device, precision(config.precision).dtype))
    rungs = []
    for k, stage in enumerate(s for s in LADDER if s.name in config.stages):
        log.write("progress", done=k, total=len(config.stages) * (config.rounds + 1), what=f"warm-up: {stage.name}")
        rung = Rung(stage, stage.make())
        if warm_up(rung, model, batches, log, device):
            rungs.append(rung)
    if not rungs:
        raise InputError("none of the stages can run here")
    for number in range(config.rounds):
        one_round(number, rungs, groups, model, config, log)
    last, batch = rungs[-1], batches[0]
    log.write("profile", stage=last.stage.name, rows=measure.hot_spots(lambda: last(model, batch), device))


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
            device_s = measure.seconds(partial(keep, outputs, rung, model, batch), device)
            timed[rung.stage.name] = device_s, time.time()
            merit.post("structures_per_s", len(group) / device_s)
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
