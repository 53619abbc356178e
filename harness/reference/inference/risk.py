"""The risk of a prediction: half the width of an interval around the energy that contains the label with 90% coverage.

Each head has a predicted scale of its error, which never decreases with any of seven features of a structure. Split
conformal calibration multiplies the scale by the quantile of |error| / scale over labels that the fit did not use, for
structures inside and outside the head's training set separately. The risk of a weighted sum of heads is the weighted
sum of their risks, by the triangle inequality.

The features of a structure for a head are

- the logarithm of the spread of an ensemble, whose members differ in the last layer of the head;
- the logarithms of the distances of its atoms, and of the mean of its atoms, from the training set (Mahalanobis);
- by how much element fractions, energy, shortest contact and largest force lie outside the range of the training set.

Sources: Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018), for conformal intervals that adapt to a scale; Pearce,
Leibfried and Brintrup, AISTATS 2020, for the ensemble; Lee, Lee, Lee and Shin, NeurIPS 2018, for distances.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.errors import InputError
from harness.reference.models import checkpoints, sealed
from harness.reference.models.foundation import FoundationModel

COVERAGE = 0.9  # share of labels that the intervals contain
KIND = "gfm-harness risk"
FIT_COMMAND = "python -m harness.reference.inference.fit_risk"
SUFFIX = ".risk.safetensors"
SHIPPED = Path(__file__).parent / "shipped"
FEATURES = (
    "spread", "distance of atoms", "distance of structure", "composition", "energy", "contact", "force",
)  # fmt: skip
MAX_FEATURE = 5.0  # larger features count as this large
MIN_ENERGY_RANGE_EV_PER_ATOM = 1e-3  # narrower ranges count as this wide
TINY = 1e-12  # added before logarithms, so that they are finite in single and double precision


class Evaluation(NamedTuple):
    """The outputs of a model from which risks are computed, for g structures with n atoms.

    Attributes:
        features: [n, F] features of the atoms; [n, F + 1] if the model has a repulsive pair energy, the last column.
        pooled: Their sum over the atoms of each structure.
        residual_ev_per_atom: [g, heads] energy minus the reference energies.
        force_max: [g] largest force on an atom, eV/angstrom.
    """

    features: Tensor
    pooled: Tensor
    residual_ev_per_atom: Tensor
    force_max: Tensor


def evaluate(model: FoundationModel, batch: Batch, weights: Tensor) -> Evaluation:
    """Evaluate a model with the weights [g, heads] of its heads; the results are detached from the autograd graph."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        features = model.encode_atoms(batch, positions, batch.shift)
        pooled = model.pool(batch, features)
        residual = model.residual_energies(pooled, batch)
        weighted = torch.where(weights == 0, torch.zeros_like(residual), weights * residual)
        (gradient,) = torch.autograd.grad(weighted.sum(), positions)
    largest = find_largest_forces(batch, gradient)
    atoms = batch.n_atoms.unsqueeze(-1)
    return Evaluation(features.detach(), pooled.detach(), residual.detach() / atoms, largest)


def find_largest_forces(batch: Batch, forces: Tensor) -> Tensor:
    """Return the largest norm of the forces [n, 3], or of their negatives, on the atoms of each structure, [g]."""
    size = torch.linalg.vector_norm(forces, dim=1)
    return size.new_zeros(len(batch.composition)).scatter_reduce(0, batch.graph, size, "amax", include_self=True)


