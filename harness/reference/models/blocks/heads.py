"""Sixteen readout heads, held as stacked matrices so that they can run one by one or all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class StackedLinear(nn.Module):
    """One linear layer per head: weight [heads, in, out], bias [heads, 1, out]."""

    def __init__(self, heads: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(heads, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, n_out).uniform_(-bound, bound))

    def one(self, head: int, x: Tensor) -> Tensor:
        """x: [g, in] -> [g, out] through one head."""
        return torch.addmm(self.bias[head], x, self.weight[head])

    def forward(self, x: Tensor) -> Tensor:
        """x: [heads, g, in] -> [heads, g, out], one batched product."""
        return torch.baddbmm(self.bias, x, self.weight)


class Heads(nn.Module):
    """Per dataset: width -> 50 -> 50 -> hidden -> hidden -> 1, SiLU between."""

    def __init__(self, heads: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.count = heads
        self.sizes = (width, *hidden, 1)
        self.layers = nn.ModuleList(StackedLinear(heads, a, b) for a, b in pairwise(self.sizes))

    def only(self, heads: Sequence[int]) -> Heads:
        """These heads with their weights, as a module of its own."""
        fewer = Heads(len(heads), self.sizes[0], self.sizes[1:-1])
        fewer.load_state_dict({name: value[list(heads)] for name, value in self.state_dict().items()})
        weight = next(self.parameters())
        return fewer.to(weight.device, weight.dtype)

    def one(self, head: int, pooled: Tensor) -> Tensor:
        """pooled: [g, F] -> [g] from one head."""
        x = pooled
        for k, layer in enumerate(self.layers):
            assert isinstance(layer, StackedLinear)
            x = layer.one(head, x if k == 0 else silu(x))
        return x.squeeze(-1)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled: [g, F] -> [g, heads], all heads in one batched product a layer."""
        x = pooled.expand(self.count, *pooled.shape)
        for k, layer in enumerate(self.layers):
            x = layer(x if k == 0 else silu(x))
        return x.squeeze(-1).transpose(0, 1)
