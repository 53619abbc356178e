"""Train the gate alone, so that the weighted energy matches that of the right head, the one of the dataset."""

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
    """The errors of the gate.

    Attributes:
        energy_error_ev_per_atom: Mean absolute difference between the weighted energy and that of the right head.
        accuracy: Fraction of structures whose right head has more than half of the weight.
    """

    energy_error_ev_per_atom: float
    accuracy: float


@torch.no_grad()
def compute_head_energies(model: FoundationModel, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate all heads on batches of s structures in all.

    Returns:
        The residual energy per atom of every head [s, heads] in eV, the composition [s, 119], and the right head [s].
    """
    rows = [
        (
            model.residual_energies(model.encode(b, b.positions, b.shift), b) / b.n_atoms.unsqueeze(-1),
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
    """Fit the gate to structures sampled as in training, and return its errors on them.

    The loss compares residual energies, since the reference energies of the heads differ by thousands of eV/atom.

    Args:
        model: The model, whose gate is changed in place.
        batches: Structures with the head of their dataset.
        temperature: Temperature of the sampling over datasets in training.
        steps: Number of steps.
        seed: Seed of the sampling.
    """
    per_atom, composition, head = compute_head_energies(model, batches)
    target = per_atom.gather(1, head.unsqueeze(1))
    probability = head.bincount(minlength=model.config.heads).to(per_atom.dtype)[head] ** (1.0 / temperature - 1.0)
    optimizer = torch.optim.AdamW(model.gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        selected = torch.multinomial(probability.cpu(), BATCH, replacement=True, generator=generator).to(head.device)
        mixed = (model.gate(composition[selected]) * per_atom[selected]).sum(1, keepdim=True)
        loss = (mixed - target[selected]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        weights = model.gate(composition)
        error = ((weights * per_atom).sum(1, keepdim=True) - target).abs().mean()
        return GateErrors(float(error), float((weights.gather(1, head.unsqueeze(1)) > 0.5).double().mean()))
