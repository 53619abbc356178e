"""Training the gate, all else frozen, so that the weighted sum of energies is that of the right branch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
BATCH = 256


@dataclass(frozen=True)
class GateErrors:
    """energy_error_ev_per_atom: mean distance of the mixed energy from the right branch's. right_branch: the share of
    structures that the gate gives more than half of the weight to the right branch."""

    energy_error_ev_per_atom: float
    right_branch: float


@torch.no_grad()
def branch_energies(model: FoundationModel, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each structure: energy per atom beyond the references by every head [s, heads], composition, own head [s]."""
    rows = [
        (
            model.beyond_references(model.encode(b, b.positions, b.shift), b) / b.atoms.unsqueeze(-1),
            b.composition,
            b.head,
        )
        for b in batches
    ]
    per_atom, composition, head = (torch.cat(column) for column in zip(*rows, strict=True))
    return per_atom, composition, head


def train_gate(
    model: FoundationModel, batches: Iterable[Batch], *, temperature: float, steps: int, seed: int
) -> GateErrors:
    """Fit the gate to structures drawn as in training, and tell how well it does on them.

    Energies count beyond the references, whose zeros lie thousands of eV/atom apart.
    """
    per_atom, composition, head = branch_energies(model, batches)
    right = per_atom.gather(1, head.unsqueeze(1))
    chance = head.bincount(minlength=model.config.heads).to(per_atom.dtype)[head] ** (1.0 / temperature - 1.0)
    optimizer = torch.optim.AdamW(model.gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.multinomial(chance.cpu(), BATCH, replacement=True, generator=generator).to(head.device)
        mixed = (model.gate(composition[picked]) * per_atom[picked]).sum(1, keepdim=True)
        loss = (mixed - right[picked]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        weights = model.gate(composition)
        error = ((weights * per_atom).sum(1, keepdim=True) - right).abs().mean()
        return GateErrors(float(error), float((weights.gather(1, head.unsqueeze(1)) > 0.5).double().mean()))
