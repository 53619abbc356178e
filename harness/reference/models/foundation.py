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
from harness.reference.models.config import ModelConfig
from harness.reference.models.heads import Gate, Heads

HYDRAGNN_NETWORKS = {
    "painn": "harness.reference.models.backbones.hydragnn:HydraGNNPaiNN",
    "pnaeq": "harness.reference.models.backbones.hydragnn_pnaeq:HydraGNNPNAEq",
}


def build_backbone(config: ModelConfig) -> nn.Module:
    """Build the encoder of a configuration; the libraries that other backbones need are not imported."""
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
        """Discard all heads except these; then only `residual_energies` may be called, which returns their energies."""
        self.heads = self.heads.subset(heads)
        self.kept_heads = torch.tensor(heads, device=self.kept_heads.device)
        slots = torch.arange(len(heads)).to(self.head_slot)
        self.head_slot = torch.full_like(self.head_slot, -1).index_copy(0, self.kept_heads, slots)

    def features(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """Return the features s [n, F] of atoms; the data type of matrix products is `autocast`.

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom.
            fused: Whether the operator of harness.reference.ops computes the messages (PaiNN and PNAEq only; others
                raise TypeError).
        """
        device = vector.device.type
        dtype = self.autocast or torch.get_autocast_dtype(device)
        with torch.autocast(device, dtype, enabled=self.autocast is not None):
            s: Tensor = self.encoder(batch, vector, fused=True) if fused else self.encoder(batch, vector)
        return s

    def encode(self, batch: Batch, positions: Tensor, shift: Tensor, *, fused: bool = False) -> Tensor:
        """Return the sum of features over the atoms of each structure, [g, F].

        Args:
            batch: The structures.
            positions: [n, 3] angstrom, which replace those of the batch.
            shift: [e, 3] angstrom, translation from each edge's sender to its periodic image.
            fused: As in `features`.
        """
        vector = positions[batch.sender] + shift - positions[batch.receiver]
        s = self.features(batch, vector, fused=fused).to(positions.dtype)
        return s.new_zeros(batch.composition.shape[0], s.shape[1]).index_add(0, batch.graph, s)

    def head_energy(self, head: int, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energy [g] of one head in eV for pooled features [g, F]."""
        reference = batch.composition @ self.reference_energy[head]
        if self.config.readout == "sum":
            return self.scale[head] * self.heads.forward_one(head, pooled) + reference
        atoms = batch.n_atoms
        return self.scale[head] * (atoms * self.heads.forward_one(head, pooled / atoms.unsqueeze(-1))) + reference

    def residual_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energies of all kept heads minus the reference energies, [g, k] in eV, batched over heads.

        Args:
            pooled: [g, F] from `encode`.
            batch: The structures.
        """
        atoms = batch.n_atoms.unsqueeze(-1)
        raw: Tensor = self.heads(pooled) if self.config.readout == "sum" else atoms * self.heads(pooled / atoms)
        return self.scale[self.kept_heads] * raw

    def all_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """Return the energies [g, heads] in eV for pooled features [g, F], batched over heads."""
        return self.residual_energies(pooled, batch) + batch.composition @ self.reference_energy.T
