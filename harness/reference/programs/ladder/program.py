"""The program `ladder`: warm up all stages of the inference ladder, then time them in turn on the same batches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import (
    LadderFacts,
    LadderGate,
    LadderObserved,
    LadderParameters,
    LadderSample,
    LadderWorkload,
    Profile,
)
from harness.protocol.records import Progress
from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.distributed.group import check_device
from harness.reference.errors import InputError
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import SKIP_THRESHOLD, Prediction, find_active_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client, timing
from harness.reference.profiling.ceilings import measure_ceilings
from harness.reference.profiling.memory import measure_free_bytes
from harness.reference.profiling.rounds import TimedRounds
from harness.reference.profiling.timing import observe
from harness.reference.programs.ladder.physics import log_physics
from harness.reference.programs.ladder.prepared_stage import PreparedStage, apply_allocator, prepare_stage
from harness.reference.programs.ladder.stages import Stage, select_stages
from harness.reference.programs.ladder.workload import get_neighbour_spec, make_groups, make_model, prepare_batch


def describe_workload(batches: Sequence[Batch], model: FoundationModel, config: LadderParameters) -> LadderFacts:
    """Return the facts about the workload, the gate's weights on it, and the observed types and devices."""
    weights = [model.gate(b.composition) for b in batches]
    encoded = model.encode(batches[0], batches[0].positions, batches[0].shift)
    return LadderFacts(
        workload=describe_batches(batches, model, config),
        gate=describe_gate(weights),
        runtime=observe(
            LadderObserved,
            model,
            config.device,
            precision=config.precision,
            positions=str(batches[0].positions.dtype),
            encoder_output=str(encoded.dtype),
        ),
    )


def describe_batches(batches: Sequence[Batch], model: FoundationModel, config: LadderParameters) -> LadderWorkload:
    """Return the fact about the sizes of the batches and the elements in them."""
    numbers = torch.cat([b.numbers for b in batches]).unique()
    return LadderWorkload(
        name=config.workload,
        structures=sum(len(b.head) for b in batches),
        atoms=sum(len(b.numbers) for b in batches),
        edges=sum(len(b.receiver) for b in batches),
        batches=len(batches),
        batch_size=len(batches[0].head),
        max_neighbours=get_neighbour_spec(model, config).max_neighbours,
        elements=len(numbers),
        unseen_elements=numbers[~model.elements[numbers]].tolist(),
    )


def describe_gate(weights: Sequence[torch.Tensor]) -> LadderGate:
    """Return the fact about the gate.

    Args:
        weights: The weights of the heads for the structures of each batch, [g, heads].
    """
    return LadderGate(
        threshold=SKIP_THRESHOLD,
        active_heads=[[HEADS[h] for h in find_active_heads(w)] for w in weights],
        mean_weight=dict(zip(HEADS, torch.cat(list(weights)).mean(0).double().tolist(), strict=False)),
    )


def run(config: LadderParameters, log: CaseLog, folder: Path) -> None:
    """Warm up all stages, time them in turn, check their physics, and log a profile of the last one."""
    check_device(config.device)
    device = torch.device(config.device)
    model, model_fact = make_model(config)
    log.record_facts(LadderFacts(model=model_fact))
    model = find_precision(config.precision).apply(model).to(device)
    groups = make_groups(config, model, log)
    batches = [prepare_batch(group, model, config)[0] for group in groups]
    log.record_facts(describe_workload(batches, model, config))
    stages: list[PreparedStage] = []
    for stage in iterate_warm_ups(config, log):
        prepared = prepare_stage(stage, model, batches, log)
        if prepared is not None:
            stages.append(prepared)
    if not stages:
        raise InputError("none of the stages can run here")
    kinds = {kind: sizes for prepared in stages for kind, sizes in prepared.work.kinds.items()}
    log.record_facts(LadderFacts(free_bytes=measure_free_bytes(device), ceilings=measure_ceilings(kinds, device)))
    measure_stages(stages, groups=groups, model=model, config=config, log=log)
    last, batch = stages[-1], batches[0]
    reset_allocator(last, stages, model, batch)
    profile = timing.profile_call(lambda: last(model, batch), device)
    log.write(msgspec.convert({"event": "profile", "stage": last.stage.name, **profile}, Profile))


