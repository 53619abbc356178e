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
    Elements,
    Embedding,
    OutsideCoverage,
    Overlap,
    RelaxedCandidate,
    SampleRisk,
    SpotLabel,
    Uncertainty,
    Unlabelled,
    Unrelaxed,
)
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.structure import Array, Structure
from harness.reference.inference.risk import COVERAGE, RiskModel, evaluate
from harness.reference.models import checkpoints
from harness.reference.models.coverage import Coverage
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_workload import CrystalWorkload
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.drawing import draw_structure
from harness.reference.programs.screening.ood_distance import (
    BATCH,
    calibrate,
    embed,
    fit_distance,
    load_training_structures,
    make_ood_structures,
)
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.ranking import rank
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.relaxation import find_duplicates, relax
from harness.reference.programs.screening.scoring import MahalanobisDistance
from harness.reference.programs.screening.spot_checks import (
    find_labelled_head,
    label_candidates,
    restrict_to_head,
)

COMPONENTS = 8
DRAWINGS = 12  # number of relaxed candidates that are drawn
MAX_DEVIATION = 10.0  # standard deviations
MAX_POINTS = 300  # number of points of each kind in the figure of embeddings
OOD_STRUCTURES = 200  # number of out-of-distribution structures of each kind


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
    """Assess a screening on the CPU in double precision, and log the results."""
    model, workload = screening.model.to("cpu").double(), screening.workload
    model.autocast = None
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
    ood = {kind: embed(model, s) for kind, s in make_ood_structures(test, OOD_STRUCTURES, config.seed).items()}
    ood = {kind: e[np.isfinite(e).all(axis=1)] for kind, e in ood.items()}
    calibration = calibrate(
        compute_distances(distance, embed(model, validation)),
        compute_distances(distance, others["held out"]),
        {kind: compute_distances(distance, e) for kind, e in ood.items()},
        config.false_alarm,
    )
    threshold = calibration.threshold
    log.write(Calibration(**asdict(calibration), ood_structures=OOD_STRUCTURES))
    log_overlap(reference, others, training, candidates, log)
    log_projection(reference, {**others, **ood}, log)
    covered = select_covered(model, candidates, log)
    flagged = compute_distances(distance, others["candidates"])[covered] > threshold
    estimate_uncertainty(config, model, [candidates[k] for k in covered], flagged, log)
    if screening.risk is not None and len(covered):
        log.write(summarize_risk(screening.risk, model, [candidates[k] for k in covered]))
    log_labels(config, model, screening, distance=distance, threshold=threshold, rng=rng, log=log)
    log_relaxations(config, model, screening, log, folder)


def log_relaxations(
    config: Assessment, model: FoundationModel, screening: FinishedScreening, log: CaseLog, folder: Path
) -> None:
    """Relax the best candidates with the head of the hull, or else the gate, and log them by energy above the hull."""
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
    """Return the best candidates, of which no two differ only in volume."""
    if not isinstance(screening.workload, CrystalWorkload):
        return list(screening.best[:count])
    chosen: dict[tuple[int, ...], int] = {}
    for number in screening.best:
        (block,) = screening.workload.space.block(number, number + 1)
        chosen.setdefault((block.prototype, *block.species[0].tolist()), number)
        if len(chosen) == count:
            break
    return list(chosen.values())


def select_covered(model: FoundationModel, candidates: Sequence[Structure], log: CaseLog) -> NDArray[np.int64]:
    """Return the positions of the candidates inside the model's training sets; log the number of others by reason."""
    coverage = Coverage(model)
    reasons: Counter[str] = Counter()
    covered = []
    for k, structure in enumerate(candidates):
        graph = model.config.neighbour_spec.build_list(structure)
        outside = [name for name, mask in coverage.find_outside(build_batch([graph])).items() if mask[0]]
        reasons.update(outside)
        covered += [] if outside else [k]
    log.write(OutsideCoverage(candidates=len(candidates), reasons=dict(reasons)))
    return np.array(covered, dtype=np.int64)


def sample_candidates(parts: IndexPartition, count: int, rng: np.random.Generator) -> list[int]:
    """Return the numbers of random candidates in the parts that were screened, ascending."""
    numbers = parts.selected
    candidates = set()
    for position in rng.integers(0, len(numbers), count).tolist():
        first, stop = parts.bounds(numbers[position])
        candidates.add(int(rng.integers(first, stop)))
    return sorted(candidates)


def compute_distances(distance: MahalanobisDistance, embedding: Array) -> Array:
    """Return the distances of embeddings [s, F], [s]."""
    return distance.distance(torch.from_numpy(embedding)).numpy()


def log_overlap(
    reference: Array,
    others: dict[str, Array],
    training: Sequence[Structure],
    candidates: Sequence[Structure],
    log: CaseLog,
) -> None:
    """Log the overlap of other structures with the training sets, and the elements of the candidates.

    The overlap is measured by Wasserstein distances along principal components, in units of the standard deviation of
    the training sets. Deviations are clipped at MAX_DEVIATION, since outliers would dominate; the share of clipped
    structures is logged.

    Args:
        reference: [s, F] embeddings of the training sets.
        others: [k, F] embeddings of other structures, by kind.
        training: The structures of the training sets.
        candidates: The sampled candidates.
        log: The log of the case.
    """
    from scipy.stats import wasserstein_distance  # type: ignore[import-untyped]  # the import takes most of a second

    axes, scale, mean = compute_principal_components(reference)
    base = (reference - mean) @ axes / scale
    for kind, embedding in others.items():
        scores = (embedding - mean) @ axes / scale
        clipped = np.clip(scores, -MAX_DEVIATION, MAX_DEVIATION)
        distances = [float(wasserstein_distance(base[:, k], clipped[:, k])) for k in range(scores.shape[1])]
        log.write(
            Overlap(
                kind=kind,
                structures=len(scores),
                wasserstein=[round(w, 4) for w in distances],
                mean=round(float(np.mean(distances)), 4),
                outside_range_fraction=float((np.abs(scores) > MAX_DEVIATION).any(axis=1).mean()),
            )
        )
    trained, screened = (
        Counter(int(z) for s in structures for z in np.unique(s.numbers)) for structures in (training, candidates)
    )
    log.write(
        Elements(
            trained={str(z): n for z, n in sorted(trained.items())},
            candidates={str(z): n for z, n in sorted(screened.items())},
            unseen_elements=sorted(set(screened) - set(trained)),
        )
    )


