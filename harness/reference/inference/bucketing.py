"""Batches filled up to one of a few shapes, so that code made for a shape serves many batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.reference.data.batch import Batch

# Sizes are rounded up to so many steps between a power of two and the next: at most 1/16 is filled up, 3% on average.
STEPS = 16
# A shape that is there already serves a batch that leaves at most this share of its atoms empty.
SLACK = 1 / 8


class Shape(NamedTuple):
    """How many graphs, atoms and edges a batch has."""

    graphs: int
    atoms: int
    edges: int

    def holds(self, other: Shape) -> bool:
        """Whether the other fits, filled up."""
        return self.graphs == other.graphs and self.atoms >= other.atoms and self.edges >= other.edges


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch."""
    return Shape(len(batch.head), len(batch.numbers), len(batch.receiver))


def rounded(size: int) -> int:
    """The next size up of STEPS between powers of two."""
    step = max(1, (1 << max(0, size.bit_length() - 1)) // STEPS)
    return -(-size // step) * step


@dataclass
class Buckets:
    """The shapes that there are, new ones as they are needed, and what they cost.

    filled, offered: atoms and edges of batches, and of the shapes that took them.
    """

    shapes: list[Shape] = field(default_factory=list)
    batches: int = 0
    filled: list[int] = field(default_factory=lambda: [0, 0])
    offered: list[int] = field(default_factory=lambda: [0, 0])

    def fit(self, own: Shape) -> Shape:
        """The smallest shape that holds one more graph, of an atom or more, and wastes little; a new one if need be."""
        least = Shape(own.graphs + 1, own.atoms + 1, own.edges)
        fitting = [s for s in self.shapes if s.holds(least) and s.atoms * (1 - SLACK) <= least.atoms]
        if fitting:
            found = min(fitting, key=lambda s: (s.atoms, s.edges))
        else:
            found = Shape(least.graphs, rounded(least.atoms), rounded(least.edges))
            self.shapes.append(found)
        self.batches += 1
        for k, (used, there) in enumerate(zip(own[1:], found[1:], strict=True)):
            self.filled[k] += used
            self.offered[k] += there
        return found

    def about(self) -> dict[str, object]:
        """Shapes, and the shares of atoms and edges that were there for nothing."""
        atoms, edges = (1 - f / o if o else 0.0 for f, o in zip(self.filled, self.offered, strict=True))
        return {"shapes": [list(s) for s in self.shapes], "empty_atoms": atoms, "empty_edges": edges}


def padded(batch: Batch, shape: Shape, cutoff: float) -> Batch:
    """The batch with one more graph, whose atoms (element 0) and edges fill it up to the shape.

    These edges run from an atom to its own image at twice the cutoff, where every message is zero. Pairs of edges
    are not filled up.
    """
    own = shape_of(batch)
    graphs, atoms, edges = (there - used for there, used in zip(shape, own, strict=True))
    end = own.atoms + torch.arange(edges, device=batch.head.device) % atoms
    far = batch.shift.new_zeros(edges, 3)
    far[:, 0] = 2.0 * cutoff
    composition = pad(batch.composition, (0, 0, 0, graphs))
    composition[-1, 0] = atoms
    return batch._replace(
        numbers=pad(batch.numbers, (0, atoms)),
        positions=pad(batch.positions, (0, 0, 0, atoms)),
        receiver=torch.cat([batch.receiver, end]),
        sender=torch.cat([batch.sender, end]),
        shift=torch.cat([batch.shift, far]),
        graph=pad(batch.graph, (0, atoms), value=own.graphs),
        edge_graph=pad(batch.edge_graph, (0, edges), value=own.graphs),
        cell=pad(batch.cell, (0, 0, 0, 0, 0, graphs)),
        composition=composition,
        charge=pad(batch.charge, (0, graphs)),
        multiplicity=pad(batch.multiplicity, (0, graphs)),
        head=pad(batch.head, (0, graphs)),
    )


def padded_rows(x: Tensor, rows: int) -> Tensor:
    """x [m, k] with rows of zeros up to so many."""
    return pad(x, (0, 0, 0, rows - x.shape[0]))
