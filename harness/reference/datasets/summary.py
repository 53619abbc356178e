"""Statistics of a dataset, collected block by block in constant memory by any number of workers."""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.reference_energies import ELEMENT_SLOTS, References, count_elements
from harness.reference.storage.sampling.permutations import splitmix64

PER_OCTAVE = 32  # number of bins per factor of two: a bin is 2.2% wide, so a quantile is accurate to 1.1%
OCTAVES = (-30, 30)
BINS_PER_SIGN = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
REGISTER_BITS = 12  # the relative standard deviation of the number of distinct names is 1.04 / sqrt(2**12) = 1.6%
REGISTERS = 2**REGISTER_BITS


def _make_bins() -> NDArray[np.int64]:
    return np.zeros(2 * BINS_PER_SIGN + 1, dtype=np.int64)


@dataclass
class Histogram:
    """Number, mean, spread, extremes and histogram of finite values of either sign.

    Sources: Masson, Rim and Lee, PVLDB 12, 2195 (2019) (bins of equal relative width); Chan, Golub and LeVeque, Am.
    Stat. 37, 242 (1983) (merging).

    Attributes:
        number: Number of values.
        mean: Mean value.
        squares: Sum of squared deviations from the mean.
        low: The smallest value.
        high: The largest value.
        counts: [3841] numbers of values in the bins: those of negative values, from the largest magnitude on, then
            zero, then those of positive values. Bin edges are 2 ** (k / PER_OCTAVE); magnitudes outside of 1e-9 .. 1e9
            are counted in the outermost bins.
    """

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    counts: NDArray[np.int64] = field(default_factory=_make_bins)

    def add(self, values: Array) -> None:
        """Add values of any shape; non-finite values are ignored."""
        x = values[np.isfinite(values)]
        if not len(x):
            return
        with np.errstate(divide="ignore"):
            bin_index = np.clip(
                np.floor(np.log2(np.abs(x)) * PER_OCTAVE) - OCTAVES[0] * PER_OCTAVE, 0, BINS_PER_SIGN - 1
            )
        signed = np.where(x == 0, 0, np.sign(x) * (bin_index + 1)).astype(np.int64) + BINS_PER_SIGN
        counts = np.bincount(signed, minlength=2 * BINS_PER_SIGN + 1)
        mean = float(x.mean())
        self.merge(
            Histogram(
                len(x), mean, float(((x - mean) ** 2).sum()), low=float(x.min()), high=float(x.max()), counts=counts
            )
        )

    def merge(self, other: Histogram) -> None:
        """Add the values of another worker."""
        total = self.number + other.number
        if total:
            difference = other.mean - self.mean
            self.squares += other.squares + difference**2 * self.number * other.number / total
            self.mean += difference * other.number / total
        self.number, self.counts = total, self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def quantile(self, share: float) -> float:
        """Return the quantile of a share between 0 and 1, accurate to half a bin; NaN if there are no values."""
        if not self.number:
            return math.nan
        bin_index = (
            int(np.searchsorted(np.cumsum(self.counts), share * (self.number - 1), side="right")) - BINS_PER_SIGN
        )
        size = 2.0 ** ((abs(bin_index) - 0.5) / PER_OCTAVE + OCTAVES[0]) if bin_index else 0.0
        return min(max(math.copysign(size, bin_index), self.low), self.high)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: non-empty bins as [k, count], bin k from 2 ** (k / bins_per_octave) to the next edge."""
        used_bins = np.flatnonzero(self.counts) - BINS_PER_SIGN
        bins = {
            sign: [
                [abs(int(k)) - 1 + OCTAVES[0] * PER_OCTAVE, int(self.counts[k + BINS_PER_SIGN])]
                for k in used_bins
                if k * direction > 0
            ]
            for sign, direction in (("negative", -1), ("positive", 1))
        }
        plain: dict[str, Any] = {
            "number": self.number,
            "bins_per_octave": PER_OCTAVE,
            "zero": int(self.counts[BINS_PER_SIGN]),
        }
        if self.number:
            root_mean_square = math.sqrt(self.squares / self.number + self.mean**2)
            plain |= {"mean": self.mean, "sd": math.sqrt(self.squares / self.number), "rms": root_mean_square}
            plain |= {"min": self.low, "max": self.high}
            plain["quantiles"] = {str(q): self.quantile(q) for q in QUANTILES}
        return plain | bins

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Histogram:
        """Return the histogram that to_json wrote, up to rounding."""
        result = cls()
        if not plain["number"]:
            return result
        for sign, direction in (("negative", -1), ("positive", 1)):
            for k, count in plain[sign]:
                result.counts[direction * (k + 1 - OCTAVES[0] * PER_OCTAVE) + BINS_PER_SIGN] = count
        result.counts[BINS_PER_SIGN] = plain["zero"]
        result.number, result.mean, result.squares = plain["number"], plain["mean"], plain["sd"] ** 2 * plain["number"]
        result.low, result.high = plain["min"], plain["max"]
        return result


@dataclass
class DistinctCounter:
    """An estimator of the number of distinct names, HyperLogLog.

    Source: Flajolet, Fusy, Gandouet and Meunier, DMTCS Proc. AH, 127 (2007).

    Attributes:
        registers: [4096] largest number of leading zeros of the hashes in each register.
    """

    registers: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(REGISTERS, dtype=np.uint8))

    def add(self, names: NDArray[np.str_]) -> None:
        """Add names, [g]; neither the order nor repetitions matter."""
        letters = np.ascontiguousarray(names).view(np.uint32).reshape(len(names), -1).astype(np.uint64)
        powers = np.cumprod(np.full(letters.shape[1], 0x9E3779B97F4A7C15, dtype=np.uint64))
        hashes = splitmix64((letters * powers).sum(1, dtype=np.uint64))
        rest = (hashes << np.uint64(REGISTER_BITS)) | np.uint64(REGISTERS // 2)
        leading = np.maximum(65 - np.frexp(rest.astype(float))[1], 1).astype(np.uint8)
        np.maximum.at(self.registers, (hashes >> np.uint64(64 - REGISTER_BITS)).astype(np.int64), leading)

    def merge(self, other: DistinctCounter) -> None:
        """Add the values of another worker."""
        self.registers = np.maximum(self.registers, other.registers)

    @property
    def estimate(self) -> int:
        """The estimated number of distinct names; two standard deviations are 3%."""
        empty = int((self.registers == 0).sum())
        raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS**2 / float((0.5 ** self.registers.astype(float)).sum())
        return round(REGISTERS * math.log(REGISTERS / empty) if empty and raw <= 2.5 * REGISTERS else raw)

    def to_text(self) -> str:
        """Return the registers in base64."""
        return base64.b64encode(self.registers.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> DistinctCounter:
        """Return the counter that to_text wrote."""
        return cls(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())


def _make_element_counts() -> NDArray[np.int64]:
    return np.zeros(ELEMENT_SLOTS, dtype=np.int64)


@dataclass
class Statistics:
    """Counts and distributions over structures, atoms and labels, in eV and angstrom.

    Attributes:
        atoms_of: [119] number of atoms of each element.
        structures_with: [119] number of structures with each element.
        sizes: The numbers of atoms of structures.
        energy: Energies per atom minus the reference energies.
        forces: The norms of forces on atoms.
        stress: The components of stresses.
        groups: The names of groups.
        charges: Number of structures of each charge.
        multiplicities: Number of structures of each multiplicity.
        periodic: [4] number of structures with 0, 1, 2, 3 periodic directions.
        edges: Number of edges.
        edge_atoms: Number of atoms whose neighbours are listed.
    """

    atoms_of: NDArray[np.int64] = field(default_factory=_make_element_counts)
    structures_with: NDArray[np.int64] = field(default_factory=_make_element_counts)
    sizes: Histogram = field(default_factory=Histogram)
    energy: Histogram = field(default_factory=Histogram)
    forces: Histogram = field(default_factory=Histogram)
    stress: Histogram = field(default_factory=Histogram)
    groups: DistinctCounter = field(default_factory=DistinctCounter)
    charges: Counter[int] = field(default_factory=Counter)
    multiplicities: Counter[int] = field(default_factory=Counter)
    periodic: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, dtype=np.int64))
    edges: int = 0
    edge_atoms: int = 0

    def add(self, table: StructureTable, references: References | None = None) -> None:
        """Add a table; its energies are added only if the reference energies are given."""
        if not len(table):
            return
        composition = count_elements(table)
        self.atoms_of += composition.sum(0)
        self.structures_with += (composition > 0).sum(0)
        self.sizes.add(table.sizes.astype(float))
        if references is not None:
            self.energy.add(references.residual(table))
        if table.forces is not None:
            self.forces.add(np.linalg.norm(table.forces, axis=1))
        if table.stress is not None:
            self.stress.add(table.stress)
        self.groups.add(table.groups)
        self.charges.update(table.charge.tolist())
        self.multiplicities.update(table.multiplicity.tolist())
        self.periodic += np.bincount(table.periodic.sum(1), minlength=4)
        if table.edge_counts is not None:
            self.edges += int(table.edge_counts.sum())
            self.edge_atoms += int(table.sizes.sum())

    def merge(self, other: Statistics) -> None:
        """Add the values of another worker."""
        for histogram, addition in zip(self._list_histograms(), other._list_histograms(), strict=True):
            histogram.merge(addition)
        self.groups.merge(other.groups)
        self.atoms_of += other.atoms_of
        self.structures_with += other.structures_with
        self.charges.update(other.charges)
        self.multiplicities.update(other.multiplicities)
        self.periodic += other.periodic
        self.edges += other.edges
        self.edge_atoms += other.edge_atoms

    def _list_histograms(self) -> tuple[Histogram, ...]:
        return self.sizes, self.energy, self.forces, self.stress

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the attributes of a store, which `from_json` reads."""
        return {
            "structures": self.sizes.number,
            "atoms": int(self.atoms_of.sum()),
            "groups_estimate": self.groups.estimate,
            "groups_registers": self.groups.to_text(),
            "elements": {
                chemical_symbols[z]: {"structures": int(self.structures_with[z]), "atoms": int(self.atoms_of[z])}
                for z in np.flatnonzero(self.atoms_of)
            },
            "sizes": self.sizes.to_json(),
            "energy_ev_per_atom": self.energy.to_json(),
            "force_norm_ev_per_a": self.forces.to_json(),
            "stress_ev_per_a3": self.stress.to_json(),
            "charges": {str(k): n for k, n in sorted(self.charges.items())},
            "multiplicities": {str(k): n for k, n in sorted(self.multiplicities.items())},
            "periodic": self.periodic.tolist(),
            "edges": self.edges,
            "edge_atoms": self.edge_atoms,
            "neighbours_mean": self.edges / self.edge_atoms if self.edge_atoms else None,
        }


def from_json(plain: dict[str, Any]) -> Statistics:
    """Return the statistics that to_json wrote."""
    result = Statistics(
        sizes=Histogram.from_json(plain["sizes"]),
        energy=Histogram.from_json(plain["energy_ev_per_atom"]),
        forces=Histogram.from_json(plain["force_norm_ev_per_a"]),
        stress=Histogram.from_json(plain["stress_ev_per_a3"]),
        groups=DistinctCounter.from_text(plain["groups_registers"]),
        charges=Counter({int(k): n for k, n in plain["charges"].items()}),
        multiplicities=Counter({int(k): n for k, n in plain["multiplicities"].items()}),
        periodic=np.array(plain["periodic"]),
        edges=plain["edges"],
        edge_atoms=plain["edge_atoms"],
    )
    for symbol, counts in plain["elements"].items():
        z = chemical_symbols.index(symbol)
        result.structures_with[z], result.atoms_of[z] = counts["structures"], counts["atoms"]
    return result
