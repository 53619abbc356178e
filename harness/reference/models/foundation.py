"""The multi-task model: one encoder, sixteen heads, a gate, and reference energies per dataset."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.models.blocks.gate import Gate
from harness.reference.models.blocks.heads import Heads
from harness.reference.models.config import ModelConfig

# Backbone -> where it stands. Each takes a ModelConfig, and (batch, vector [e, 3]) to features [n, hidden_dim].
BACKBONES: dict[str, tuple[str, str]] = {
    "painn": ("harness.reference.models.backbones.painn", "PaiNN"),
    "pnaeq": ("harness.reference.models.backbones.pnaeq", "PNAEq"),
    "egnn": ("harness.reference.models.backbones.egnn", "EGNN"),
    "schnet": ("harness.reference.models.backbones.schnet", "SchNet"),
    "dimenet": ("harness.reference.models.backbones.dimenet", "DimeNetPlusPlus"),
    "mace": ("harness.reference.models.backbones.mace", "MACE"),
}


def backbone(config: ModelConfig) -> nn.Module:
    """The encoder asked for; the others, and the libraries that they need, are not imported."""
    module, name = BACKBONES[config.backbone]
    made: nn.Module = getattr(importlib.import_module(module), name)(config)
    return made


class FoundationModel(nn.Module):
    """Energies of all heads from a batch; forces and stress are gradients, taken by inference.prediction."""

    reference_energy: Tensor
    scale: Tensor
    trained: Tensor
    known_elements: Tensor
    closest: Tensor
    kept: Tensor
    place: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # the type of the encoder's matrix products where it is not that of the parameters; no part of the weights
        self.autocast: torch.dtype | None = None
        self.encoder = backbone(config)
        self.heads = Heads(config.heads, config.hidden_dim, config.head_sizes)
        self.gate = Gate(config.heads)
        # eV per atom of each element, eV per unit of head output, which heads have seen data, which elements each has
        self.register_buffer("reference_energy", torch.zeros(config.heads, MAX_ATOMIC_NUMBER + 1))
        self.register_buffer("scale", torch.ones(config.heads))
        self.register_buffer("trained", torch.zeros(config.heads, dtype=torch.bool))
        self.register_buffer("known_elements", torch.zeros(config.heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.bool))
        # the shortest distance in each head's training set, over the sum of covalent radii; 0 where it is not known
        self.register_buffer("closest", torch.zeros(config.heads))
        # which heads are kept here, and where each head stands among them
        self.register_buffer("kept", torch.arange(config.heads), persistent=False)
        self.register_buffer("place", torch.arange(config.heads), persistent=False)

    def adopt(self, head: int, energy_ev: Array, scale: float, known: NDArray[np.bool_]) -> None:
        """Give a head its reference energies [119] in eV (0 where not known) and the eV per unit of its output."""
        self.reference_energy[head] = torch.from_numpy(np.nan_to_num(energy_ev))
        self.scale[head] = scale
        self.trained[head] = True
        self.known_elements[head] = torch.from_numpy(known)

    @property
    def elements(self) -> Tensor:
        """Which elements some head was trained on, [119]."""
        return self.known_elements.any(0)

    def know_everything(self) -> None:
        """Take all heads for ones that know every element, for a model that is only timed."""
        self.known_elements[:, 1:] = True

    def heads_that_know(self, composition: Tensor) -> Tensor:
        """composition [g, 119] -> whether each head was trained on all elements of each structure, [g, heads]."""
        return composition @ (~self.known_elements).T.to(composition.dtype) == 0

    def gate_weights(self, composition: Tensor) -> Tensor:
        """composition [g, 119] -> [g, heads], the gate's weights shared out among the heads that know all elements.

        A row sums to 1, and is NaN where no head knows all elements of the structure.
        """
        return self.gate.among(composition, self.heads_that_know(composition))

    def keep(self, heads: Sequence[int]) -> None:
        """Let go of all other heads; energies of all of them can then no longer be had, only of these."""
        self.heads = self.heads.only(heads)
        self.kept = torch.tensor(heads, device=self.kept.device)
        self.place = torch.full_like(self.place, -1).index_copy(0, self.kept, torch.arange(len(heads)).to(self.place))

    def features(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """vector [e, 3] from receiver to sender -> s [n, F] of each atom, with the products that the precision wants.

        fused: messages by the operator of harness.reference.ops, which PaiNN and PNAEq have.
        """
        device = vector.device.type
        kind = self.autocast or torch.get_autocast_dtype(device)
        with torch.autocast(device, kind, enabled=self.autocast is not None):
            s: Tensor = self.encoder(batch, vector, fused=True) if fused else self.encoder(batch, vector)
        return s

    def encode(self, batch: Batch, positions: Tensor, shift: Tensor, *, fused: bool = False) -> Tensor:
        """positions [n, 3], shift [e, 3] -> sum over each structure's atoms of s, [g, F]; fused as in features."""
        vector = positions[batch.sender] + shift - positions[batch.receiver]
        s = self.features(batch, vector, fused=fused).to(positions.dtype)
        return s.new_zeros(batch.composition.shape[0], s.shape[1]).index_add(0, batch.graph, s)

    def head_energy(self, head: int, pooled: Tensor, batch: Batch) -> Tensor:
        """pooled [g, F] -> energy [g] in eV of one head."""
        reference = batch.composition @ self.reference_energy[head]
        if self.config.readout == "sum":
            return self.scale[head] * self.heads.one(head, pooled) + reference
        atoms = batch.atoms
        return self.scale[head] * (atoms * self.heads.one(head, pooled / atoms.unsqueeze(-1))) + reference

    def beyond_references(self, pooled: Tensor, batch: Batch) -> Tensor:
        """pooled [g, F] -> energies [g, kept heads] in eV without the references, batched over heads."""
        atoms = batch.atoms.unsqueeze(-1)
        raw: Tensor = self.heads(pooled) if self.config.readout == "sum" else atoms * self.heads(pooled / atoms)
        return self.scale[self.kept] * raw

    def all_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """pooled [g, F] -> energies [g, heads] in eV, batched over heads."""
        return self.beyond_references(pooled, batch) + batch.composition @ self.reference_energy.T
