"""The program `models`: compare interatomic potentials, which predict the same structures in turn.

Each potential runs in a separate process, in the environment in which it is installed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
from harness.reference.potentials.physics import build_check_event, check_physics, repeat_cell
from harness.reference.potentials.process import (
    PotentialError,
    PotentialPrediction,
    PotentialProcess,
    build_spec,
    convert_to_voigt,
)
from harness.reference.potentials.structures import build_supercells, select_crystal, select_molecule
from harness.reference.profiling.rounds import TimedRounds

# Standard deviation of the displacements of all atoms before each timed prediction, as between steps of dynamics.
DISPLACEMENT_ANGSTROM = 0.01
WARM_UP_REPEATS = 2
MAX_LABELLED_ATOMS = 40  # of a labelled structure
MAX_PER_COMPOSITION = 4  # labelled structures


@dataclass
class _Model:
    """A model whose process has started.

    Attributes:
        name: The name of the model.
        definition: Its definition.
        process: Its process.
        cells: The supercells on which it is timed, from small to large.
        has_failed: Whether a measurement has failed, after which the model is excluded.
    """

    name: str
    definition: ModelDefinition
    process: PotentialProcess
    cells: list[Structure] = field(default_factory=list)
    has_failed: bool = False


def run(config: ModelsParameters, log: CaseLog, folder: Path) -> None:
    """Load every model, then measure errors, speed, memory and physics; a model that fails is excluded from then on."""
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
        for model in models:
            if config.max_atoms and not model.has_failed:
                find_largest_size(model, config, log)
        for number, model in enumerate(models):
            if config.physics and not model.has_failed:
                log.write(Progress(done=number, total=len(models), activity=f"physics of {model.name}"))
                log_physics(model, config, log)


def load_labelled(config: ModelsParameters) -> dict[str, list[Structure]]:
    """Return small labelled structures of each dataset, by dataset; structures of one composition are adjacent."""
    sets = {}
    for name in config.datasets:
        pool = [s for s in load_structures(find_shipped_set(name)) if len(s) <= MAX_LABELLED_ATOMS]
        groups = list(group_by_composition(pool).values())
        order = np.random.default_rng(config.seed).permutation(len(groups))
        # compositions with several structures come first, since only their energies can be compared
        ranked = sorted((groups[k] for k in order), key=lambda group: len(group) < 2)
        sets[name] = [s for group in ranked for s in group[:MAX_PER_COMPOSITION]][: config.structures_per_dataset]
    return sets


def group_by_composition(structures: Iterable[Structure]) -> dict[bytes, list[Structure]]:
    """Return the structures of each composition, by `get_composition`."""
    groups: dict[bytes, list[Structure]] = {}
    for structure in structures:
        groups.setdefault(get_composition(structure), []).append(structure)
    return groups


def get_composition(structure: Structure) -> bytes:
    """Return a key that is equal for structures of the same composition, whatever the order of their atoms."""
    return np.sort(structure.numbers).tobytes()


def start_process(
    definition: ModelDefinition,
    precision: PotentialPrecision,
    config: ModelsParameters,
    log_file: Path,
    *,
    compiled: bool,
) -> PotentialProcess:
    """Start the process of a model in a precision; raise PotentialError if the model cannot be loaded."""
    spec = build_spec(definition, precision, config.device, compiled=compiled)
    return PotentialProcess(
        spec, python=definition.python, threads=config.threads, timeout_s=config.timeout_s, log=log_file
    )


def load_model(name: str, config: ModelsParameters, log: CaseLog, folder: Path, stack: ExitStack) -> _Model | None:
    """Start a model, log its description, and build the supercells on which it is timed.

    Returns:
        The model; None if it cannot be used, after the reason has been logged.
    """
    definition, path = config.definitions[name], folder / f"{name}.log"
    try:
        process = stack.enter_context(
            start_process(definition, config.precision, config, path, compiled=config.compiled)
        )
    except PotentialError as error:
        where = f"{definition.place}: " if definition.place else ""
        log.write(
            ModelUnavailable(model=name, reason=f"{where}{error}")
            if error.is_unavailable
            else ModelFailed(model=name, step="loading", reason=f"{where}{error}")
        )
        return None
    description = process.description
    log.write(
        ModelLoaded(
            model=name,
            class_name=describe_class(definition),
            load_s=description["load_s"],
            properties=description["properties"],
            packages=description["packages"],
            python=description["python"],
            parameters=description["parameters"],
            dtype=description["dtype"],
        )
    )
    model = _Model(name, definition, process)
    with _FailureLogger(model, "its first predictions", log):
        build = select_crystal(process)
        if build is None:
            raise PotentialError("it predicts none of the crystals on which models are timed")
        model.cells = build_supercells(build, config.sizes)
    return model


def describe_class(definition: ModelDefinition) -> str:
    """Return the checkpoint or the class of a definition, for tables."""
    if definition.checkpoint is not None:
        return f"checkpoint {definition.checkpoint}"
    if definition.hydragnn is not None:
        return f"HydraGNN {Path(definition.hydragnn.checkpoint).name}"
    source = definition.torch_sim or definition
    return f"{source.module}.{source.class_name}"


class _FailureLogger:
    """A context manager that logs the failure of a model in its block, and excludes the model from then on."""

    def __init__(self, model: _Model, step: str, log: CaseLog) -> None:
        self.model, self.step, self.log = model, step, log

    def __enter__(self) -> None:
        """Enter the block; nothing needs to be done."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Log and suppress a PotentialError; other exceptions propagate."""
        if not isinstance(error, PotentialError):
            return False
        self.model.has_failed = True
        self.log.write(ModelFailed(model=self.model.name, step=self.step, reason=str(error)))
        return True


