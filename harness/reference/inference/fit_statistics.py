"""Statistics of the training set of each head, from which the features of a risk are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.inference.risk import Evaluation, TrainingStatistics, compute_shortest_contacts
from harness.reference.models.foundation import FoundationModel

MEMBERS = 16  # of the ensemble
TAIL_SHARE = 0.01  # share of training structures beyond each limit: low contact, high force, low and high energy


@dataclass
class HeadSample:
    """Model outputs for training structures of one head, in lists of arrays.

    Each array has a row per structure, but `numbers` and `atoms` have one per atom.

    Attributes:
        numbers: Atomic numbers of the atoms.
        atoms: Features of the atoms.
        structures: Mean features of the structures.
        inputs: Inputs of the head's last layer.
        shares: Share of each element.
        energy: Predicted residual energies, eV/atom.
        error: Labelled energies minus predicted ones, eV/atom.
        contact: Shortest contacts.
        force: Largest forces, eV/angstrom.
    """

    numbers: list[Array] = field(default_factory=list)
    atoms: list[Array] = field(default_factory=list)
    structures: list[Array] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    shares: list[Array] = field(default_factory=list)
    energy: list[Array] = field(default_factory=list)
    error: list[Array] = field(default_factory=list)
    contact: list[Array] = field(default_factory=list)
    force: list[Array] = field(default_factory=list)

    def add(self, model: FoundationModel, head: int, batch: Batch, evaluation: Evaluation, error: Array) -> None:
        """Add the structures of a batch, with the errors [g] of their energies in eV/atom."""
        count = batch.n_atoms.unsqueeze(-1)
        columns = {
            "numbers": batch.numbers,
            "atoms": model.select_features(evaluation.features),
            "structures": model.select_features(evaluation.pooled) / count,
            "inputs": model.last_layer_inputs(evaluation.pooled, batch)[head],
            "shares": batch.composition / count,
            "energy": evaluation.residual_ev_per_atom[:, head],
            "contact": compute_shortest_contacts(batch),
            "force": evaluation.force_max,
        }
        for name, value in columns.items():
            getattr(self, name).append(value.numpy())
        self.error.append(error)


def fit_statistics(model: FoundationModel, samples: Mapping[int, HeadSample], seed: int) -> TrainingStatistics:
    """Fit the statistics to samples of the training sets, by the index of the head.

    The statistics of a head without a sample are placeholders; its calibrated quantiles, and its risks, are infinite.
    """
    rng = np.random.default_rng(seed)
    heads, width = model.config.heads, model.config.hidden_dim
    whitening = _fit_atom_whitening(samples.values(), width)
    last = model.heads.last_weight.detach().numpy()
    values = {
        "members": np.zeros((MEMBERS, heads, last.shape[1] + 1)),
        "whitening": whitening,
        "atom_means": np.zeros((heads, MAX_ATOMIC_NUMBER + 1, width)),
        "structure_means": np.zeros((heads, width)),
        "structure_whitening": np.zeros((heads, width, width)),
        "largest_share": np.zeros((heads, MAX_ATOMIC_NUMBER + 1)),
        "energy_range": np.tile([0.0, 1.0], (heads, 1)),
        "contact": np.ones(heads),
        "force": np.ones(heads),
    }
    for head, sample in samples.items():
        prior_scale = float(model.scale[head]) * float(np.sqrt(np.square(last[head]).mean()))
        inputs, errors = np.concatenate(sample.inputs), np.concatenate(sample.error)
        values["members"][:, head] = fit_members(inputs, errors, prior_scale, rng)
        for z, means in _average_by_element(sample).items():
            values["atom_means"][head, z] = means @ whitening
        structures = np.concatenate(sample.structures)
        values["structure_means"][head] = structures.mean(0)
        values["structure_whitening"][head] = compute_whitening(structures - structures.mean(0))
        values["largest_share"][head] = np.concatenate(sample.shares).max(0)
        values["energy_range"][head] = np.quantile(np.concatenate(sample.energy), [TAIL_SHARE, 1.0 - TAIL_SHARE])
        values["contact"][head] = np.quantile(np.concatenate(sample.contact), TAIL_SHARE)
        values["force"][head] = max(np.quantile(np.concatenate(sample.force), 1.0 - TAIL_SHARE), 1e-3)
    return TrainingStatistics(**{name: torch.from_numpy(value) for name, value in values.items()})


def fit_members(inputs: Array, errors: Array, prior_scale: float, rng: np.random.Generator) -> Array:
    """Return the correction of the last layer in each ensemble member, minus their mean, [members, W + 1].

    A member is fitted to a bootstrap sample of the errors by least squares, regularised towards random values: along
    directions that the training set does not determine, members keep their random values and so disagree.

    Args:
        inputs: [s, W] inputs of the last layer.
        errors: [s] eV/atom, labelled energies minus predicted ones.
        prior_scale: Standard deviation of the random values, eV/atom.
        rng: The random number generator.
    """
    design = np.column_stack([inputs, np.ones(len(inputs))])
    regularization = np.eye(design.shape[1]) * (errors.var() + 1e-12) / prior_scale**2
    members = []
    for _ in range(MEMBERS):
        weighted = design * rng.poisson(1.0, len(design))[:, None]
        start = prior_scale * rng.standard_normal(design.shape[1])
        step = np.linalg.solve(weighted.T @ design + regularization, weighted.T @ (errors - design @ start))
        members.append(start + step)
    return np.array(members) - np.mean(members, axis=0)


def compute_whitening(deviations: Array) -> Array:
    """Return the matrix [F, F] that whitens deviations [s, F] from their mean, with a shrunk covariance."""
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(deviations).covariance_)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-12)))


def _average_by_element(sample: HeadSample) -> dict[int, Array]:
    numbers, atoms = np.concatenate(sample.numbers), np.concatenate(sample.atoms)
    return {int(z): atoms[numbers == z].mean(0) for z in np.unique(numbers)}


def _fit_atom_whitening(samples: Iterable[HeadSample], width: int) -> Array:
    """Return the whitening of the atoms of all heads, relative to the mean of their element and head."""
    deviations: list[Array] = [np.zeros((0, width))]
    for sample in samples:
        means = _average_by_element(sample)
        numbers, atoms = np.concatenate(sample.numbers), np.concatenate(sample.atoms)
        deviations += [atoms[numbers == z] - mean for z, mean in means.items()]
    return compute_whitening(np.concatenate(deviations))
