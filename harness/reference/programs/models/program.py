"""The program `models`: compare interatomic potentials, which predict the same structures in turn.

Each potential runs in a separate process, in the environment in which it is installed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from harness.protocol.events import CaseLog
from harness.protocol.programs.models import (
    LargestSize,
    ModelsFacts,
    ModelsParameters,
    ModelsWorkload,
    PotentialMemory,
    PotentialSample,
)
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.datasets.shipped_sets import find_shipped_set
from harness.reference.potentials.physics import build_check_event, check_physics, repeat_cell
from harness.reference.potentials.process import (
    PotentialError,
    PotentialPrediction,
    PotentialProcess,
)
from harness.reference.potentials.structures import select_crystal, select_molecule
from harness.reference.profiling.rounds import TimedRounds
from harness.reference.programs.models.errors import compare_with_fp64, compare_with_labels, load_labelled
from harness.reference.programs.models.loading import FailureGuard, LoadedModel, load_model, start_process

# Standard deviation of the displacements of all atoms before each timed prediction, as between steps of dynamics.
DISPLACEMENT_ANGSTROM = 0.01
WARM_UP_REPEATS = 2


def run(config: ModelsParameters, log: CaseLog, folder: Path) -> None:
    """Load every model, then measure errors, speed, physics and memory; a model that fails is excluded from then on.

    The search for the largest crystal is last, since a process that runs out of memory or time may not survive it.
    """
    labelled = load_labelled(config)
    with ExitStack() as stack:
        loaded = [load_model(name, config, log, folder, stack) for name in config.definitions]
        models = [model for model in loaded if model is not None]
        log.record_facts(
            ModelsFacts(
                workload=ModelsWorkload(
                    structures=sum(map(len, labelled.values())),
                    atoms=sorted({len(cell) for model in models for cell in model.cells}),
                ),
                device=config.device,
                threads=config.threads,
            )
        )
        for model in models:
            measure_errors(model, labelled, config, log, folder)
        time_models(models, config, log)
        for number, model in enumerate(models):
            if config.physics and not model.has_failed:
                log.write(Progress(done=number, total=len(models), activity=f"physics of {model.name}"))
                log_physics(model, config, log)
        for model in models:
            if config.max_atoms and not model.has_failed:
                find_largest_size(model, config, log)


def measure_errors(
    model: LoadedModel, labelled: dict[str, list[Structure]], config: ModelsParameters, log: CaseLog, folder: Path
) -> None:
    """Log the errors of a model against labels, and its deviations from its own uncompiled FP64 predictions.

    Deviations are logged if the model offers FP64, and either is compiled or has a precision other than `published` and
    FP64. A failure of the FP64 process does not exclude the model: its reason is logged instead of the deviations.
    """
    fp64: PotentialProcess | PotentialError | None = None
    with FailureGuard(model, "errors", log), ExitStack() as stack:
        if config.compiled or config.precision not in ("published", "fp64"):
            try:
                path = folder / f"{model.name}-fp64.log"
                fp64 = stack.enter_context(start_process(model.definition, "fp64", config, path, compiled=False))
            except PotentialError as error:
                fp64 = None if error.is_unavailable else error
        for dataset, structures in labelled.items():
            answers = model.process.try_predict(structures, with_stress=True)
            pairs = [(s, p) for s, p in zip(structures, answers, strict=True) if not isinstance(p, str)]
            excluded = Counter(reason for reason in answers if isinstance(reason, str))
            level = find_shipped_set(dataset).level
            log.write(compare_with_labels(model.name, dataset, level, pairs, excluded))
            if fp64 is not None and pairs:
                references = predict_references(fp64, [s for s, _ in pairs])
                log.write(compare_with_fp64(model.name, dataset, level, pairs, references))


def predict_references(
    fp64: PotentialProcess | PotentialError, structures: Sequence[Structure]
) -> Sequence[PotentialPrediction | str]:
    """Return the predictions of the FP64 process, which may have failed to start, or the reasons of its failures."""
    try:
        if isinstance(fp64, PotentialError):
            raise fp64
        return fp64.try_predict(structures)
    except PotentialError as error:
        return [str(error)] * len(structures)


def time_models(models: Sequence[LoadedModel], config: ModelsParameters, log: CaseLog) -> None:
    """Log the times of predictions: in each round every model predicts every supercell once.

    The models take turns, so that the load of the machine affects all of them alike.
    """
    for model in models:
        if model.has_failed:
            continue
        with FailureGuard(model, "timing", log):
            log_memory(
                model, 0, model.process.time_predictions(model.cells[0], repeats=1, displacement=0.0, seed=0), log
            )
            for cell in model.cells:
                answer = model.process.time_predictions(
                    cell, repeats=WARM_UP_REPEATS, displacement=DISPLACEMENT_ANGSTROM, seed=config.seed
                )
                log_memory(model, len(cell), answer, log)
    rounds = TimedRounds(config)
    for number in rounds:
        log.write(Progress(done=number, total=rounds.planned, activity="rounds"))
        for model in models:
            if model.has_failed:
                continue
            with FailureGuard(model, "timing", log):
                for cell in model.cells:
                    answer = model.process.time_predictions(
                        cell, repeats=1, displacement=DISPLACEMENT_ANGSTROM, seed=config.seed + number + 1
                    )
                    sample = PotentialSample(
                        model=model.name,
                        atoms=len(cell),
                        round=number,
                        device_s=answer["seconds"][0],
                        load_1min=os.getloadavg()[0],
                        end_time_s=time.time(),
                    )
                    log.write(sample)
                    rounds.add(f"{model.name}, {len(cell)} atoms", sample.device_s)
    log.write(rounds.build_event())


def log_memory(model: LoadedModel, atoms: int, answer: Mapping[str, Any], log: CaseLog) -> None:
    """Log the peak memory of a model's process after predictions for crystals of so many atoms.

    `atoms` = 0 marks the peak after the first prediction, which is for the smallest crystal.
    """
    log.write(
        PotentialMemory(
            model=model.name,
            atoms=atoms,
            peak_bytes=answer["peak_bytes"],
            device_peak_bytes=answer["device_peak_bytes"],
        )
    )


def find_largest_size(model: LoadedModel, config: ModelsParameters, log: CaseLog) -> None:
    """Double the largest timed crystal until memory or time do not suffice, and log the largest predicted size."""
    cell = model.cells[-1]
    atoms = len(cell)
    limit = f"the search ends at {config.max_atoms:,} atoms"
    if atoms > config.max_atoms:
        limit = f"no search: the largest timed crystal has more than {config.max_atoms:,} atoms"
    for size in double_sizes(2 * atoms, config.max_atoms):
        supercell = repeat_to_size(cell, size)
        try:
            model.process.time_predictions(supercell, repeats=1, displacement=0.0, seed=config.seed)
        except PotentialError as error:
            limit = str(error)
            break
        atoms = len(supercell)
    log.write(LargestSize(model=model.name, atoms=atoms, limit=limit))


def double_sizes(first: int, last: int) -> Iterator[int]:
    """Yield the first size, twice the first size, and so on, up to the last."""
    size = first
    while size <= last:
        yield size
        size *= 2


def repeat_to_size(cell: Structure, size: int) -> Structure:
    """Return the cell, doubled along its shortest vector until it has at least `size` atoms."""
    while len(cell) < size:
        cell = repeat_cell(cell, int(np.linalg.norm(cell.cell, axis=1).argmin()))
    return cell


def log_physics(model: LoadedModel, config: ModelsParameters, log: CaseLog) -> None:
    """Log the result of every check of a model's physics."""
    with FailureGuard(model, "physics", log):
        build = select_crystal(model.process)
        results = check_physics(
            model.process.predict,
            build(1) if build is not None else None,
            select_molecule(model.process),
            # a calculator without parameters in torch has no known type: NumPy computes in double precision
            dtype=model.process.description["dtype"] or "float64",
            transformations=config.transformations,
            dynamics_steps=config.dynamics_steps,
            seed=config.seed,
        )
        for result in results:
            log.write(build_check_event(result, model=model.name))
            model.process.raise_if_ended()
