"""The readout: one head per dataset, in layers that run for one head or for all at once, and the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.ops.own_heads import evaluate_own_heads


class StackedLinear(nn.Module):
    """One linear layer per head: weight [heads, in, out], bias [heads, 1, out]."""

    def __init__(self, n_heads: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_heads, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_heads, 1, n_out).uniform_(-bound, bound))

    def forward_one(self, head: int, x: Tensor) -> Tensor:
        """Apply the layer of one head: x [g, in] -> [g, out]."""
        return torch.addmm(self.bias[head], x, self.weight[head])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers of all heads in one batched product: x [heads, g, in] -> [heads, g, out]."""
        return torch.baddbmm(self.bias, x, self.weight)


class Heads(nn.Module):
    """A multilayer perceptron for each dataset: width -> hidden sizes -> 1, with activations between the layers."""

    def __init__(
        self, n_heads: int, width: int, hidden: Sequence[int], *, activation: Literal["relu", "silu"] = "silu"
    ) -> None:
        super().__init__()
        self.count = n_heads
        self.activation = activation
        self.sizes = (width, *hidden, 1)
        self.layers = nn.ModuleList(StackedLinear(n_heads, a, b) for a, b in pairwise(self.sizes))

    def subset(self, heads: Sequence[int]) -> Heads:
        """Return a new module with copies of the given heads."""
        subset = Heads(len(heads), self.sizes[0], self.sizes[1:-1], activation=self.activation)
        weight = next(self.parameters())
        subset.to(weight.device, weight.dtype)  # before the values are loaded, so that they are not rounded
        subset.load_state_dict({name: value[list(heads)] for name, value in self.state_dict().items()})
        return subset

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, [heads, width, 1]."""
        layer = self.layers[-1]
        assert isinstance(layer, StackedLinear)
        return layer.weight

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation function that the configuration names: ReLU or SiLU."""
        return relu(x) if self.activation == "relu" else silu(x)

    def forward_one(self, head: int, pooled: Tensor) -> Tensor:
        """Evaluate one head: pooled [g, F] -> [g]."""
        x = pooled
        for k, layer in enumerate(self.layers):
            assert isinstance(layer, StackedLinear)
            x = layer.forward_one(head, x if k == 0 else self.activate(x))
        return x.squeeze(-1)

    def forward_own(self, head: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate one head for each structure, head [g]: pooled [g, F] -> [g], and its gradient [g, F]."""
        parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        return evaluate_own_heads(pooled, head, parameters, self.activation)

    def hidden(self, pooled: Tensor) -> Tensor:
        """Return the inputs of the last layer of all heads: pooled [g, F] -> [heads, g, width]."""
        x = pooled.expand(self.count, *pooled.shape)
        for k, layer in enumerate(self.layers[:-1]):
            x = layer(x if k == 0 else self.activate(x))
        return x if len(self.layers) == 1 else self.activate(x)

    def forward(self, pooled: Tensor) -> Tensor:
        """Evaluate all heads in one batched product per layer: pooled [g, F] -> [g, heads]."""
        energies: Tensor = self.layers[-1](self.hidden(pooled))
        return energies.squeeze(-1).transpose(0, 1)


class Gate(nn.Module):
    """The network that weights the heads by composition: 118 fractions -> 128 -> 64 -> heads, ReLU, then softmax.

    With `counts`, as in HydraGNN, its input is the number of atoms of each element instead of the fractions.
    """

    def __init__(self, n_heads: int, *, counts: bool = False) -> None:
        super().__init__()
        self.counts = counts
        self.hidden = nn.Sequential(nn.Linear(MAX_ATOMIC_NUMBER, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.last = nn.Linear(64, n_heads)

    def logits(self, composition: Tensor) -> Tensor:
        """Return the logits [g, heads] for a composition [g, 119], atoms of each element (element 0 does not count)."""
        counts = composition[:, 1:]
        logits: Tensor = self.last(self.hidden(counts if self.counts else counts / counts.sum(1, keepdim=True)))
        return logits

    def forward(self, composition: Tensor) -> Tensor:
        """Return weights [g, heads] whose rows sum to 1, for a composition [g, 119]."""
        return torch.softmax(self.logits(composition), dim=-1)

    def masked_weights(self, composition: Tensor, known: Tensor) -> Tensor:
        """Return weights [g, heads] that are 0 where known [g, heads] is False; a row with no True is NaN."""
        return torch.softmax(self.logits(composition).masked_fill(~known, -torch.inf), dim=-1)