def iterate_warm_ups(config: LadderParameters, log: CaseLog) -> Iterator[Stage]:
    """Yield the stages of a case in the order of the ladder, and log the progress of their warm-up."""
    total = len(config.stages) * (config.rounds + 1)
    for k, stage in enumerate(select_stages(config)):
        log.write(Progress(done=k, total=total, activity=f"warm-up: {stage.name}"))
        yield stage


def measure_stages(
    stages: Sequence[PreparedStage],
    *,
    groups: Sequence[Sequence[Structure]],
    model: FoundationModel,
    config: LadderParameters,
    log: CaseLog,
) -> None:
    """Time the stages in rounds, then log the padding of static shapes and the checks of physics.

    Args:
        stages: The stages after their warm-up.
        groups: The structures of each batch.
        model: The model.
        config: The parameters of the case.
        log: The log of the case.
    """
    rounds = TimedRounds(config)
    for number in rounds:
        time_round(number, rounds, stages=stages, groups=groups, model=model, config=config, log=log)
    log.write(rounds.build_event())
    for prepared in stages:
        if padding := prepared.build_padding_event():
            log.write(padding)
    if config.transformations:
        log_physics(stages, model, len(groups[0]), config=config, log=log)


def time_round(
    number: int,
    rounds: TimedRounds,
    *,
    stages: Sequence[PreparedStage],
    groups: Sequence[Sequence[Structure]],
    model: FoundationModel,
    config: LadderParameters,
    log: CaseLog,
) -> None:
    """Run every stage once on every batch, and log samples after each batch; each round starts with another stage."""
    start = number % len(stages)
    total = len(stages) * (rounds.planned + 1)
    log.write(Progress(done=len(stages) * (number + 1), total=total, activity=f"round {number + 1}"))
    for index, group in enumerate(groups):
        times: dict[str, tuple[dict[str, float], float]] = {}
        outputs: dict[str, Prediction] = {}
        load = os.getloadavg()[0]
        batch, preparation_times = prepare_batch(group, model, config)
        for prepared in [*stages[start:], *stages[:start]]:
            reset_allocator(prepared, stages, model, batch)
            outputs[prepared.stage.name], measured = prepared.time(model, batch)
            rounds.add(prepared.stage.name, measured["device_s"])
            times[prepared.stage.name] = measured, time.time()
            fom_client.post_figure_of_merit("structures_per_s", len(group) / measured["device_s"])
        reference = outputs.get("baseline")
        for name, (measured, end_time_s) in times.items():
            errors = compute_output_errors(outputs[name], reference, batch) if reference is not None else {}
            log.write(
                LadderSample(
                    stage=name, round=number, batch=index, structures=len(group),
                    end_time_s=round(end_time_s, 6), load_1min=load, energy_dtype=str(outputs[name].energy.dtype),
                    force_dtype=str(outputs[name].forces.dtype), **(preparation_times | measured), **errors,
                )
            )  # fmt: skip


def reset_allocator(
    prepared: PreparedStage, stages: Sequence[PreparedStage], model: FoundationModel, batch: Batch
) -> None:
    """Set the allocator mode of a stage; after a switch to the tuned mode, allocate the memory that it usually retains.

    For this, the tuned stages are called once without timing. Then a large buffer is written to evict their data from
    the CPU caches, since other stages also start with cold caches.
    """
    if apply_allocator(prepared.stage, batch.head.device) and prepared.stage.tuned_allocator:
        for other in stages:
            if other.stage.tuned_allocator:
                other(model, batch)
        torch.ones(timing.COPY_BYTES, dtype=torch.uint8)


def compute_output_errors(prediction: Prediction, expected: Prediction, batch: Batch) -> dict[str, Any]:
    """Return the error fields of a `LadderSample`: the largest errors of a prediction and their scales.

    If a number is not finite, the only field is `finite`, which is False.
    """
    if not all(bool(t.isfinite().all()) for t in (*prediction, *expected)):
        return {"finite": False}
    energy_error = ((prediction.energy - expected.energy).double().abs() / batch.n_atoms.double()).max()
    return {
        "finite": True,
        "energy_error_ev_per_atom": float(energy_error),
        "force_error_ev_per_angstrom": float((prediction.forces - expected.forces).double().abs().max()),
        "energy_scale_ev_per_atom": float((expected.energy.double().abs() / batch.n_atoms.double()).max()),
        "force_scale_ev_per_angstrom": float(expected.forces.double().abs().max()),
    }
