"""Measure the optimization ladder: all stages in turn on the same batches in one process, raw samples kept."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness.events import EventLog
from harness.reference import checkpoints, measure, merit
from harness.reference.batches import Batch, collate
from harness.reference.datasets.files import read_file
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.mini import load_mini, mini_set
from harness.reference.datasets.random_box import random_structures
from harness.reference.errors import InputError
from harness.reference.graphs import neighbour_graph
from harness.reference.inference import LADDER, SKIP_THRESHOLD, Predict, Prediction, Stage, live_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.precision import precision
from harness.reference.structures import Structure

CRYSTAL_SETS = ("mptrj", "alexandria")
CLOSED = -7.0


@dataclass(frozen=True)
class LadderConfig:
    """One case of the ladder.

    checkpoint: the model's file, or the name of a shipped one; None makes an untrained model of `model`'s sizes,
    with a gate fixed by hand so that open_heads branches share the weight.
    max_neighbours holds for the random workload alone; elsewhere the model's own limit does. A round is one pass of
    every stage over all batches.
    workload: "random" (the paper's), "crystals" (shipped), or "file": the first structures of a file that ASE reads.
    """

    workload: str
    precision: str
    structures: str | None = None
    stages: tuple[str, ...] = tuple(s.name for s in LADDER)
    checkpoint: str | None = None
    model: dict[str, object] = field(default_factory=dict)
    open_heads: int = 4
    batch_size: int = 16
    batches: int = 2
    rounds: int = 6
    atoms: tuple[int, int] = (2, 100)
    max_neighbours: int | None = 20
    device: str = "cpu"
    seed: int = 0


def make_model(config: LadderConfig) -> tuple[FoundationModel, dict[str, object]]:
    """The model in double precision on the CPU, frozen, and what the report must say of it."""
    if config.checkpoint is not None:
        model, notes = checkpoints.named(config.checkpoint)
        about = {"checkpoint": config.checkpoint, "held_out": notes.get("held_out"), "trained": True}
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(build(ModelConfig, config.model))
        model.elements[1:] = True
        fix_gate(model, config.open_heads)
        about = {"checkpoint": None, "trained": False, "open_heads_by_hand": config.open_heads}
    about["untrained_heads"] = [name for name, seen in zip(HEADS, model.trained.tolist(), strict=True) if not seen]
    about["config"] = model.config.asdict()
    about["parameters"] = sum(p.numel() for p in model.parameters())
    return model.double().requires_grad_(False).eval(), about


def fix_gate(model: FoundationModel, open_heads: int) -> None:
    """Give the first open_heads branches equal weight and all others next to none, whatever the composition."""
    with torch.no_grad():
        model.gate.last.weight.zero_()
        model.gate.last.bias.fill_(CLOSED)
        model.gate.last.bias[:open_heads] = 0.0


def make_structures(config: LadderConfig) -> list[Structure]:
    """batches x batch_size structures of the workload."""
    count = config.batches * config.batch_size
    if config.workload == "random":
        return random_structures(count, atoms=config.atoms)
    if config.workload == "crystals":
        pool = [s for name in CRYSTAL_SETS for s in load_mini(mini_set(name))]
        order = np.random.default_rng(config.seed).permutation(len(pool))
        return [pool[k] for k in order[:count]]
    if config.workload == "file":
        if config.structures is None:
            raise InputError("workload 'file' needs 'structures', the path of a file")
        return read_file(Path(config.structures), count)
    raise InputError(f"unknown workload {config.workload!r}; there are random, crystals, file")


def neighbour_limit(model: FoundationModel, config: LadderConfig) -> int | None:
    """At most so many neighbours an atom: the workload's own where it is the paper's, else the model's."""
    return config.max_neighbours if config.workload == "random" else model.config.max_neighbours


def prepare(
    structures: Sequence[Structure], model: FoundationModel, config: LadderConfig
) -> tuple[Batch, dict[str, float]]:
    """Structures -> batch on the device, and the seconds that each step took."""
    device = torch.device(config.device)
    limit = neighbour_limit(model, config)
    t0 = time.perf_counter()
    graphs = [neighbour_graph(s, cutoff=model.config.cutoff, max_neighbours=limit) for s in structures]
    t1 = time.perf_counter()
    batch = collate(graphs, with_triplets=model.config.needs_triplets)
    t2 = time.perf_counter()
    batch = batch.to(device, precision(config.precision).dtype)
    measure.synchronize(device)
    t3 = time.perf_counter()
    return batch, {"neighbours_s": t1 - t0, "collate_s": t2 - t1, "transfer_s": t3 - t2}


@dataclass
class Rung:
    """A stage at work."""

    stage: Stage
    predict: Predict

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Gate and stage, as timed."""
        return self.predict(model, batch, model.gate(batch.composition))


def warm_up(rung: Rung, model: FoundationModel, batches: Sequence[Batch], log: EventLog, device: torch.device) -> bool:
    """First calls, arithmetic and memory of a stage, untimed.

    False, with the reason on record, if compiled code is not to be had here; an error of any other stage is the case's.
    """
    is_compiled = rung.stage.compiled
    began = time.perf_counter()
    try:
        rung(model, batches[0])
        first_s = time.perf_counter() - began
        for batch in batches[1:] if is_compiled else []:
            rung(model, batch)
        flops: list[int] = []

        def counted() -> None:
            """Compiled code hides its arithmetic from the counter."""
            if is_compiled:
                rung(model, batches[0])
            else:
                flops.append(measure.matrix_flops(lambda: rung(model, batches[0])))

        peak = measure.peak_bytes(counted, device)
    except (RuntimeError, ImportError, OSError) as error:
        if not is_compiled:
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.write("unavailable", stage=rung.stage.name, reason=reason.strip()[:300])
        return False
    log.write(
        "warm_up", stage=rung.stage.name, first_s=first_s, matrix_flops=flops[0] if flops else None, peak_bytes=peak
    )
    return True


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


def describe(batches: Sequence[Batch], model: FoundationModel, config: LadderConfig, log: EventLog) -> None:
    """Facts of the workload and of what the model makes of it, read off the tensors."""
    weights = [model.gate(b.composition) for b in batches]
    numbers = torch.cat([b.numbers for b in batches]).unique()
    encoded = model.encode(batches[0], batches[0].positions, batches[0].shift)
    log.fact(
        "workload",
        {
            "name": config.workload,
            "structures": sum(len(b.head) for b in batches),
            "atoms": sum(len(b.numbers) for b in batches),
            "edges": sum(len(b.receiver) for b in batches),
            "batches": len(batches),
            "batch_size": config.batch_size,
            "max_neighbours": neighbour_limit(model, config),
            "elements": len(numbers),
            "elements_not_trained": numbers[~model.elements[numbers]].tolist(),
        },
    )
    log.fact(
        "gate",
        {
            "threshold": SKIP_THRESHOLD,
            "live_heads": [[HEADS[h] for h in live_heads(w)] for w in weights],
            "mean_weight": dict(zip(HEADS, torch.cat(weights).mean(0).double().tolist(), strict=True)),
        },
    )
    log.fact(
        "observed",
        {
            "requested": config.precision,
            "parameters": sorted({str(p.dtype) for p in model.parameters()}),
            "positions": str(batches[0].positions.dtype),
            "encoder_output": str(encoded.dtype),
            "device": config.device,
            "device_name": torch.cuda.get_device_name() if config.device == "cuda" else None,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )


def configure(parameters: dict[str, object]) -> LadderConfig:
    """The case's parameters, checked; raises InputError for what the ladder does not know."""
    config = build(LadderConfig, parameters)
    precision(config.precision)
    if not 1 <= config.atoms[0] <= config.atoms[1]:
        raise InputError(f"atoms: expected a range such as 2..100, got {config.atoms[0]}..{config.atoms[1]}")
    known = [s.name for s in LADDER]
    for name in config.stages:
        if name not in known:
            raise InputError(f"unknown stage {name!r}; there are {', '.join(known)}")
    return config
