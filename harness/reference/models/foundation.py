"""The multi-task model: one encoder, sixteen heads, a gate, and reference energies per dataset."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from harness.reference.batches import Batch
from harness.reference.errors import InputError
from harness.reference.models.config import ModelConfig
from harness.reference.models.gate import Gate
from harness.reference.models.heads import Heads
from harness.reference.structures import MAX_ATOMIC_NUMBER, Structure

# Backbone -> where it stands. Each takes a ModelConfig, and (batch, vector [e, 3]) to features [n, hidden_dim].
BACKBONES: dict[str, tuple[str, str]] = {
    "painn": ("harness.reference.models.painn", "PaiNN"),
    "pnaeq": ("harness.reference.models.pnaeq", "PNAEq"),
    "egnn": ("harness.reference.models.egnn", "EGNN"),
    "schnet": ("harness.reference.models.schnet", "SchNet"),
    "dimenet": ("harness.reference.models.dimenet", "DimeNetPlusPlus"),
    "mace": ("harness.reference.models.mace", "MACE"),
}


def backbone(config: ModelConfig) -> nn.Module:
    """The encoder asked for; the others, and the libraries that they need, are not imported."""
    module, name = BACKBONES[config.backbone]
    made: nn.Module = getattr(importlib.import_module(module), name)(config)
    return made


class FoundationModel(nn.Module):
    """Energies of all heads from a batch; forces and stress are gradients, taken by harness.reference.inference."""

    reference_energy: Tensor
    scale: Tensor
    trained: Tensor
    elements: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = backbone(config)
        self.heads = Heads(config.heads, config.hidden_dim, config.head_sizes)
        self.gate = Gate(config.heads)
        # eV per atom of each element, eV per unit of head output, which heads have seen data, which elements
        self.register_buffer("reference_energy", torch.zeros(config.heads, MAX_ATOMIC_NUMBER + 1))
        self.register_buffer("scale", torch.ones(config.heads))
        self.register_buffer("trained", torch.zeros(config.heads, dtype=torch.bool))
        self.register_buffer("elements", torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool))

    def check_elements(self, structure: Structure) -> None:
        """Raise InputError if the structure holds an element that no training set of this model had."""
        known = self.elements.cpu().numpy()
        for atom, number in enumerate(structure.numbers.tolist()):
            if not known[number]:
                raise InputError(
                    f"structure {structure.name!r}: atom {atom} is element {number}, which the model has not seen"
                )

    def encode(self, batch: Batch, positions: Tensor, shift: Tensor) -> Tensor:
        """positions [n, 3], shift [e, 3] -> sum over each structure's atoms of s, [g, F]."""
        vector = positions[batch.sender] + shift - positions[batch.receiver]
        s: Tensor = self.encoder(batch, vector)
        return s.new_zeros(batch.composition.shape[0], s.shape[1]).index_add(0, batch.graph, s)

    def head_energy(self, head: int, pooled: Tensor, batch: Batch) -> Tensor:
        """pooled [g, F] -> energy [g] in eV of one head."""
        reference = batch.composition @ self.reference_energy[head]
        if self.config.readout == "sum":
            return self.scale[head] * self.heads.one(head, pooled) + reference
        atoms = batch.atoms
        return self.scale[head] * (atoms * self.heads.one(head, pooled / atoms.unsqueeze(-1))) + reference

    def all_energies(self, pooled: Tensor, batch: Batch) -> Tensor:
        """pooled [g, F] -> energies [g, heads] in eV, batched over heads."""
        reference = batch.composition @ self.reference_energy.T
        atoms = batch.atoms.unsqueeze(-1)
        raw: Tensor = self.heads(pooled) if self.config.readout == "sum" else atoms * self.heads(pooled / atoms)
        return self.scale * raw + reference
