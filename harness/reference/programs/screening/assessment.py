"""How far a screening is to be trusted, found out on a random sample of its candidates by one rank.

Events:
    calibration   the threshold of the distance, its false alarms, what strange structures it detects
    overlap       of candidates, and of held-out structures, with the training sets: Wasserstein distances, elements
    elements      in how many structures of each kind every element occurs
    embedding     two principal components of some structures of a kind, for a figure
    outside       how many of the sample the model cannot know anything of, by reason
    uncertainty   of the rest of the sample: spread of heads, of dropout, of an ensemble; flagged
    label         one candidate calculated, and how far the model was off
    unlabelled    why there are no labels, or not more
    relaxed       one of the best, relaxed
    unrelaxed     how many of the best could not be relaxed, by reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance  # type: ignore[import-untyped]

from harness.protocol.events import EventLog
from harness.reference.data.batch import Batch, collate
from harness.reference.data.neighbours import neighbour_graph
from harness.reference.data.structure import Array, Structure
from harness.reference.models import checkpoints
from harness.reference.models.coverage import Coverage
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_workload import Crystals
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.index_partition import Parts
from harness.reference.programs.screening.ood_distance import (
    calibrated,
    embedded,
    familiar,
    strange_structures,
    training_structures,
)
from harness.reference.programs.screening.relaxation import relaxed
from harness.reference.programs.screening.scoring import Familiar
from harness.reference.programs.screening.spot_labels import known_space, labelled, labelled_head

COMPONENTS = 8
FAR = 10.0  # deviations
SHOWN = 300
STRANGE = 200


@dataclass(frozen=True)
class TrustConfig:
    """sample: candidates looked at, drawn at random from those screened. known_limit: structures of each training set.
    false_alarm: share of held-out structures that may be flagged. labelled: candidates to calculate, in at most
    label_seconds. dropout, draws: of the pooled features, and how often. ensemble: further checkpoints. relaxed: of the
    best, in at most relax_steps steps each.
    """

    sample: int = 1000
    known_limit: int = 200
    false_alarm: float = 0.05
    labelled: int = 50
    label_seconds: float = 120.0
    dropout: float = 0.1
    draws: int = 16
    ensemble: tuple[str, ...] = ()
    relaxed: int = 10
    relax_steps: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """A screening that has come to its end: its model with the notes of the checkpoint, what it went through, and its
    best candidates, best first."""

    model: FoundationModel
    notes: dict[str, object]
    workload: Workload
    parts: Parts
    best: Sequence[int]


def judge(config: TrustConfig, of: Judged, log: EventLog, folder: Path) -> None:
    """Everything there is to say, on the CPU in double precision."""
    model, workload = of.model.to("cpu").double(), of.workload
    model.autocast = None
    rng = np.random.default_rng(config.seed)
    indices = drawn(of.parts, config.sample, rng)
    candidates = [workload.structure(k) for k in indices]
    known, valid, test = (
        [s for of in training_structures(split, config.known_limit).values() for s in of] for split in (0, 1, 2)
    )
    inside = embedded(model, known)
    near = familiar(inside)
    others = {"candidates": embedded(model, candidates), "held out": embedded(model, test)}
    finite = np.asarray(np.isfinite(others["candidates"]).all(axis=1))
    candidates = [candidates[k] for k in np.flatnonzero(finite)]
    others["candidates"] = others["candidates"][finite]
    strange = {kind: embedded(model, s) for kind, s in strange_structures(test, STRANGE, config.seed).items()}
    strange = {kind: e[np.isfinite(e).all(axis=1)] for kind, e in strange.items()}
    found = calibrated(
        distances(near, embedded(model, valid)),
        distances(near, others["held out"]),
        {kind: distances(near, e) for kind, e in strange.items()},
        config.false_alarm,
    )
    log.write("calibration", **asdict(found), strange=STRANGE)
    overlap(inside, others, known, candidates, log)
    show(inside, {**others, **strange}, log)
    away = distances(near, others["candidates"])
    known_of = within(model, candidates, log)
    doubts(config, model, [candidates[k] for k in known_of], away[known_of] > found.threshold, log)
    labels(config, model, of.notes, workload, near, found.threshold, rng, log)
    chosen = [(k, workload.structure(k)) for k in of.best[: config.relaxed]]
    done, failed = relaxed(model, chosen, steps=config.relax_steps, folder=folder)
    for one in done:
        log.write("relaxed", **asdict(one), **workload.described(one.candidate))
    if failed:
        log.write("unrelaxed", of=len(chosen), reasons=dict(failed))


def within(model: FoundationModel, candidates: Sequence[Structure], log: EventLog) -> NDArray[np.int64]:
    """Return the places of the candidates that the model can know anything of, and count the others."""
    coverage, limits = Coverage(model), (model.config.cutoff, model.config.max_neighbours)
    reasons: Counter[str] = Counter()
    kept = []
    for k, structure in enumerate(candidates):
        graph = neighbour_graph(structure, cutoff=limits[0], max_neighbours=limits[1])
        why = [name for name, mask in coverage.outside(collate([graph])).items() if mask[0]]
        reasons.update(why)
        kept += [] if why else [k]
    log.write("outside", candidates=len(candidates), reasons=dict(reasons))
    return np.array(kept, dtype=np.int64)


def drawn(parts: Parts, count: int, rng: np.random.Generator) -> list[int]:
    """Candidates at random from the parts that were screened."""
    numbers = parts.numbers
    found = set()
    for number in rng.integers(0, len(numbers), count).tolist():
        first, stop = parts.bounds(numbers[number])
        found.add(int(rng.integers(first, stop)))
    return sorted(found)


def distances(near: Familiar, embedding: Array) -> Array:
    """Of each embedding, [s]."""
    return near.distance(torch.from_numpy(embedding)).numpy()


def overlap(
    inside: Array, others: dict[str, Array], known: Sequence[Structure], candidates: Sequence[Structure], log: EventLog
) -> None:
    """Wasserstein distances along principal components, in units of the training sets' deviation, and elements.

    Structures that lie further than FAR deviations out count as that far, and are told of: a few would be all there is.
    """
    axes, scale, mean = principal(inside)
    base = (inside - mean) @ axes / scale
    for kind, embedding in others.items():
        at = (embedding - mean) @ axes / scale
        near = np.clip(at, -FAR, FAR)
        each = [float(wasserstein_distance(base[:, k], near[:, k])) for k in range(at.shape[1])]
        log.write(
            "overlap", kind=kind, structures=len(at), wasserstein=[round(w, 4) for w in each],
            mean=round(float(np.mean(each)), 4), beyond=float((np.abs(at) > FAR).any(axis=1).mean()),
        )  # fmt: skip
    trained, asked = (Counter(int(z) for s in of for z in np.unique(s.numbers)) for of in (known, candidates))
    log.write(
        "elements", trained={str(z): n for z, n in sorted(trained.items())},
        candidates={str(z): n for z, n in sorted(asked.items())},
        never_seen=sorted(set(asked) - set(trained)),
    )  # fmt: skip


def principal(inside: Array) -> tuple[Array, Array, Array]:
    """Axes [F, c], deviations [c] along them, and the mean [F]."""
    mean = inside.mean(axis=0)
    _, values, right = np.linalg.svd(inside - mean, full_matrices=False)
    kept = min(COMPONENTS, int((values > values[0] * 1e-9).sum()))
    return right[:kept].T, values[:kept] / np.sqrt(len(inside)), mean


def show(inside: Array, others: dict[str, Array], log: EventLog) -> None:
    """Places in the plane of the first two components."""
    axes, scale, mean = principal(inside)
    for kind, embedding in {"training": inside, **others}.items():
        every = max(1, len(embedding) // SHOWN)
        at = np.clip((embedding[::every] - mean) @ axes[:, :2] / scale[:2], -FAR, FAR).round(4)
        log.write("embedding", kind=kind, x=at[:, 0].tolist(), y=at[:, 1].tolist())


@torch.no_grad()
def doubts(
    config: TrustConfig,
    model: FoundationModel,
    candidates: Sequence[Structure],
    flagged: NDArray[np.bool_],
    log: EventLog,
) -> None:
    """Three ways to see how sure the model is of the sample: medians over it, flagged candidates beside others.

    Dropout is put on the pooled features; the shipped model was trained without, so that it tells sensitivity alone.
    """
    generator = torch.Generator().manual_seed(config.seed)
    models = [model, *(checkpoints.named(name)[0].double().eval() for name in config.ensemble)]
    rows = []
    for structure in candidates:
        limits = model.config.cutoff, model.config.max_neighbours
        batch = collate([neighbour_graph(structure, cutoff=limits[0], max_neighbours=limits[1])],
                        with_triplets=model.config.needs_triplets)  # fmt: skip
        weights = model.gate_weights(batch.composition)
        pooled = model.encode(batch, batch.positions, batch.shift)
        heads = model.beyond_references(pooled, batch)[0] / batch.atoms
        mean = (weights[0] * heads).sum()
        spread = (weights[0] * (heads - mean).square()).sum().sqrt()
        keep = torch.rand(config.draws, pooled.shape[1], generator=generator) > config.dropout
        dropped = pooled * keep / (1.0 - config.dropout)
        many = batch._replace(composition=batch.composition.expand(config.draws, -1))
        told = (weights * model.beyond_references(dropped, many)).sum(1) / batch.atoms
        rows.append([float(spread), float(told.std()), _ensemble(models, batch)])
    table = np.array(rows)
    for name, of in (("flagged", flagged), ("not flagged", ~flagged)):
        if of.any():
            spread, dropout, ensemble = np.median(table[of], axis=0).tolist()
            log.write(
                "uncertainty", kind=name, candidates=int(of.sum()), heads_ev_per_atom=spread,
                dropout_ev_per_atom=dropout, ensemble_ev_per_atom=ensemble if len(models) > 1 else None,
                models=len(models),
            )  # fmt: skip


def _ensemble(models: Sequence[FoundationModel], batch: Batch) -> float:
    """Standard deviation of the energy per atom beyond the references, over models; 0 of one."""
    told = []
    for one in models:
        beyond = one.beyond_references(one.encode(batch, batch.positions, batch.shift), batch)
        told.append(float((one.gate_weights(batch.composition) * beyond).sum() / batch.atoms))
    return float(np.std(told))


def labels(
    config: TrustConfig,
    model: FoundationModel,
    notes: dict[str, object],
    workload: Workload,
    near: Familiar,
    threshold: float,
    rng: np.random.Generator,
    log: EventLog,
) -> None:
    """Candidates calculated at the level of one of the heads."""
    if not config.labelled:
        return
    head = labelled_head(notes)
    if not isinstance(workload, Crystals) or head is None:
        why = "no head of this checkpoint was trained at a level that is at hand" if head is None else "not crystals"
        log.write("unlabelled", why=why)
        return
    space = known_space(workload.space, model, head)
    indices = rng.integers(0, len(space), 20 * config.labelled).tolist()
    try:
        found = labelled(model, space, indices, head, wanted=config.labelled, seconds=config.label_seconds)
    except ModuleNotFoundError as error:
        log.write("unlabelled", why=f"{error}: pip install 'gfm-harness[labels]'")
        return
    structures = [space.structure(k) for k in found.index]
    away = distances(near, embedded(model, structures)) if structures else np.zeros(0)
    columns = (found.index, found.off_ev_per_atom, found.force_off_ev_per_a, away.tolist())
    for index, off, force_off, distance in zip(*columns, strict=True):
        log.write(
            "label", head=found.head, level=found.level, formula=space.formula(space.block(index, index + 1)[0])[0],
            off_ev_per_atom=off, force_off_ev_per_a=force_off, distance=distance, flagged=distance > threshold,
        )  # fmt: skip
    if found.failed or len(found.index) < config.labelled:
        log.write("unlabelled", why=f"{len(found.index)} of {config.labelled} labelled", failed=dict(found.failed))
