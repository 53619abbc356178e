"""Equivariant couplings of spherical harmonics, as tables that are computed once when a model is built.

A feature of degree l has 2l + 1 components and the parity (-1)^l; degrees 0..L are concatenated, (L + 1)^2 in all.
"""

from __future__ import annotations

import functools
import math
from itertools import combinations_with_replacement, groupby

import torch
from e3nn import o3
from torch import Tensor


def list_paths(l_in: int, l_edge: int, l_out: int) -> list[tuple[int, int]]:
    """Return the pairs of degrees (l1 <= l_in, l2 <= l_edge) whose product contains l_out with parity (-1)^l_out."""
    return [
        (l1, l2)
        for l1 in range(l_in + 1)
        for l2 in range(l_edge + 1)
        if abs(l1 - l2) <= l_out <= l1 + l2 and (l1 + l2 + l_out) % 2 == 0
    ]


def compute_edge_couplings(l_in: int, l_edge: int) -> Tensor:
    """Return sqrt(2 l3 + 1) times Wigner's 3j symbols for every path to every degree l3 <= l_edge.

    Returns:
        [(l_edge + 1)^2, rows, (l_in + 1)^2]; rows are ordered by l3, then by component, then by path.
    """
    blocks = []
    for l3 in range(l_edge + 1):
        pairs = list_paths(l_in, l_edge, l3)
        block = torch.zeros((l_edge + 1) ** 2, 2 * l3 + 1, len(pairs), (l_in + 1) ** 2, dtype=torch.float64)
        for p, (l1, l2) in enumerate(pairs):
            symbol = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
            block[l2**2 : (l2 + 1) ** 2, :, p, l1**2 : (l1 + 1) ** 2] = symbol.permute(1, 2, 0)
        blocks.append(math.sqrt(2 * l3 + 1) * block.flatten(1, 2))
    return torch.cat(blocks, dim=1)


def list_monomials(variables: int, order: int) -> list[tuple[int, ...]]:
    """Return the monomials of an order as sorted tuples of the indices of their variables, in lexical order."""
    return list(combinations_with_replacement(range(variables), order))


def factor_monomials(variables: int, order: int) -> tuple[Tensor, Tensor]:
    """Factor each monomial of an order into a variable and a monomial of one order less; return both indices."""
    lower = {m: i for i, m in enumerate(list_monomials(variables, order - 1))}
    products = list_monomials(variables, order)
    return torch.tensor([m[0] for m in products]), torch.tensor([lower[m[1:]] for m in products])


@functools.cache
def compute_symmetric_couplings(max_ell: int, order: int, l_out: int) -> tuple[Tensor, ...]:
    """Return all polynomials of an order in one feature of degrees 0..max_ell that transform as degree 0, 1, .. l_out.

    These are MACE's generalised Clebsch-Gordan coefficients (eq. 10) without the repetitions that the symmetry of the
    product causes. For independent normal variables, the part of a polynomial that no lower order contains has unit
    variance in every component.

    Returns:
        For each degree l a tensor [k, 2l + 1, monomials] of k independent polynomials.
    """
    components = torch.eye((max_ell + 1) ** 2, dtype=torch.float64)
    polynomials = {(d, (-1) ** d): components[d**2 : (d + 1) ** 2].unsqueeze(0) for d in range(max_ell + 1)}
    for n in range(2, order + 1):
        polynomials = _multiply_by_variables(polynomials, max_ell, n, l_out + (order - n) * max_ell)
    count = math.comb(len(components) + order - 1, order)
    empty = [components.new_zeros(0, 2 * d + 1, count) for d in range(l_out + 1)]
    return tuple(polynomials.get((d, (-1) ** d), empty[d]) for d in range(l_out + 1))


def _multiply_by_variables(
    lower: dict[tuple[int, int], Tensor], max_ell: int, order: int, max_degree: int
) -> dict[tuple[int, int], Tensor]:
    """Multiply polynomials of order - 1 by the variables, and keep products of degree up to max_degree.

    Both mappings have (degree, parity) as keys and tensors [k, 2 degree + 1, monomials] as values.
    """
    d = (max_ell + 1) ** 2
    index = {m: i for i, m in enumerate(list_monomials(d, order))}
    product = torch.tensor([[index[tuple(sorted((*m, v)))] for v in range(d)] for m in list_monomials(d, order - 1)])
    repeats = [[len(list(same)) for _, same in groupby(m)] for m in index]
    metric = torch.tensor([math.prod(math.factorial(k) for k in r) for r in repeats], dtype=torch.float64)
    candidates: dict[tuple[int, int], list[Tensor]] = {}
    for (l1, parity), polynomials in lower.items():
        for l2 in range(max_ell + 1):
            target = product[:, l2**2 : (l2 + 1) ** 2].flatten()
            for l3 in range(abs(l1 - l2), min(l1 + l2, max_degree) + 1):
                symbol = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                terms = torch.einsum("kam,abc->kcmb", polynomials, symbol).flatten(2)
                raised = terms.new_zeros(*terms.shape[:2], len(index)).index_add(2, target, terms)
                candidates.setdefault((l3, parity * (-1) ** l2), []).append(raised)
    independent = {key: _orthonormalize(torch.cat(tensors), metric) for key, tensors in candidates.items()}
    return {key: tensor for key, tensor in independent.items() if len(tensor)}


def _orthonormalize(candidates: Tensor, metric: Tensor) -> Tensor:
    """Apply Gram-Schmidt in the given order.

    The result is the same on all machines, unlike that of a QR decomposition, so weights can be exchanged.
    """
    basis = candidates[:0]
    for candidate in candidates:
        residual, size = candidate, candidate.shape[0]
        for _ in range(2):  # the second pass removes rounding errors of the first
            overlap = torch.einsum("kcm,cm,m->k", basis, residual, metric) / size
            residual = residual - torch.einsum("k,kcm->cm", overlap, basis)
        norm = (residual * residual * metric).sum().sqrt()
        if norm > 1e-8:
            basis = torch.cat([basis, (residual * (math.sqrt(size) / norm)).unsqueeze(0)])
    return basis
