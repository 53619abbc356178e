"""Assess a screening on one rank: distances, uncertainties, labels and relaxations of a random sample of candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import (
    Assessment,
    Calibration,
    OutsideCoverage,
    RelaxedCandidate,
    SpotLabel,
    Unlabelled,
    Unrelaxed,
)
from harness.protocol.text import pluralize
from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Array, Structure
from harness.reference.inference.risk import RiskModel
from harness.reference.models.coverage import Coverage
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import use_fused_messages
from harness.reference.programs.screening.candidates.prototype_workload import CrystalWorkload
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.drawing import draw_structure
from harness.reference.programs.screening.ood_distance import (
    calibrate,
    embed,
    fit_distance,
    load_training_structures,
    make_ood_structures,
)
from harness.reference.programs.screening.overlap import log_overlap, log_projection
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.ranking import rank
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.relaxation import find_duplicates, relax
from harness.reference.programs.screening.scoring import MahalanobisDistance
from harness.reference.programs.screening.spot_checks import (
    SpotLabels,
    find_labelled_head,
    label_candidates,
    restrict_to_head,
)
from harness.reference.programs.screening.uncertainty import log_uncertainty, summarize_risk

DRAWINGS = 12  # number of relaxed candidates that are drawn
OOD_STRUCTURES = 200  # maximum number of out-of-distribution structures of each kind
MAX_ATTEMPTS = 20  # number of candidates that are tried for each label
NOT_FINITE = "embedding not finite"


@dataclass(frozen=True)
class FinishedScreening:
    """A finished screening.

    Attributes:
        model: The model.
        notes: The notes of its checkpoint.
        workload: The candidates.
        parts: The division of the candidates into parts.
        best: The numbers of the best candidates, best first.
        phases: The reference phases of the hull, or None.
        risk: The risk of the model, or None.
    """

    model: FoundationModel
    notes: dict[str, object]
    workload: Workload
    parts: IndexPartition
    best: Sequence[int]
    phases: ReferencePhases | None = None
    risk: RiskModel | None = None


def assess(config: Assessment, screening: FinishedScreening, log: CaseLog, folder: Path) -> None:
    """Assess a screening on the CPU in double precision, and log the results; its model is converted in place."""
    model, workload = screening.model.to("cpu").double(), screening.workload
    model.autocast = None
    use_fused_messages(model, torch.device("cpu"))
    rng = np.random.default_rng(config.seed)
    indices = sample_candidates(screening.parts, config.sample, rng)
    candidates = [workload.structure(k) for k in indices]
    training, validation, test = (
        [
            s
            for structures in load_training_structures(split, config.reference_structures_per_dataset).values()
            for s in structures
        ]
        for split in (0, 1, 2)
    )
    reference = embed(model, training)
    distance = fit_distance(reference)
    others = {"candidates": embed(model, candidates), "held out": embed(model, test)}
    finite = np.asarray(np.isfinite(others["candidates"]).all(axis=1))
    candidates = [candidates[k] for k in np.flatnonzero(finite)]
    others["candidates"] = others["candidates"][finite]
    n_ood = min(OOD_STRUCTURES, len(test))
    ood = {kind: embed(model, s) for kind, s in make_ood_structures(test, n_ood, config.seed).items()}
    calibration = calibrate(
        compute_distances(distance, embed(model, validation)),
        compute_distances(distance, others["held out"]),
        {kind: np.nan_to_num(compute_distances(distance, e), nan=np.inf) for kind, e in ood.items()},
        config.false_alarm,
    )
    threshold = calibration.threshold
    log.write(Calibration(**asdict(calibration), ood_structures=n_ood))
    log_overlap(reference, others, training, candidates, log)
    log_projection(reference, {**others, **{kind: e[np.isfinite(e).all(axis=1)] for kind, e in ood.items()}}, log)
    covered = select_covered(model, candidates, int((~finite).sum()), log)
    flagged = compute_distances(distance, others["candidates"])[covered] > threshold
    log_uncertainty(config, model, [candidates[k] for k in covered], flagged, log)
    if screening.risk is not None and len(covered):
        log.write(summarize_risk(screening.risk, model, [candidates[k] for k in covered]))
    log_labels(config, model, screening, distance=distance, threshold=threshold, rng=rng, log=log)
    log_relaxations(config, model, screening, log, folder)


def log_relaxations(
    config: Assessment, model: FoundationModel, screening: FinishedScreening, log: CaseLog, folder: Path
) -> None:
    """Relax the best candidates, and log them by energy above the hull.

    They are relaxed with the hull's head, or with the gate's weighted sum without a hull.
    """
    workload, phases = screening.workload, screening.phases
    best = [(k, workload.structure(k)) for k in select_distinct(screening, config.n_relaxations)]
    head = None if phases is None else phases.head
    relaxations, structures, failed = relax(model, best, steps=config.relax_steps, folder=folder, head=head)
    energies = np.full(len(structures), np.nan)
    if phases is not None and structures:
        energies = phases.compute_energies_above_hull(model, structures)
    order = rank(energies).tolist()
    relaxations, structures = [relaxations[k] for k in order], [structures[k] for k in order]
    duplicates = find_duplicates(relaxations, structures)
    for relaxation, duplicate, energy in zip(relaxations, duplicates, energies[order].tolist(), strict=True):
        row = {"event": "relaxation", **asdict(relaxation), **workload.describe(relaxation.candidate)}
        row |= {"duplicate_of": duplicate, "energy_above_hull_mev_per_atom": None if np.isnan(energy) else 1e3 * energy}
        log.write(msgspec.convert(row, RelaxedCandidate))
    crystals = [k for k, s in enumerate(structures) if duplicates[k] is None and all(s.periodic)][:DRAWINGS]
    for k in crystals:
        log.write(draw_structure(relaxations[k].candidate, structures[k]))
    if failed:
        log.write(Unrelaxed(candidates=len(best), reasons=dict(failed)))


def select_distinct(screening: FinishedScreening, count: int) -> list[int]:
    """Return at most `count` of the best candidates; of crystals that differ only in volume, the best one."""
    if not isinstance(screening.workload, CrystalWorkload):
        return list(screening.best[:count])
    chosen: dict[tuple[int, ...], int] = {}
    for number in screening.best:
        (block,) = screening.workload.space.block(number, number + 1)
        chosen.setdefault((block.prototype, *block.species[0].tolist()), number)
        if len(chosen) == count:
            break
    return list(chosen.values())


def select_covered(
    model: FoundationModel, candidates: Sequence[Structure], not_finite: int, log: CaseLog
) -> NDArray[np.int64]:
    """Return the positions of the candidates inside the model's training sets; log the number of others by reason.

    Args:
        model: The model.
        candidates: The candidates of the sample with finite embeddings.
        not_finite: Number of the other candidates of the sample.
        log: The log of the case.
    """
    coverage = Coverage(model)
    reasons = Counter({NOT_FINITE: not_finite} if not_finite else {})
    covered = []
    for k, structure in enumerate(candidates):
        graph = model.config.neighbour_spec.build_list(structure)
        outside = [name for name, mask in coverage.find_outside(build_batch([graph])).items() if mask[0]]
        reasons.update(outside)
        covered += [] if outside else [k]
    log.write(OutsideCoverage(candidates=len(candidates) + not_finite, reasons=dict(reasons)))
    return np.array(covered, dtype=np.int64)


def sample_candidates(parts: IndexPartition, count: int, rng: np.random.Generator) -> list[int]:
    """Return the numbers of `count` random candidates, or all, of the parts that were screened, ascending."""
    numbers, total = parts.selected, parts.candidates
    positions = np.sort(rng.choice(total, min(count, total), replace=False)).tolist()
    # only the last part may be smaller than the others
    return [parts.bounds(numbers[k // parts.size])[0] + k % parts.size for k in positions]


def compute_distances(distance: MahalanobisDistance, embedding: Array) -> Array:
    """Return the distances of embeddings [s, F], [s]."""
    return distance.distance(torch.from_numpy(embedding)).numpy()


def log_labels(
    config: Assessment,
    model: FoundationModel,
    screening: FinishedScreening,
    *,
    distance: MahalanobisDistance,
    threshold: float,
    rng: np.random.Generator,
    log: CaseLog,
) -> None:
    """Log the errors of the model on candidates that are labelled at the level of theory of one of its heads."""
    if not config.n_labels:
        return
    workload, head = screening.workload, find_labelled_head(screening.notes)
    if not isinstance(workload, CrystalWorkload) or head is None:
        no_head = "no head of this checkpoint was trained at a level of theory that can be computed here"
        log.write(Unlabelled(reason=no_head if head is None else "the candidates are not crystals"))
        return
    space = restrict_to_head(workload.space, model, head)
    indices = rng.choice(len(space), min(len(space), MAX_ATTEMPTS * config.n_labels), replace=False).tolist()
    try:
        labels = label_candidates(
            model, space, indices, head,
            risk=screening.risk, count=config.n_labels, seconds=config.label_time_limit_s,
        )  # fmt: skip
    except ModuleNotFoundError as error:
        log.write(Unlabelled(reason=f"{error}: pip install 'gfm-harness[labels]'"))
        return
    structures = [space.structure(k) for k in labels.index]
    distances = compute_distances(distance, embed(model, structures)) if structures else np.zeros(0)
    risks: Sequence[float | None] = labels.risk_ev_per_atom or [None] * len(labels.index)
    limit = None if screening.risk is None else float(screening.risk.threshold_ev_per_atom)
    errors = (labels.energy_error_ev_per_atom, labels.force_error_ev_per_angstrom)
    columns = zip(labels.index, *errors, distances.tolist(), risks, strict=True)
    for index, energy_error, force_error, value, risk in columns:
        log.write(
            SpotLabel(
                head=labels.head,
                level_of_theory=labels.level,
                formula=space.formula(space.block(index, index + 1)[0])[0],
                energy_error_ev_per_atom=energy_error,
                force_error_ev_per_angstrom=force_error,
                distance=value,
                flagged=value > threshold,
                risk_ev_per_atom=risk,
                is_accepted=None if risk is None or limit is None else risk <= limit,
            )
        )
    if labels.failed or len(labels.index) < config.n_labels:
        log.write(Unlabelled(reason=describe_labels(config, labels, len(indices)), failed=dict(labels.failed)))


def describe_labels(config: Assessment, labels: SpotLabels, candidates: int) -> str:
    """Return the number of labels, and why there are no more if some are missing."""
    text = f"{len(labels.index)} of {pluralize(config.n_labels, 'label')}"
    if len(labels.index) == config.n_labels:
        return text
    if len(labels.index) + labels.failed.total() == candidates:
        return f"{text}: none of {candidates} candidates is left"
    return f"{text}: the time limit, {config.label_time_limit_s:g} s, has passed"
