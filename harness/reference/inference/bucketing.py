"""Pad batches to one of a few shapes, so that code compiled for one shape serves many batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.reference.data.batch import Batch

# Sizes are rounded up to one of 16 steps between powers of two: padding is at most 1/16, and 3% on average.
STEPS = 16
MAX_WASTE = 1 / 8


class Shape(NamedTuple):
    """The numbers of graphs, atoms and edges of a batch."""

    graphs: int
    atoms: int
    edges: int

    def holds(self, other: Shape) -> bool:
        """Return whether a batch of the other shape can be padded to this one."""
        return self.graphs == other.graphs and self.atoms >= other.atoms and self.edges >= other.edges


def get_shape(batch: Batch) -> Shape:
    """Return the shape of a batch."""
    return Shape(len(batch.head), len(batch.numbers), len(batch.receiver))


def round_up(size: int) -> int:
    """Round a size up to the next of STEPS values between powers of two."""
    step = max(1, (1 << max(0, size.bit_length() - 1)) // STEPS)
    return -(-size // step) * step


@dataclass
class ShapeBuckets:
    """The shapes in use, to which new ones are added on demand, and the cost of padding.

    Attributes:
        shapes: The shapes in use.
        max_waste: The largest fraction of padding among the atoms of an existing shape that serves a batch.
        batches: Number of batches to which a shape was assigned.
        used: Total numbers of atoms and edges of these batches.
        allocated: Total numbers of atoms and edges of their shapes.
    """

    shapes: list[Shape] = field(default_factory=list)
    max_waste: float = MAX_WASTE
    batches: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0])
    allocated: list[int] = field(default_factory=lambda: [0, 0])

    def assign(self, shape: Shape) -> Shape:
        """Return the smallest shape in use that holds a batch and a padding graph, or add such a shape.

        A shape with more padding atoms than `max_waste` allows is not used. The padding graph has at least one atom.

        Args:
            shape: The shape of the batch.
        """
        required = Shape(shape.graphs + 1, shape.atoms + 1, shape.edges)
        fitting = [s for s in self.shapes if s.holds(required) and s.atoms * (1 - self.max_waste) <= required.atoms]
        if fitting:
            bucket = min(fitting, key=lambda s: (s.atoms, s.edges))
        else:
            bucket = Shape(required.graphs, round_up(required.atoms), round_up(required.edges))
            self.shapes.append(bucket)
        self.batches += 1
        for k, (used, allocated) in enumerate(zip(shape[1:], bucket[1:], strict=True)):
            self.used[k] += used
            self.allocated[k] += allocated
        return bucket

    def stats(self) -> dict[str, object]:
        """Return the shapes, and the fractions of atoms and edges that are padding, as plain data."""
        atoms, edges = (1 - used / n if n else 0.0 for used, n in zip(self.used, self.allocated, strict=True))
        return {
            "shapes": [list(s) for s in self.shapes],
            "padding_atom_fraction": atoms,
            "padding_edge_fraction": edges,
        }


def pad_batch(batch: Batch, shape: Shape, cutoff: float) -> Batch:
    """Pad a batch to a shape by one more graph, whose atoms have the atomic number 0.

    The padding edges run from such an atom to its own image at twice the cutoff, where every message is zero. Pairs of
    edges are not padded.

    Args:
        batch: The batch.
        shape: The shape, which must hold the batch.
        cutoff: Cutoff of the model in angstrom.
    """
    unpadded = get_shape(batch)
    graphs, atoms, edges = (padded - used for padded, used in zip(shape, unpadded, strict=True))
    end = unpadded.atoms + torch.arange(edges, device=batch.head.device) % atoms
    shift = batch.shift.new_zeros(edges, 3)
    shift[:, 0] = 2.0 * cutoff
    composition = pad(batch.composition, (0, 0, 0, graphs))
    composition[-1, 0] = atoms
    return batch._replace(
        numbers=pad(batch.numbers, (0, atoms)),
        positions=pad(batch.positions, (0, 0, 0, atoms)),
        receiver=torch.cat([batch.receiver, end]),
        sender=torch.cat([batch.sender, end]),
        shift=torch.cat([batch.shift, shift]),
        graph=pad(batch.graph, (0, atoms), value=unpadded.graphs),
        edge_graph=pad(batch.edge_graph, (0, edges), value=unpadded.graphs),
        cell=pad(batch.cell, (0, 0, 0, 0, 0, graphs)),
        composition=composition,
        charge=pad(batch.charge, (0, graphs)),
        multiplicity=pad(batch.multiplicity, (0, graphs)),
        head=pad(batch.head, (0, graphs)),
    )


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Pad x [m, k] with zeros to [rows, k]."""
    return pad(x, (0, 0, 0, rows - x.shape[0]))
