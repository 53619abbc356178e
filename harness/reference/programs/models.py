"""Compare interatomic potentials: each runs in its process, and all of them predict the same structures in turn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.protocol.events import CaseLog
from harness.protocol.programs.models import (
    LargestSize,
    ModelDefinition,
    ModelFailed,
    ModelLoaded,
    ModelsFacts,
    ModelsParameters,
    ModelsWorkload,
    ModelUnavailable,
    PotentialErrors,
    PotentialMemory,
    PotentialPrecision,
    PotentialSample,
)
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.potentials.physics import check_physics, repeat_cell, to_event
from harness.reference.potentials.process import (
    PotentialError,
    PotentialPrediction,
    PotentialProcess,
    build_spec,
    count_reasons,
)
from harness.reference.potentials.structures import list_cells, select_crystal, select_molecule

Array = NDArray[np.float64]
# Every atom is displaced by this much before a prediction is timed, as in dynamics.
DISPLACEMENT_ANGSTROM = 0.01
WARM_UP_REPEATS = 2
# Labelled structures are small, and of one composition there are at most so many.
MAX_LABELLED_ATOMS = 40
MAX_PER_COMPOSITION = 4


@dataclass
class _Model:
    """A model that answers, and the cells on which it is timed."""

    name: str
    definition: ModelDefinition
    process: PotentialProcess
    cells: list[Structure] = field(default_factory=list)
    has_failed: bool = False


def run(config: ModelsParameters, log: CaseLog, folder: Path) -> None:
    """Load every model, then measure errors, speed, memory and physics; a model that fails is left out from then on."""
    labelled = load_labelled(config)
    with ExitStack() as stack:
        models = [m for name in config.definitions if (m := load(name, config, log, folder, stack)) is not None]
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
        for model in models:
            if config.max_atoms and not model.has_failed:
                find_largest_size(model, config, log)
        for number, model in enumerate(models):
            if config.physics and not model.has_failed:
                log.write(Progress(done=number, total=len(models), activity=f"physics of {model.name}"))
                log_physics(model, config, log)


def load_labelled(config: ModelsParameters) -> dict[str, list[Structure]]:
    """Return small structures with labels of each dataset, those of one composition next to each other."""
    sets = {}
    for name in config.datasets:
        pool = [s for s in load_structures(find_shipped_set(name)) if len(s) <= MAX_LABELLED_ATOMS]
        groups = list(group_by_composition(pool).values())
        order = np.random.default_rng(config.seed).permutation(len(groups))
        # compositions with several structures first: their energies can be compared
        ranked = sorted((groups[k] for k in order), key=lambda group: len(group) < 2)
        sets[name] = [s for group in ranked for s in group[:MAX_PER_COMPOSITION]][: config.structures_per_dataset]
    return sets


def group_by_composition(structures: Iterable[Structure]) -> dict[bytes, list[Structure]]:
    """Return the structures by their atoms, in whatever order."""
    groups: dict[bytes, list[Structure]] = {}
    for structure in structures:
        groups.setdefault(np.sort(structure.numbers).tobytes(), []).append(structure)
    return groups


def start(
    definition: ModelDefinition,
    precision: PotentialPrecision,
    config: ModelsParameters,
    log_file: Path,
    *,
    compiled: bool,
) -> PotentialProcess:
    """Return the process of a model in a precision; raise PotentialError."""
    spec = build_spec(definition, precision, config.device, compiled=compiled)
    return PotentialProcess(
        spec, python=definition.python, threads=config.threads, timeout_s=config.timeout_s, log=log_file
    )


def load(name: str, config: ModelsParameters, log: CaseLog, folder: Path, stack: ExitStack) -> _Model | None:
    """Start a model and log what it is; return None if it cannot be used, with the reason in the log."""
    definition, path = config.definitions[name], folder / f"{name}.log"
    try:
        process = stack.enter_context(start(definition, config.precision, config, path, compiled=config.compiled))
    except PotentialError as error:
        where = f"{definition.place}: " if definition.place else ""
        log.write(
            ModelUnavailable(model=name, reason=f"{where}{error}")
            if error.is_absence
            else ModelFailed(model=name, step="loading", reason=f"{where}{error}")
        )
        return None
    about = process.about
    log.write(
        ModelLoaded(
            model=name,
            class_name=describe_class(definition),
            load_s=about["load_s"],
            properties=about["properties"],
            packages=about["packages"],
            python=about["python"],
            parameters=about["parameters"],
            dtype=about["dtype"],
        )
    )
    model = _Model(name, definition, process)
    with _Attempt(model, "its first predictions", log):
        build = select_crystal(process)
        if build is None:
            raise PotentialError("it predicts none of the crystals on which models are timed")
        model.cells = list_cells(build, config.sizes)
    return model


def describe_class(definition: ModelDefinition) -> str:
    """Return what a definition names, in one line."""
    if definition.checkpoint is not None:
        return f"checkpoint {definition.checkpoint}"
    if definition.hydragnn is not None:
        return f"HydraGNN {Path(definition.hydragnn.checkpoint).name}"
    source = definition.torch_sim or definition
    return f"{source.module}.{source.class_name}"


class _Attempt:
    """A block in which a failure of a model is logged, and excludes it from what follows."""

    def __init__(self, model: _Model, step: str, log: CaseLog) -> None:
        self.model, self.step, self.log = model, step, log

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Log a PotentialError, and go on."""
        if not isinstance(error, PotentialError):
            return False
        self.model.has_failed = True
        self.log.write(ModelFailed(model=self.model.name, step=self.step, reason=str(error)))
        return True


