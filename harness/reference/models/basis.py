"""Functions of distances and angles that backbones use, and a buffer whose constants no conversion rounds."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.reference.models.autocast import set_autocast

# Chebyshev series are valid for |x| <= SERIES_LIMIT; above 1, asin(x / SERIES_LIMIT) has a finite slope at the cutoff.
SERIES_LIMIT = 1.1


class ExactBuffer(nn.Module):
    """Constants in double precision, whatever types the module has been converted to.

    A floating-point buffer that was converted to single precision stays rounded when it is converted back to double;
    the bits of doubles, stored as integers, are never converted.
    """

    bits: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("bits", values.double().contiguous().view(torch.int64), persistent=False)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the constants in the given type, in the shape in which they were passed."""
        return self.bits.view(torch.float64).to(dtype)


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """Return (cos(pi r / r_cut) + 1) / 2, and 0 from the cutoff on: value and slope vanish there.

    Source: Behler, J. Chem. Phys. 134, 074106 (2011).

    Args:
        r: Distances of any shape, in the unit of cutoff.
        cutoff: r_cut.
    """
    envelope = 0.5 * (torch.cos(r * (math.pi / cutoff)) + 1.0)
    return torch.where(r < cutoff, envelope, torch.zeros_like(envelope))


def polynomial_cutoff(x: Tensor, p: int) -> Tensor:
    """Return 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), and 0 from x = 1 on.

    The first two derivatives vanish at x = 1. The polynomial is computed as (1 - x)^3 sum_(k<p) (k+1)(k+2)/2 x^k, an
    equal expression without differences of large numbers. Source: the envelope of DimeNet (arXiv 2003.03123).

    Args:
        x: Distances divided by the cutoff, of any shape.
        p: The exponent.
    """
    total = torch.full_like(x, 0.5 * p * (p + 1))
    for k in reversed(range(p - 1)):
        total = total * x + 0.5 * (k + 1) * (k + 2)
    return torch.where(x < 1.0, (1.0 - x) ** 3 * total, torch.zeros_like(x))


def tricube(cube: Tensor) -> Tensor:
    """Return (1 - x^3)^3, and 0 from x = 1 on; two derivatives are continuous.

    Source: Cleveland, J. Am. Stat. Assoc. 74, 829 (1979).

    Args:
        cube: x^3 of any shape.
    """
    rest = (1.0 - cube).clamp(min=0.0)
    return rest * rest * rest


def legendre(x: Tensor, count: int) -> Tensor:
    """Return the Legendre polynomials P_0(x), ..., P_(count-1)(x): x [t, 1] -> [t, count]."""
    values = [torch.ones_like(x), x]
    for k in range(2, count):
        values.append(((2 * k - 1) / k) * x * values[-1] - ((k - 1) / k) * values[-2])
    return torch.cat(values[:count], dim=-1)


@lru_cache
def bessel_zeros(orders: int, count: int) -> NDArray[np.float64]:
    """Return the first zeros of the spherical Bessel functions j_0, j_1, ..., [orders, count].

    The zeros of one order lie between the zeros of the previous order.
    """
    # imported here, as the import of scipy.optimize hides warnings of numpy
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import spherical_jn  # type: ignore[import-untyped]

    zeros = [k * math.pi for k in range(1, orders + count)]
    rows = [zeros[:count]]
    for order in range(1, orders):
        zeros = [
            brentq(lambda t, order=order: spherical_jn(order, t), *bracket, xtol=1e-15) for bracket in pairwise(zeros)
        ]
        rows.append(zeros[:count])
    return np.array(rows)


@lru_cache
def bessel_series(orders: int, count: int) -> NDArray[np.float64]:
    """Return sqrt(2) j_l(z_ln x) / |j_(l+1)(z_ln)| as Chebyshev series, exact to rounding, [terms, orders * count].

    The variable of the series is x / SERIES_LIMIT = sin phi; then T_k is cos(k phi) for even k and sin(k phi) for odd
    k, up to signs that the rows include.
    """
    from scipy.special import spherical_jn

    zeros = bessel_zeros(orders, count)
    order = np.arange(orders)[:, None]
    norm = math.sqrt(2.0) / np.abs(spherical_jn(order + 1, zeros))
    highest = SERIES_LIMIT * float(zeros.max())
    terms = math.ceil(highest + 10.0 * highest ** (1 / 3)) + 1
    angles = np.pi * (np.arange(terms) + 0.5) / terms
    x = SERIES_LIMIT * np.cos(angles)[:, None, None]
    values = norm * spherical_jn(order, zeros * np.abs(x)) * np.where(x < 0, (-1.0) ** order, 1.0)
    k = np.arange(terms)
    scale = np.where(k % 4 < 2, 2.0, -2.0) / terms / np.where(k == 0, 2.0, 1.0)
    return scale[:, None] * (np.cos(np.outer(k, angles)) @ values.reshape(terms, -1))


class SphericalBessel(nn.Module):
    """Orthonormal j_l(z_ln x) sqrt((2l + 1) / 4 pi), l < L and n <= N, exact to rounding in any type for x >= 0."""

    orders: Tensor

    def __init__(self, orders: int, count: int) -> None:
        super().__init__()
        harmonic = np.sqrt((2 * np.arange(orders) + 1) / (4 * math.pi)).repeat(count)
        series = bessel_series(orders, count) * harmonic
        self.series = ExactBuffer(torch.from_numpy(np.concatenate([series[0::2], series[1::2]])))
        self.register_buffer("orders", torch.arange(float(len(series))), persistent=False)

    def forward(self, x: Tensor, envelope: Tensor) -> Tensor:
        """Return the functions times the envelope, [e, L * N].

        Args:
            x: [e, 1] distances divided by the cutoff.
            envelope: [e, 1], 0 from x = 1 on.
        """
        phi = torch.asin(x.clamp(max=1.0) / SERIES_LIMIT)
        waves = torch.cat([torch.cos(phi * self.orders[0::2]), torch.sin(phi * self.orders[1::2])], dim=-1)
        with set_autocast(x.device.type, None):
            return (waves * envelope) @ self.series(x.dtype)
