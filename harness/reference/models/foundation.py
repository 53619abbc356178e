"""The multi-task model: one encoder, sixteen heads, a gate, and reference energies per dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.reference.batches import Batch
from harness.reference.errors import InputError
from harness.reference.models.gate import Gate
from harness.reference.models.heads import Heads
from harness.reference.models.painn import PaiNN
from harness.reference.structures import MAX_ATOMIC_NUMBER, Structure

Readout = Literal["sum", "extensive"]


@dataclass(frozen=True)
class ModelConfig:
    """What a model is made of; lengths in angstrom.

    readout: "sum" feeds the pooled sum P to the head, E = f(P), as the original does; "extensive" takes
    E = n f(P / n), the same arithmetic, so that a supercell has exactly the energy of its cells.
    """

    width: int = 64
    layers: int = 3
    n_radial: int = 6
    cutoff: float = 5.0
    max_neighbours: int | None = None
    norm_epsilon: float = 1e-8
    heads: int = 16
    head_hidden: tuple[int, ...] = (50, 50, 128, 128)
    readout: Readout = "extensive"

    def asdict(self) -> dict[str, object]:
        """Plain data, as stored beside the weights."""
        return asdict(self)


class FoundationModel(nn.Module):
    """Energies of all heads from a batch; forces and stress are gradients, taken by harness.reference.inference."""

    reference_energy: Tensor
    scale: Tensor
    trained: Tensor
    elements: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PaiNN(
            width=config.width,
            layers=config.layers,
            n_radial=config.n_radial,
            cutoff=config.cutoff,
            epsilon=config.norm_epsilon,
        )
        self.heads = Heads(config.heads, config.width, config.head_hidden)
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
        s: Tensor = self.encoder(batch.numbers, batch.receiver, batch.sender, vector)
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
