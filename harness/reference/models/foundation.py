"""The multi-task model: one encoder, one head and one set of reference energies per dataset, and a gate."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.protocol.backbones import BACKBONES
from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.models.autocast import set_autocast
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import compute_edge_vectors, group_atoms
from harness.reference.models.heads import Gate, Heads
from harness.reference.ops import segment_sums

HYDRAGNN_NETWORKS = {
    "painn": "harness.reference.models.backbones.hydragnn:HydraGNNPaiNN",
    "pnaeq": "harness.reference.models.backbones.hydragnn_pnaeq:HydraGNNPNAEq",
}


def build_backbone(config: ModelConfig) -> nn.Module:
    """Build the encoder of a configuration; the libraries that other backbones need are not imported."""
    segment_sums.load()
    network = BACKBONES[config.backbone].network if config.hydragnn is None else HYDRAGNN_NETWORKS[config.backbone]
    module, _, name = network.partition(":")
    encoder: nn.Module = getattr(importlib.import_module(module), name)(config)
    return encoder


class FoundationModel(nn.Module):
    """Energies of all heads from a batch; `inference.prediction` takes their gradients for forces and stress.

    Attributes:
        reference_energy: [heads, 119] eV per atom of each element.
        scale: [heads] eV per unit of head output.
        trained: [heads] whether a head was trained.
        known_elements: [heads, 119] whether an element is in the training set of a head.
        closest: [heads] shortest distance between two atoms in the training set of a head, divided by the sum of their
            covalent radii; 0 if it is unknown.
        kept_heads: [k] indices of the heads in this process, see `keep_heads`.
        head_slot: [heads] index of each head in kept_heads, -1 if it is discarded.
        autocast: Data type of the encoder's matrix products in mixed precision; None for the type of the parameters.
            It is not saved.
        fused: Type of the devices on which operators of harness.reference.ops compute messages and linear layers of the
            encoder unless a call says otherwise; None: on none, nor on other devices to which the model moves. It is
            not saved; `message_backend.select_backend` sets it.
    """

    reference_energy: Tensor
    scale: Tensor
    trained: Tensor
    known_elements: Tensor
    closest: Tensor
    kept_heads: Tensor
    head_slot: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autocast: torch.dtype | None = None
        self.fused: str | None = None
        self.encoder = build_backbone(config)
        hydragnn = config.hydragnn
        activation = "silu" if hydragnn is None else hydragnn.activation
        self.heads = Heads(config.heads, config.hidden_dim, config.head_sizes, activation=activation)
        self.gate = Gate(config.heads, counts=hydragnn is not None)
        self.register_buffer("reference_energy", torch.zeros(config.heads, MAX_ATOMIC_NUMBER + 1))
        self.register_buffer("scale", torch.ones(config.heads))
        self.register_buffer("trained", torch.zeros(config.heads, dtype=torch.bool))
        self.register_buffer("known_elements", torch.zeros(config.heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.bool))
        self.register_buffer("closest", torch.zeros(config.heads))
        self.register_buffer("kept_heads", torch.arange(config.heads), persistent=False)
        self.register_buffer("head_slot", torch.arange(config.heads), persistent=False)

    def set_head_data(self, head: int, energy_ev: Array, scale: float, known: NDArray[np.bool_]) -> None:
        """Set the reference energies of a head, and mark it as trained.

        Args:
            head: Index of the head.
            energy_ev: [119] reference energy of each element in eV; NaN counts as 0.
            scale: eV per unit of head output.
            known: [119] whether an element is in the training set.
        """
        self.reference_energy[head] = torch.from_numpy(np.nan_to_num(energy_ev))
        self.scale[head] = scale
        self.trained[head] = True
        self.known_elements[head] = torch.from_numpy(known)

    @property
    def elements(self) -> Tensor:
        """Whether any head was trained on each element, [119]."""
        return self.known_elements.any(0)

    def mark_all_elements_known(self) -> None:
        """Mark all elements as known to every head, for a model that is only timed."""
        self.known_elements[:, 1:] = True

    def heads_knowing_all_elements(self, composition: Tensor) -> Tensor:
        """Return whether each head was trained on all elements of each structure, [g, heads].

        Args:
            composition: [g, 119] number of atoms of each element.
        """
        return composition @ (~self.known_elements).T.to(composition.dtype) == 0

    def gate_weights(self, composition: Tensor) -> Tensor:
        """Return the gate's weights [g, heads], which are 0 for heads that do not know all elements of a structure.

        A row sums to 1; it is NaN if no head knows all elements of the structure.

        Args:
            composition: [g, 119] number of atoms of each element.
        """
        return self.gate.masked_weights(composition, self.heads_knowing_all_elements(composition))

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Discard all heads except these; then only `residual_energies` and `own_energies` return energies."""
        self.heads = self.heads.subset(heads)
        self.kept_heads = torch.tensor(heads, device=self.kept_heads.device)
        slots = torch.arange(len(heads)).to(self.head_slot)
        self.head_slot = torch.full_like(self.head_slot, -1).index_copy(0, self.kept_heads, slots)

    def features(self, batch: Batch, vector: Tensor, *, fused: bool | None = None) -> Tensor:
        """Return the features s [n, F] of atoms; the data type of matrix products is `autocast`.

        If the model has a repulsion, its energy in eV is one more column.

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom.
            fused: Whether the operators of harness.reference.ops are used (PaiNN and PNAEq only; others raise
                TypeError); None for the attribute of the model.
        """
        with set_autocast(vector.device.type, self.autocast):
            use_fused = vector.device.type == self.fused if fused is None else fused
            s: Tensor = self.encoder(batch, vector, fused=True) if use_fused else self.encoder(batch, vector)
        return s

    def encode(self, batch: Batch, positions: Tensor, shift: Tensor, *, fused: bool | None = None) -> Tensor:
        """Return the sum of `features` over the atoms of each structure, [g, F] or, with a repulsion, [g, F + 1].

        Args:
            batch: The structures.
            positions: [n, 3] angstrom, which replace those of the batch.
            shift: [e, 3] angstrom, translation from each edge's sender to its periodic image.
            fused: As in `features`.
        """
        return self.pool(batch, self.encode_atoms(batch, positions, shift, fused=fused))

    def encode_atoms(self, batch: Batch, positions: Tensor, shift: Tensor, *, fused: bool | None = None) -> Tensor:
        """Return `features` in the data type of the positions, with the arguments of `encode`."""
        vector = compute_edge_vectors(batch, positions, shift)
        return self.features(batch, vector, fused=fused).to(positions.dtype)

    def pool(self, batch: Batch, features: Tensor) -> Tensor:
        """Return the sum over the atoms of each structure, [g, F], of features of atoms [n, F]."""
        return segment_sums.segment_sum(features, group_atoms(batch))

    def select_features(self, pooled: Tensor) -> Tensor:
        """Return the features alone, [g, F] or [n, F], from the result of `encode` or `encode_atoms`."""
        return pooled[:, : self.config.hidden_dim]

    def replace_features(self, pooled: Tensor, features: Tensor) -> Tensor:
        """Return the result of `encode` for other features [m, F], and the repulsion, if any, of one structure."""
        repulsion = pooled[:, self.config.hidden_dim :]
        return torch.cat([features, repulsion.expand(len(features), -1)], dim=1)

    def head_energy(self, head: int, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energy [g] of one head in eV for the result of `encode`."""
        reference = batch.composition @ self.reference_energy[head]
        if self.config.repulsion is not None:
            reference = reference + pooled[:, -1]
            pooled = self.select_features(pooled)
        if self.config.readout == "sum":
            return self.scale[head] * self.heads.forward_one(head, pooled) + reference
        atoms = batch.n_atoms
        return self.scale[head] * (atoms * self.heads.forward_one(head, pooled / atoms.unsqueeze(-1))) + reference

    def residual_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energies of all kept heads minus the reference energies, [g, k] in eV, batched over heads.

        Args:
            pooled: The result of `encode`.
            batch: The structures.
        """
        atoms = batch.n_atoms.unsqueeze(-1)
        features = self.select_features(pooled)
        raw: Tensor = self.heads(features) if self.config.readout == "sum" else atoms * self.heads(features / atoms)
        energies = self.scale[self.kept_heads] * raw
        return energies if self.config.repulsion is None else energies + pooled[:, -1:]

    def own_energies(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the energies by the heads of the structures' own datasets, and their gradients; skip other heads.

        Args:
            pooled: The result of `encode`.
            batch: The structures.

        Returns:
            The energies minus the reference energies [g] in eV, and their derivatives with respect to pooled.
        """
        features, scale = self.select_features(pooled), self.scale[batch.head]
        atoms = torch.ones_like(scale) if self.config.readout == "sum" else batch.n_atoms
        raw, slope = self.heads.forward_own(self.head_slot[batch.head], features / atoms.unsqueeze(1))
        energy, slope = scale * atoms * raw, scale.unsqueeze(1) * slope
        if self.config.repulsion is None:
            return energy, slope
        return energy + pooled[:, -1], torch.cat([slope, torch.ones_like(slope[:, :1])], dim=1)

    def last_layer_inputs(self, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the inputs of the last layer of each kept head, [k, g, width], for the result of `encode`.

        They are divided by the number of atoms if the readout is a sum, so that the last layer would give an energy per
        atom.
        """
        atoms = batch.n_atoms.unsqueeze(-1)
        features = self.select_features(pooled)
        if self.config.readout == "sum":
            return self.heads.hidden(features) / atoms
        return self.heads.hidden(features / atoms)

    def all_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energies [g, heads] in eV for the result of `encode`, batched over heads."""
        return self.residual_energies(pooled, batch) + batch.composition @ self.reference_energy.T