def measure_errors(
    model: _Model, labelled: dict[str, list[Structure]], config: ModelsParameters, log: CaseLog, folder: Path
) -> None:
    """Log the errors of a model against labels, and unless it is plain FP64, against its own FP64 predictions."""
    if model.has_failed:
        return
    exact: PotentialProcess | None = None
    with _Attempt(model, "errors", log), ExitStack() as stack:
        if config.compiled or config.precision not in ("published", "fp64"):
            try:
                path = folder / f"{model.name}-fp64.log"
                exact = stack.enter_context(start(model.definition, "fp64", config, path, compiled=False))
            except PotentialError:
                exact = None  # not offered: there is nothing to compare with
        for dataset, structures in labelled.items():
            answers = model.process.try_predict(structures, with_stress=True)
            pairs = [(s, p) for s, p in zip(structures, answers, strict=True) if not isinstance(p, str)]
            excluded = count_reasons(reason for reason in answers if isinstance(reason, str))
            level = find_shipped_set(dataset).level
            log.write(compare_with_labels(model.name, dataset, level, pairs, excluded))
            if exact is not None and pairs:
                references = exact.predict([s for s, _ in pairs])
                log.write(compare_with_fp64(model.name, dataset, level, pairs, references))


Pairs = Sequence[tuple[Structure, PotentialPrediction]]


def compare_with_labels(name: str, dataset: str, level: str, pairs: Pairs, excluded: dict[str, int]) -> PotentialErrors:
    """Return the errors against labels; pairs may be empty."""
    with_energy = [(s, p) for s, p in pairs if s.energy is not None]
    forces = [np.abs(p.forces - s.forces) for s, p in pairs if s.forces is not None]
    stresses = [
        np.abs(p.stress - to_voigt(s.stress)) for s, p in pairs if p.stress is not None and s.stress is not None
    ]
    return PotentialErrors(
        model=name,
        reference="labels",
        dataset=dataset,
        level_of_theory=level,
        structures=len(pairs),
        energy_mae_ev_per_atom=compute_energy_error(with_energy),
        force_mae_ev_per_angstrom=float(np.concatenate(forces).mean()) if forces else None,
        force_max_ev_per_angstrom=float(np.concatenate(forces).max()) if forces else None,
        stress_mae_ev_per_angstrom3=float(np.mean(stresses)) if stresses else None,
        excluded=excluded or None,
    )


def compute_energy_error(pairs: Pairs) -> float | None:
    """Return the mean error (eV/atom) of energy differences between structures of one composition, or None.

    Every energy is taken relative to the mean of its composition, so that no reference energy matters.
    """
    errors: dict[bytes, list[float]] = {}
    for structure, prediction in pairs:
        error = (prediction.energy - float(structure.energy or 0.0)) / len(structure)
        errors.setdefault(np.sort(structure.numbers).tobytes(), []).append(error)
    differences = [np.abs(np.array(group) - np.mean(group)) for group in errors.values() if len(group) > 1]
    return float(np.concatenate(differences).mean()) if differences else None


