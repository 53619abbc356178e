"""Cells that are deformed by the exponential of a matrix, and the forces on this matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from harness.reference.data.structure import Array


@dataclass(frozen=True)
class Placement:
    """Atoms and cells of g structures after a deformation.

    Attributes:
        positions: [n, 3] angstrom.
        cell: [g, 3, 3] angstrom, rows are lattice vectors.
        deformation: [g, 3, 3] deformation gradients, which act on columns.
        logarithm: [g, 3, 3] their matrix logarithms.
    """

    positions: Array
    cell: Array
    deformation: Array
    logarithm: Array


def place(positions: Array, graph: NDArray[np.int64], cell: Array, logarithm: Array) -> Placement:
    """Deform positions [n, 3] of structures `graph` [n], and cells [g, 3, 3], by the exponential of `logarithm`."""
    deformation = exponentiate(logarithm)
    moved = np.einsum("nk,njk->nj", positions, deformation[graph])
    return Placement(moved, cell @ deformation.transpose(0, 2, 1), deformation, logarithm)


def exponentiate(matrices: Array) -> Array:
    """Return the matrix exponentials [g, k, k]."""
    result: Array = torch.linalg.matrix_exp(torch.from_numpy(matrices)).numpy()
    return result


def pull_back_virial(virial: Array, placement: Placement) -> Array:
    """Return the forces [g, 3, 3] on the logarithm U of the deformation gradient, for the virial -dE/dstrain.

    The derivative of exp at U, transposed, applied to G is the upper right block of exp([[U^T, G], [0, U^T]]) (Higham,
    Functions of Matrices (2008), eq. 3.16).
    """
    blocks = np.zeros((len(virial), 6, 6))
    blocks[:, :3, :3] = blocks[:, 3:, 3:] = placement.logarithm.transpose(0, 2, 1)
    blocks[:, :3, 3:] = virial @ np.linalg.inv(placement.deformation).transpose(0, 2, 1)
    return exponentiate(blocks)[:, :3, 3:]
