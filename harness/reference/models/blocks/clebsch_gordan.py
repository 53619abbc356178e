"""What rotations allow: couplings of spherical harmonics as tables of numbers, made once when a model is made.

A feature of degree l has 2l + 1 components and the parity (-1)^l; degrees 0..L lie side by side, (L + 1)^2 in all.
"""

from __future__ import annotations

import functools
import math
from itertools import combinations_with_replacement, groupby

import torch
from e3nn import o3
from torch import Tensor


def paths(l_in: int, l_edge: int, l_out: int) -> list[tuple[int, int]]:
    """Degrees (l1 <= l_in, l2 <= l_edge) whose product holds l_out with the parity (-1)^l_out."""
    return [
        (l1, l2)
        for l1 in range(l_in + 1)
        for l2 in range(l_edge + 1)
        if abs(l1 - l2) <= l_out <= l1 + l2 and (l1 + l2 + l_out) % 2 == 0
    ]


def edge_couplings(l_in: int, l_edge: int) -> Tensor:
    """sqrt(2 l3 + 1) times Wigner's 3j symbols for every path to every degree l3 <= l_edge.

    [(l_edge + 1)^2, rows, (l_in + 1)^2]; rows are ordered by l3, then its component, then its path.
    """
    blocks = []
    for l3 in range(l_edge + 1):
        found = paths(l_in, l_edge, l3)
        block = torch.zeros((l_edge + 1) ** 2, 2 * l3 + 1, len(found), (l_in + 1) ** 2, dtype=torch.float64)
        for p, (l1, l2) in enumerate(found):
            symbol = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
            block[l2**2 : (l2 + 1) ** 2, :, p, l1**2 : (l1 + 1) ** 2] = symbol.permute(1, 2, 0)
        blocks.append(math.sqrt(2 * l3 + 1) * block.flatten(1, 2))
    return torch.cat(blocks, dim=1)


def monomials(variables: int, order: int) -> list[tuple[int, ...]]:
    """Products of variables as sorted tuples of their indices, in lexical order."""
    return list(combinations_with_replacement(range(variables), order))


def factors(variables: int, order: int) -> tuple[Tensor, Tensor]:
    """Each monomial of an order as one variable times a monomial of one order less: the indices of both."""
    lower = {m: i for i, m in enumerate(monomials(variables, order - 1))}
    made = monomials(variables, order)
    return torch.tensor([m[0] for m in made]), torch.tensor([lower[m[1:]] for m in made])


@functools.cache
def symmetric_couplings(max_ell: int, order: int, l_out: int) -> tuple[Tensor, ...]:
    """All polynomials of an order in one feature of degrees 0..max_ell that are features of degree 0, 1, .. l_out.

    One [k, 2l + 1, monomials] a degree, k of them independent: MACE's generalised Clebsch-Gordan coefficients (eq. 10)
    without the repetitions that the symmetry of the product brings. Where the variables are independent normal numbers,
    the part that is of no lower order has unit variance in every component.
    """
    components = torch.eye((max_ell + 1) ** 2, dtype=torch.float64)
    found = {(d, (-1) ** d): components[d**2 : (d + 1) ** 2].unsqueeze(0) for d in range(max_ell + 1)}
    for n in range(2, order + 1):
        found = _times_variables(found, max_ell, n, l_out + (order - n) * max_ell)
    count = math.comb(len(components) + order - 1, order)
    none = [components.new_zeros(0, 2 * d + 1, count) for d in range(l_out + 1)]
    return tuple(found.get((d, (-1) ** d), none[d]) for d in range(l_out + 1))


def _times_variables(
    lower: dict[tuple[int, int], Tensor], max_ell: int, order: int, highest: int
) -> dict[tuple[int, int], Tensor]:
    """(degree, parity) -> polynomials of one order less, to the same of this order, degrees up to the highest."""
    d = (max_ell + 1) ** 2
    index = {m: i for i, m in enumerate(monomials(d, order))}
    product = torch.tensor([[index[tuple(sorted((*m, v)))] for v in range(d)] for m in monomials(d, order - 1)])
    repeats = [[len(list(same)) for _, same in groupby(m)] for m in index]
    metric = torch.tensor([math.prod(math.factorial(k) for k in r) for r in repeats], dtype=torch.float64)
    candidates: dict[tuple[int, int], list[Tensor]] = {}
    for (l1, parity), polynomials in lower.items():
        for l2 in range(max_ell + 1):
            into = product[:, l2**2 : (l2 + 1) ** 2].flatten()
            for l3 in range(abs(l1 - l2), min(l1 + l2, highest) + 1):
                symbol = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                terms = torch.einsum("kam,abc->kcmb", polynomials, symbol).flatten(2)
                made = terms.new_zeros(*terms.shape[:2], len(index)).index_add(2, into, terms)
                candidates.setdefault((l3, parity * (-1) ** l2), []).append(made)
    independent = {key: _independent(torch.cat(made), metric) for key, made in candidates.items()}
    return {key: made for key, made in independent.items() if len(made)}


def _independent(candidates: Tensor, metric: Tensor) -> Tensor:
    """Gram and Schmidt in the order given, so that weights mean the same on every machine (a general QR may not)."""
    kept = candidates[:0]
    for candidate in candidates:
        rest, size = candidate, candidate.shape[0]
        for _ in range(2):  # once more, against rounding
            overlap = torch.einsum("kcm,cm,m->k", kept, rest, metric) / size
            rest = rest - torch.einsum("k,kcm->cm", overlap, kept)
        norm = (rest * rest * metric).sum().sqrt()
        if norm > 1e-8:
            kept = torch.cat([kept, (rest * (math.sqrt(size) / norm)).unsqueeze(0)])
    return kept