def compare_with_fp64(
    name: str, dataset: str, level: str, pairs: Pairs, references: Sequence[PotentialPrediction]
) -> PotentialErrors:
    """Return the deviations from the same model's predictions in FP64."""
    forces = [np.abs(p.forces - r.forces) for (_, p), r in zip(pairs, references, strict=True)]
    energies = [abs(p.energy - r.energy) / len(s) for (s, p), r in zip(pairs, references, strict=True)]
    return PotentialErrors(
        model=name,
        reference="fp64",
        dataset=dataset,
        level_of_theory=level,
        structures=len(pairs),
        energy_mae_ev_per_atom=float(np.mean(energies)),
        force_mae_ev_per_angstrom=float(np.concatenate(forces).mean()),
        force_max_ev_per_angstrom=float(np.concatenate(forces).max()),
    )


def to_voigt(stress: Array) -> Array:
    """Return a stress [3, 3] as xx, yy, zz, yz, xz, xy."""
    return np.asarray(stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])


def time_models(models: Sequence[_Model], config: ModelsParameters, log: CaseLog) -> None:
    """Let every model predict every size once in each round, so that all of them meet the same load of the machine."""
    for model in models:
        if model.has_failed:
            continue
        with _Attempt(model, "timing", log):
            log_memory(model, 0, model.process.time(model.cells[0], repeats=1, displacement=0.0, seed=0), log)
            for cell in model.cells:
                answer = model.process.time(
                    cell, repeats=WARM_UP_REPEATS, displacement=DISPLACEMENT_ANGSTROM, seed=config.seed
                )
                log_memory(model, len(cell), answer, log)
    for number in range(config.rounds):
        log.write(Progress(done=number, total=config.rounds, activity="rounds"))
        for model in models:
            if model.has_failed:
                continue
            with _Attempt(model, "timing", log):
                for cell in model.cells:
                    answer = model.process.time(
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


def log_memory(model: _Model, atoms: int, answer: dict[str, float], log: CaseLog) -> None:
    """Log the peak memory of a model's process."""
    log.write(
        PotentialMemory(
            model=model.name,
            atoms=atoms,
            peak_bytes=answer["peak_bytes"],
            device_peak_bytes=answer["device_peak_bytes"],
        )
    )


def find_largest_size(model: _Model, config: ModelsParameters, log: CaseLog) -> None:
    """Double the cell until memory or time do not suffice, and log the largest that was predicted."""
    cell, atoms = model.cells[-1], 0
    for size in iterate_sizes(len(cell), config.max_atoms):
        grown = grow(cell, size)
        try:
            model.process.time(grown, repeats=1, displacement=0.0, seed=config.seed)
        except PotentialError as error:
            log.write(LargestSize(model=model.name, atoms=atoms, limit=str(error)))
            model.has_failed = not error.is_out_of_memory
            return
        atoms = len(grown)
    log.write(LargestSize(model=model.name, atoms=atoms, limit=f"the search ends at {config.max_atoms:,} atoms"))


def iterate_sizes(first: int, last: int) -> Iterator[int]:
    """Yield the first size and its doubles, up to the last."""
    size = first
    while size <= last:
        yield size
        size *= 2


def grow(cell: Structure, size: int) -> Structure:
    """Return the cell, repeated along its shortest vector until it has `size` atoms."""
    while len(cell) < size:
        cell = repeat_cell(cell, int(np.linalg.norm(cell.cell, axis=1).argmin()))
    return cell


def log_physics(model: _Model, config: ModelsParameters, log: CaseLog) -> None:
    """Log the result of every check of a model's physics."""
    with _Attempt(model, "physics", log):
        build = select_crystal(model.process)
        violations = check_physics(
            model.process.predict,
            build(1) if build is not None else None,
            select_molecule(model.process),
            dtype=model.process.about["dtype"] or "float64",
            transformations=config.transformations,
            dynamics_steps=config.dynamics_steps,
            seed=config.seed,
        )
        for violation in violations:
            log.write(to_event(violation, model=model.name))
            model.process.raise_if_ended()
