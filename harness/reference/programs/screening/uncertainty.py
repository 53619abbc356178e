"""The uncertainty of the energies of candidates: their spreads over heads, dropout and an ensemble, and their risk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import Assessment, SampleRisk, Uncertainty
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.structure import Array, Structure
from harness.reference.inference import risk
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.ood_distance import BATCH


@torch.no_grad()
def log_uncertainty(
    config: Assessment,
    model: FoundationModel,
    candidates: Sequence[Structure],
    flagged: NDArray[np.bool_],
    log: CaseLog,
) -> None:
    """Log three estimates of the uncertainty, as medians over flagged candidates and over the others.

    The estimates are the spread over the heads, over dropout samples, and over an ensemble of models. A spread is the
    standard deviation of the values themselves (not an estimate for more values), weighted by the gate for the heads.
    A candidate that fewer than two heads know has no spread over the heads, and one that a model does not know has none
    over the ensemble. Medians are over the candidates with a spread, whose number is logged, and null without one.
    Dropout acts on the pooled features. The shipped model was trained without dropout, so the spread over dropout
    samples measures only its sensitivity.
    """
    generator = torch.Generator().manual_seed(config.seed)
    models = [model, *(checkpoints.load_named(name)[0].double().eval() for name in config.ensemble)]
    rows = []
    for structure in candidates:
        batch = _build_batch(model, [structure])
        weights = model.gate_weights(batch.composition)
        pooled = model.encode(batch, batch.positions, batch.shift)
        heads = model.residual_energies(pooled, batch)[0] / batch.n_atoms
        mean = (weights[0] * heads).sum()
        spread = float((weights[0] * (heads - mean).square()).sum().sqrt()) if (weights[0] > 0).sum() > 1 else np.nan
        keep = torch.rand(config.dropout_samples, model.config.hidden_dim, generator=generator) > config.dropout
        dropped = model.replace_features(pooled, model.select_features(pooled) * keep / (1.0 - config.dropout))
        repeated = batch._replace(composition=batch.composition.expand(config.dropout_samples, -1))
        dropout = (weights * model.residual_energies(dropped, repeated)).sum(1) / batch.n_atoms
        ensemble = [_compute_energy(member, structure) for member in models] if len(models) > 1 else []
        rows.append([spread, _compute_spread(dropout.numpy()), _compute_spread(np.array(ensemble))])
    table = np.array(rows)
    for name, mask in (("flagged", flagged), ("not flagged", ~flagged)):
        if mask.any():
            known = [column[~np.isnan(column)] for column in table[mask].T]
            by_heads, by_dropout, by_ensemble = (float(np.median(c)) if len(c) else None for c in known)
            log.write(
                Uncertainty(
                    kind=name,
                    candidates=int(mask.sum()),
                    heads_ev_per_atom=by_heads,
                    dropout_ev_per_atom=by_dropout,
                    ensemble_ev_per_atom=by_ensemble,
                    models=len(models),
                    with_spread=dict(zip(("heads", "dropout", "ensemble"), map(len, known), strict=True)),
                )
            )


def _build_batch(model: FoundationModel, structures: Sequence[Structure]) -> Batch:
    """Return structures as a batch with the neighbours of this model."""
    graphs = [model.config.neighbour_spec.build_list(s) for s in structures]
    return build_batch(graphs, with_triplets=model.config.needs_triplets)


def _compute_energy(model: FoundationModel, structure: Structure) -> float:
    """Return the energy per atom by the gate's weighted sum, eV; NaN if no head knows all elements.

    It includes the reference energies, which differ between models.
    """
    batch = _build_batch(model, [structure])
    energies = model.all_energies(model.encode(batch, batch.positions, batch.shift), batch)
    return float((model.gate_weights(batch.composition) * energies).sum() / batch.n_atoms)


def _compute_spread(values: Array) -> float:
    """Return the standard deviation of values; NaN for fewer than two."""
    return float(np.std(values)) if len(values) > 1 else float("nan")


@torch.no_grad()
def summarize_risk(risk_model: risk.RiskModel, model: FoundationModel, candidates: Sequence[Structure]) -> SampleRisk:
    """Return the median risk of candidates, and the share of them that is accepted."""
    risks = []
    for first in range(0, len(candidates), BATCH):
        batch = _build_batch(model, candidates[first : first + BATCH])
        weights = model.gate_weights(batch.composition)
        risks.append(risk_model.estimate(model, batch, risk.evaluate(model, batch, weights), weights).numpy())
    values, threshold = np.concatenate(risks), float(risk_model.threshold_ev_per_atom)
    return SampleRisk(
        candidates=len(values),
        threshold_ev_per_atom=threshold,
        accepted_fraction=float((values <= threshold).mean()),
        median_ev_per_atom=float(np.median(values)),
        coverage=risk.COVERAGE,
    )
