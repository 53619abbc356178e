"""Distributions and distinct names of any number of values in constant memory; parts from many workers add up."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.storage.sampling.permutations import mixed

PER_OCTAVE = 32  # a bin is 2.2% wide: a quantile is right to 1.1%
OCTAVES = (-30, 30)
_SIDE = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
REGISTER_BITS = 12  # of the estimate of distinct names: 1.04 / 64 is its relative standard deviation
REGISTERS = 2**REGISTER_BITS


def _counts() -> NDArray[np.int64]:
    return np.zeros(2 * _SIDE + 1, dtype=np.int64)


@dataclass
class Spread:
    """Number, mean, spread, extremes and histogram of finite values of either sign.

    counts: [3841], the bins of negative values from the largest magnitude, then zero, then those of positive values;
    their edges are 2 ** (k / PER_OCTAVE), magnitudes outside of 1e-9 .. 1e9 go to the last ones. squares: sum of
    squared deviations from the mean. Sources: Masson, Rim and Lee, PVLDB 12, 2195 (2019) (bins of equal relative
    width); Chan, Golub and LeVeque, Am. Stat. 37, 242 (1983) (merging).
    """

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    counts: NDArray[np.int64] = field(default_factory=_counts)

    def add(self, values: Array) -> None:
        """Take in values of any shape; those that are not finite are passed over."""
        x = values[np.isfinite(values)]
        if not len(x):
            return
        with np.errstate(divide="ignore"):
            place = np.clip(np.floor(np.log2(np.abs(x)) * PER_OCTAVE) - OCTAVES[0] * PER_OCTAVE, 0, _SIDE - 1)
        signed = np.where(x == 0, 0, np.sign(x) * (place + 1)).astype(np.int64) + _SIDE
        counts = np.bincount(signed, minlength=2 * _SIDE + 1)
        mean = float(x.mean())
        self.merge(Spread(len(x), mean, float(((x - mean) ** 2).sum()), float(x.min()), float(x.max()), counts))

    def merge(self, other: Spread) -> None:
        """Take in what another worker has."""
        total = self.number + other.number
        if total:
            apart = other.mean - self.mean
            self.squares += other.squares + apart**2 * self.number * other.number / total
            self.mean += apart * other.number / total
        self.number, self.counts = total, self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def quantile(self, share: float) -> float:
        """The value below which a share lies, to half a bin; NaN of nothing."""
        if not self.number:
            return math.nan
        place = int(np.searchsorted(np.cumsum(self.counts), share * (self.number - 1), side="right")) - _SIDE
        size = 2.0 ** ((abs(place) - 0.5) / PER_OCTAVE + OCTAVES[0]) if place else 0.0
        return min(max(math.copysign(size, place), self.low), self.high)

    def as_json(self) -> dict[str, Any]:
        """Plain data: bins as [k, count] with edges at 2 ** (k / bins_per_octave) and the next, if not empty."""
        places = np.flatnonzero(self.counts) - _SIDE
        bins = {
            sign: [
                [abs(int(p)) - 1 + OCTAVES[0] * PER_OCTAVE, int(self.counts[p + _SIDE])]
                for p in places
                if p * direction > 0
            ]
            for sign, direction in (("negative", -1), ("positive", 1))
        }
        told: dict[str, Any] = {"number": self.number, "bins_per_octave": PER_OCTAVE, "zero": int(self.counts[_SIDE])}
        if self.number:
            root_mean_square = math.sqrt(self.squares / self.number + self.mean**2)
            told |= {"mean": self.mean, "sd": math.sqrt(self.squares / self.number), "rms": root_mean_square}
            told |= {"min": self.low, "max": self.high}
            told["quantiles"] = {str(q): self.quantile(q) for q in QUANTILES}
        return told | bins

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Spread:
        """The spread that as_json told of, up to rounding."""
        found = cls()
        if not told["number"]:
            return found
        for sign, direction in (("negative", -1), ("positive", 1)):
            for k, count in told[sign]:
                found.counts[direction * (k + 1 - OCTAVES[0] * PER_OCTAVE) + _SIDE] = count
        found.counts[_SIDE] = told["zero"]
        found.number, found.mean, found.squares = told["number"], told["mean"], told["sd"] ** 2 * told["number"]
        found.low, found.high = told["min"], told["max"]
        return found


@dataclass
class Distinct:
    """How many different names there are, roughly.

    registers: [4096]. Source: Flajolet, Fusy, Gandouet and Meunier, HyperLogLog, DMTCS Proc. AH, 127 (2007).
    """

    registers: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(REGISTERS, dtype=np.uint8))

    def add(self, names: NDArray[np.str_]) -> None:
        """Take in names, [g]; the order does not matter, nor does a repeat."""
        letters = np.ascontiguousarray(names).view(np.uint32).reshape(len(names), -1).astype(np.uint64)
        powers = np.cumprod(np.full(letters.shape[1], 0x9E3779B97F4A7C15, dtype=np.uint64))
        words = mixed((letters * powers).sum(1, dtype=np.uint64))
        rest = (words << np.uint64(REGISTER_BITS)) | np.uint64(REGISTERS // 2)
        leading = np.maximum(65 - np.frexp(rest.astype(float))[1], 1).astype(np.uint8)
        np.maximum.at(self.registers, (words >> np.uint64(64 - REGISTER_BITS)).astype(np.int64), leading)

    def merge(self, other: Distinct) -> None:
        """Take in what another worker has."""
        self.registers = np.maximum(self.registers, other.registers)

    @property
    def estimate(self) -> int:
        """The number, to 3% at two standard deviations."""
        empty = int((self.registers == 0).sum())
        raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS**2 / float((0.5 ** self.registers.astype(float)).sum())
        return round(REGISTERS * math.log(REGISTERS / empty) if empty and raw <= 2.5 * REGISTERS else raw)

    def as_text(self) -> str:
        """The registers in base64."""
        return base64.b64encode(self.registers.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> Distinct:
        """What as_text told of."""
        return cls(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
