"""The overlap of the embeddings of candidates with those of the training sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import Elements, Embedding, Overlap
from harness.reference.data.structure import Array, Structure

COMPONENTS = 8  # number of principal components along which the overlap is measured
MAX_DEVIATION = 10.0  # standard deviations
MAX_POINTS = 300  # number of points of each kind in the figure of embeddings


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
    structures is logged. No overlap is logged if all embeddings of the training sets are equal.

    Args:
        reference: [s, F] embeddings of the training sets.
        others: [k, F] embeddings of other structures, by kind.
        training: The structures of the training sets.
        candidates: The sampled candidates.
        log: The log of the case.
    """
    from scipy.stats import wasserstein_distance  # type: ignore[import-untyped]  # the import takes most of a second

    axes, scale, mean = compute_principal_components(reference)
    base = _clip((reference - mean) @ axes / scale)
    for kind, embedding in others.items():
        scores = (embedding - mean) @ axes / scale
        clipped = _clip(scores)
        distances = [float(wasserstein_distance(base[:, k], clipped[:, k])) for k in range(scores.shape[1])]
        if distances:
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
    """Return principal axes [F, c], standard deviations [c] along them, and the mean [F] of embeddings [s, F].

    There are at most COMPONENTS axes; those along which all embeddings are equal but for rounding errors are left out.
    """
    mean = reference.mean(axis=0)
    _, values, right = np.linalg.svd(reference - mean, full_matrices=False)
    count = min(COMPONENTS, int((values > 1e-9 * np.linalg.norm(reference)).sum()))
    return right[:count].T, values[:count] / np.sqrt(len(reference)), mean


def log_projection(reference: Array, others: dict[str, Array], log: CaseLog) -> None:
    """Log the projections of at most MAX_POINTS embeddings of each kind on the first two principal components.

    Projections are in units of the standard deviation of the training sets, and clipped at MAX_DEVIATION; they are 0
    for a component that does not exist. Of more embeddings, every n-th is logged.

    Args:
        reference: [s, F] embeddings of the training sets.
        others: [k, F] embeddings of other structures, by kind.
        log: The log of the case.
    """
    axes, scale, mean = compute_principal_components(reference)
    for kind, embedding in {"training": reference, **others}.items():
        stride = max(1, -(-len(embedding) // MAX_POINTS))
        projection = (embedding[::stride] - mean) @ axes[:, :2] / scale[:2]
        x, y = np.pad(_clip(projection).round(4), ((0, 0), (0, 2 - projection.shape[1]))).T.tolist()
        log.write(Embedding(kind=kind, x=x, y=y))


def _clip(deviations: Array) -> Array:
    """Return deviations, in standard deviations, clipped at MAX_DEVIATION."""
    return np.clip(deviations, -MAX_DEVIATION, MAX_DEVIATION)
