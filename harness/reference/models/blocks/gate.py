"""The gate: which heads to trust for a structure, judged by its composition alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.reference.data.structure import MAX_ATOMIC_NUMBER


class Gate(nn.Module):
    """Composition (118 bins, fractions) -> 128 -> 64 -> heads, ReLU, softmax."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(MAX_ATOMIC_NUMBER, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.last = nn.Linear(64, heads)

    def logits(self, composition: Tensor) -> Tensor:
        """composition: [g, 119] atoms per element (bin 0 is empty) -> [g, heads]."""
        counts = composition[:, 1:]
        logits: Tensor = self.last(self.hidden(counts / counts.sum(1, keepdim=True)))
        return logits

    def forward(self, composition: Tensor) -> Tensor:
        """composition: [g, 119] -> weights [g, heads], each row sums to 1."""
        return torch.softmax(self.logits(composition), dim=-1)

    def among(self, composition: Tensor, known: Tensor) -> Tensor:
        """composition: [g, 119], known: [g, heads] bool -> weights [g, heads] of these heads alone; NaN of none."""
        return torch.softmax(self.logits(composition).masked_fill(~known, -torch.inf), dim=-1)