def compute_principal_components(reference: Array) -> tuple[Array, Array, Array]:
    """Return principal axes [F, c], standard deviations [c] along them, and the mean [F] of embeddings [s, F]."""
    mean = reference.mean(axis=0)
    _, values, right = np.linalg.svd(reference - mean, full_matrices=False)
    count = min(COMPONENTS, int((values > values[0] * 1e-9).sum()))
    return right[:count].T, values[:count] / np.sqrt(len(reference)), mean


def log_projection(reference: Array, others: dict[str, Array], log: CaseLog) -> None:
    """Log the projections of embeddings on the first two principal components."""
    axes, scale, mean = compute_principal_components(reference)
    for kind, embedding in {"training": reference, **others}.items():
        stride = max(1, len(embedding) // MAX_POINTS)
        projection = (embedding[::stride] - mean) @ axes[:, :2] / scale[:2]
        clipped = np.clip(projection, -MAX_DEVIATION, MAX_DEVIATION).round(4)
        log.write(Embedding(kind=kind, x=clipped[:, 0].tolist(), y=clipped[:, 1].tolist()))


@torch.no_grad()
def estimate_uncertainty(
    config: Assessment,
    model: FoundationModel,
    candidates: Sequence[Structure],
    flagged: NDArray[np.bool_],
    log: CaseLog,
) -> None:
    """Log three estimates of the uncertainty, as medians over flagged candidates and over the others.

    The estimates are the spread over the heads, over dropout samples, and over an ensemble of models. Dropout acts on
    the pooled features. The shipped model was trained without dropout, so the spread over dropout samples measures only
    its sensitivity.
    """
    generator = torch.Generator().manual_seed(config.seed)
    models = [model, *(checkpoints.load_named(name)[0].double().eval() for name in config.ensemble)]
    rows = []
    for structure in candidates:
        graph = model.config.neighbour_spec.build_list(structure)
        batch = build_batch([graph], with_triplets=model.config.needs_triplets)
        weights = model.gate_weights(batch.composition)
        pooled = model.encode(batch, batch.positions, batch.shift)
        heads = model.residual_energies(pooled, batch)[0] / batch.n_atoms
        mean = (weights[0] * heads).sum()
        spread = (weights[0] * (heads - mean).square()).sum().sqrt()
        keep = torch.rand(config.dropout_samples, model.config.hidden_dim, generator=generator) > config.dropout
        dropped = model.replace_features(pooled, model.select_features(pooled) * keep / (1.0 - config.dropout))
        repeated = batch._replace(composition=batch.composition.expand(config.dropout_samples, -1))
        energies = (weights * model.residual_energies(dropped, repeated)).sum(1) / batch.n_atoms
        rows.append([float(spread), float(energies.std()), _compute_ensemble_deviation(models, batch)])
    table = np.array(rows)
    for name, mask in (("flagged", flagged), ("not flagged", ~flagged)):
        if mask.any():
            spread, dropout, ensemble = np.median(table[mask], axis=0).tolist()
            log.write(
                Uncertainty(
                    kind=name,
                    candidates=int(mask.sum()),
                    heads_ev_per_atom=spread,
                    dropout_ev_per_atom=dropout,
                    ensemble_ev_per_atom=ensemble if len(models) > 1 else None,
                    models=len(models),
                )
            )


def _compute_ensemble_deviation(models: Sequence[FoundationModel], batch: Batch) -> float:
    """Return the standard deviation of the residual energy per atom over models; 0 for one model."""
    energies = []
    for model in models:
        residuals = model.residual_energies(model.encode(batch, batch.positions, batch.shift), batch)
        energies.append(float((model.gate_weights(batch.composition) * residuals).sum() / batch.n_atoms))
    return float(np.std(energies))


@torch.no_grad()
def summarize_risk(risk: RiskModel, model: FoundationModel, candidates: Sequence[Structure]) -> SampleRisk:
    """Return the median risk of candidates, and the share of them that is accepted."""
    risks = []
    for first in range(0, len(candidates), BATCH):
        graphs = [model.config.neighbour_spec.build_list(s) for s in candidates[first : first + BATCH]]
        batch = build_batch(graphs, with_triplets=model.config.needs_triplets)
        weights = model.gate_weights(batch.composition)
        risks.append(risk.estimate(model, batch, evaluate(model, batch, weights), weights).numpy())
    values, threshold = np.concatenate(risks), float(risk.threshold_ev_per_atom)
    return SampleRisk(
        candidates=len(values),
        threshold_ev_per_atom=threshold,
        accepted_fraction=float((values <= threshold).mean()),
        median_ev_per_atom=float(np.median(values)),
        coverage=COVERAGE,
    )


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
    indices = rng.integers(0, len(space), 20 * config.n_labels).tolist()
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
        reason = f"{len(labels.index)} of {config.n_labels} labelled"
        log.write(Unlabelled(reason=reason, failed=dict(labels.failed)))