def measure_errors(
    model: _Model, labelled: dict[str, list[Structure]], config: ModelsParameters, log: CaseLog, folder: Path
) -> None:
    """Log the errors of a model against labels, and its deviations from its own uncompiled FP64 predictions.

    There are no deviations if the model itself is uncompiled and published or in FP64, or if it offers no FP64.
    """
    if model.has_failed:
        return
    fp64: PotentialProcess | None = None
    with _FailureLogger(model, "errors", log), ExitStack() as stack:
        if config.compiled or config.precision not in ("published", "fp64"):
            try:
                path = folder / f"{model.name}-fp64.log"
                fp64 = stack.enter_context(start_process(model.definition, "fp64", config, path, compiled=False))
            except PotentialError:
                fp64 = None  # the model offers no FP64
        for dataset, structures in labelled.items():
            answers = model.process.try_predict(structures, with_stress=True)
            pairs = [(s, p) for s, p in zip(structures, answers, strict=True) if not isinstance(p, str)]
            excluded = Counter(reason for reason in answers if isinstance(reason, str))
            level = find_shipped_set(dataset).level
            log.write(compare_with_labels(model.name, dataset, level, pairs, excluded))
            if fp64 is not None and pairs:
                references = fp64.predict([s for s, _ in pairs])
                log.write(compare_with_fp64(model.name, dataset, level, pairs, references))


# Labelled structures with their predictions.
LabelledPredictions = Sequence[tuple[Structure, PotentialPrediction]]


def compare_with_labels(
    name: str, dataset: str, level: str, pairs: LabelledPredictions, excluded: Mapping[str, int]
) -> PotentialErrors:
    """Return the errors of a model against the labels of a dataset.

    Args:
        name: The name of the model.
        dataset: The name of the dataset.
        level: The level of theory of the labels.
        pairs: The predicted structures with their predictions; may be empty.
        excluded: The number of structures that the model refused, by reason.
    """
    with_energy = [(s, p) for s, p in pairs if s.energy is not None]
    forces = [np.abs(p.forces - s.forces) for s, p in pairs if s.forces is not None]
    stresses = [
        np.abs(p.stress - convert_to_voigt(s.stress)) for s, p in pairs if p.stress is not None and s.stress is not None
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
        excluded=dict(excluded) or None,
    )


def compute_energy_error(pairs: LabelledPredictions) -> float | None:
    """Return the mean error (eV/atom) of energies relative to the mean of their composition.

    Reference energies cancel in these differences. The result is None if no two structures have the same composition.
    """
    errors: dict[bytes, list[float]] = {}
    for structure, prediction in pairs:
        error = (prediction.energy - float(structure.energy or 0.0)) / len(structure)
        errors.setdefault(get_composition(structure), []).append(error)
    differences = [np.abs(np.array(group) - np.mean(group)) for group in errors.values() if len(group) > 1]
    return float(np.concatenate(differences).mean()) if differences else None


def compare_with_fp64(
    name: str, dataset: str, level: str, pairs: LabelledPredictions, references: Sequence[PotentialPrediction]
) -> PotentialErrors:
    """Return the deviations of a model from its own FP64 predictions, `references`, for the structures of `pairs`."""
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


def time_models(models: Sequence[_Model], config: ModelsParameters, log: CaseLog) -> None:
    """Log the times of predictions: in each round every model predicts every supercell once.

    The models take turns, so that the load of the machine affects all of them alike.
    """
    for model in models:
        if model.has_failed:
            continue
        with _FailureLogger(model, "timing", log):
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
            with _FailureLogger(model, "timing", log):
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


def log_memory(model: _Model, atoms: int, answer: dict[str, float], log: CaseLog) -> None:
    """Log the peak memory of a model's process after predictions for a number of atoms; 0: after loading."""
    log.write(
        PotentialMemory(
            model=model.name,
            atoms=atoms,
            peak_bytes=answer["peak_bytes"],
            device_peak_bytes=answer["device_peak_bytes"],
        )
    )


def find_largest_size(model: _Model, config: ModelsParameters, log: CaseLog) -> None:
    """Double the number of atoms until memory or time do not suffice, and log the largest predicted size."""
    cell, atoms = model.cells[-1], 0
    for size in double_sizes(len(cell), config.max_atoms):
        supercell = repeat_to_size(cell, size)
        try:
            model.process.time_predictions(supercell, repeats=1, displacement=0.0, seed=config.seed)
        except PotentialError as error:
            log.write(LargestSize(model=model.name, atoms=atoms, limit=str(error)))
            model.has_failed = not error.is_out_of_memory
            return
        atoms = len(supercell)
    log.write(LargestSize(model=model.name, atoms=atoms, limit=f"the search ends at {config.max_atoms:,} atoms"))


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


def log_physics(model: _Model, config: ModelsParameters, log: CaseLog) -> None:
    """Log the result of every check of a model's physics."""
    with _FailureLogger(model, "physics", log):
        build = select_crystal(model.process)
        violations = check_physics(
            model.process.predict,
            build(1) if build is not None else None,
            select_molecule(model.process),
            dtype=model.process.description["dtype"] or "float64",
            transformations=config.transformations,
            dynamics_steps=config.dynamics_steps,
            seed=config.seed,
        )
        for violation in violations:
            log.write(build_check_event(violation, model=model.name))
            model.process.raise_if_ended()