@dataclass(frozen=True)
class TrainingStatistics:
    """Statistics of the training set of each head, in the feature space of the model.

    Attributes:
        members: [members, heads, width + 1] last layer of each head in each ensemble member, minus the mean over
            members, in eV/atom per unit of its inputs; the last column is the bias.
        whitening: [F, F] matrix that whitens the covariance of atoms of the same element.
        atom_means: [heads, 119, F] mean of the whitened features of each element; 0 if the element is unknown.
        structure_means: [heads, F] mean of the structures, each of which is the mean of its atoms.
        structure_whitening: [heads, F, F] matrix that whitens their covariance.
        largest_share: [heads, 119] largest share of each element in a structure.
        energy_range: [heads, 2] range of the residual energy, eV/atom.
        contact: [heads] smallest usual distance of two atoms, divided by the sum of their covalent radii.
        force: [heads] largest usual force, eV/angstrom.
    """

    members: Tensor
    whitening: Tensor
    atom_means: Tensor
    structure_means: Tensor
    structure_whitening: Tensor
    largest_share: Tensor
    energy_range: Tensor
    contact: Tensor
    force: Tensor

    def compute_features(self, model: FoundationModel, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the features of each structure for each head, [g, heads, FEATURES]."""
        atoms = batch.n_atoms.unsqueeze(-1)
        spread = self._compute_spread(model.last_layer_inputs(evaluation.pooled, batch))
        energy = evaluation.residual_ev_per_atom
        low, high = self.energy_range.unbind(-1)
        width = (high - low).clamp(min=MIN_ENERGY_RANGE_EV_PER_ATOM)
        excess_energy = torch.maximum(energy - high, low - energy).clamp(min=0.0) / width
        excess_share = (batch.composition / atoms).unsqueeze(1) - self.largest_share
        contact = compute_shortest_contacts(batch).unsqueeze(-1)
        columns = (
            torch.log(spread + TINY),
            torch.log(self._compute_atom_distance(model, batch, evaluation.features) + TINY),
            torch.log(self._compute_structure_distance(model, batch, evaluation.pooled) + TINY),
            excess_share.clamp(min=0.0).amax(-1),
            torch.log1p(excess_energy),
            torch.log(self.contact / contact).clamp(min=0.0),
            torch.log((evaluation.force_max.unsqueeze(-1) + TINY) / self.force).clamp(min=0.0),
        )
        # this bound keeps the exponential of the weighted sum of features finite in single precision
        return torch.stack(columns, dim=-1).clamp(max=MAX_FEATURE)

    def _compute_spread(self, inputs: Tensor) -> Tensor:
        """Return the standard deviation of the energy per atom over the members, [g, heads]."""
        deviation = torch.einsum("hgf,mhf->mgh", inputs, self.members[..., :-1]) + self.members[..., -1].unsqueeze(1)
        return deviation.square().mean(0).sqrt()

    def _compute_atom_distance(self, model: FoundationModel, batch: Batch, features: Tensor) -> Tensor:
        """Return the root mean square over the atoms of the distance from those of their element, [g, heads]."""
        white = model.select_features(features) @ self.whitening
        means = self.atom_means[:, batch.numbers]
        square = (white - means).square().mean(-1).T
        total = square.new_zeros(len(batch.composition), square.shape[1]).index_add(0, batch.graph, square)
        return (total / batch.n_atoms.unsqueeze(-1)).sqrt()

    def _compute_structure_distance(self, model: FoundationModel, batch: Batch, pooled: Tensor) -> Tensor:
        """Return the distance of each structure from the training set of each head, [g, heads]."""
        mean = model.select_features(pooled) / batch.n_atoms.unsqueeze(-1)
        deviation = torch.einsum("hgf,hfk->hgk", mean - self.structure_means.unsqueeze(1), self.structure_whitening)
        return deviation.square().mean(-1).sqrt().T


@dataclass(frozen=True)
class RiskModel:
    """The fitted and calibrated risk of one checkpoint.

    Attributes:
        statistics: The training sets.
        coefficients: [FEATURES] not negative; the scale is unit * exp(features @ coefficients).
        unit: [heads] eV/atom.
        inside_limit: [heads] largest distance of a structure that counts as inside the training set of the head.
        quantiles: [heads, 2] of |error| / scale, for structures inside and outside; infinity for a head without either
            validation or test structures.
        threshold_ev_per_atom: The largest risk of a prediction that is accepted, a scalar.
    """

    statistics: TrainingStatistics
    coefficients: Tensor
    unit: Tensor
    inside_limit: Tensor
    quantiles: Tensor
    threshold_ev_per_atom: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> RiskModel:
        """Return a copy on a device, in a data type."""
        statistics = TrainingStatistics(
            **{f.name: getattr(self.statistics, f.name).to(device, dtype) for f in fields(TrainingStatistics)}
        )
        return replace(
            self, statistics=statistics, **{n: getattr(self, n).to(device, dtype) for n in CALIBRATED_FIELDS}
        )

    def estimate(self, model: FoundationModel, batch: Batch, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """Return the risk of each structure in eV/atom, [g].

        Args:
            model: The model, with the parameters for which the risk was fitted.
            batch: The structures.
            evaluation: The evaluation of the model.
            weights: [g, heads] weight of each head; heads with the weight 0 do not contribute, and NaN gives NaN.
        """
        features = self.statistics.compute_features(model, batch, evaluation)
        is_inside = self.find_inside(features)
        quantile = torch.where(is_inside, self.quantiles[:, 0], self.quantiles[:, 1])
        risks = quantile * self.compute_scales(features)
        return torch.where(weights == 0, torch.zeros_like(risks), weights * risks).sum(1)

    def compute_scales(self, features: Tensor) -> Tensor:
        """Return the predicted scale of the error, [g, heads] eV/atom, for features [g, heads, FEATURES]."""
        return self.unit * torch.exp(features @ self.coefficients)

    def find_inside(self, features: Tensor) -> Tensor:
        """Return whether each structure is inside the training set of each head, [g, heads]."""
        return features[..., FEATURES.index("distance of structure")] <= torch.log(self.inside_limit)


CALIBRATED_FIELDS = tuple(f.name for f in fields(RiskModel) if f.name != "statistics")


def compute_shortest_contacts(batch: Batch) -> Tensor:
    """Return the smallest edge length relative to the sum of covalent radii, per structure, [g]; infinity if none."""
    radii = torch.as_tensor(COVALENT_RADII).to(batch.positions)[batch.numbers]
    vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
    ratio = torch.linalg.vector_norm(vector, dim=1) / (radii[batch.sender] + radii[batch.receiver])
    shortest = torch.full_like(batch.n_atoms, torch.inf, dtype=ratio.dtype)
    return shortest.scatter_reduce(0, batch.edge_graph, ratio, "amin")


def hash_checkpoint(name: str) -> str:
    """Return the SHA-256 of the file of a checkpoint; raise InputError if it cannot be read."""
    path = checkpoints.find_path(name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be read ({error.strerror})") from None


def find_risk_path(name: str) -> Path:
    """Return the file of the risk of a checkpoint: next to it, or among the shipped ones for a shipped checkpoint."""
    path = checkpoints.find_path(name)
    folder = SHIPPED if path.parent == checkpoints.SHIPPED else path.parent
    return folder / f"{path.stem}{SUFFIX}"


def write_risk(risk: RiskModel, name: str, path: Path, notes: dict[str, object]) -> None:
    """Write the risk of the named checkpoint to a file, with the SHA-256 of the checkpoint and notes as plain data."""
    tensors = {f.name: getattr(risk.statistics, f.name).float() for f in fields(TrainingStatistics)}
    tensors |= {n: getattr(risk, n).double() for n in CALIBRATED_FIELDS}
    sealed.write(path, KIND, tensors, {"checkpoint_sha256": hash_checkpoint(name), **notes})


def load_risk(name: str) -> tuple[RiskModel, dict[str, object]]:
    """Return the risk of a checkpoint, in double precision, and its notes.

    Args:
        name: The path of a checkpoint, or the name of a shipped checkpoint.

    Raises:
        InputError: The checkpoint has no risk file, or the file is damaged or belongs to another checkpoint or version.
    """
    path, refit = find_risk_path(name), f"fit it: {FIT_COMMAND} {name}"
    try:
        about = sealed.read_header(path, KIND).about
        tensors = {key: tensor.double() for key, tensor in sealed.read_tensors(path).items()}
    except FileNotFoundError:
        raise InputError(f"{path}: the checkpoint {name} has no risk; {refit}") from None
    except sealed.UnreadableFile as error:
        raise InputError(f"{path}: not a readable risk file ({error}); {refit}") from None
    names = [f.name for f in fields(TrainingStatistics)]
    if (
        tensors.keys() != {*names, *CALIBRATED_FIELDS}
        or not isinstance(about, dict)
        or "checkpoint_sha256" not in about
    ):
        raise InputError(f"{path}: a risk file of another version; {refit}")
    if about["checkpoint_sha256"] != hash_checkpoint(name):
        raise InputError(f"{path}: the risk was fitted to another checkpoint than {name}; {refit}")
    statistics = TrainingStatistics(**{n: tensors.pop(n) for n in names})
    return RiskModel(statistics, **tensors), about
