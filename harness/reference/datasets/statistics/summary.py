"""What a dataset holds, in numbers: gathered block by block in constant memory, by any number of workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure_table import Frames
from harness.reference.datasets.statistics.reference_energies import ELEMENTS, References, compositions
from harness.reference.datasets.statistics.sketches import Distinct, Spread


def _per_element() -> NDArray[np.int64]:
    return np.zeros(ELEMENTS, dtype=np.int64)


@dataclass
class Statistics:
    """Counts and distributions over structures, atoms and labels; eV and angstrom.

    structures_with, atoms_of: [119] by atomic number. sizes: atoms. energy: per atom, beyond the references. forces:
    length of each atom's. stress: its nine components. periodic: [4] structures periodic in none .. all directions.
    edges: neighbours counted, of edge_atoms atoms.
    """

    atoms_of: NDArray[np.int64] = field(default_factory=_per_element)
    structures_with: NDArray[np.int64] = field(default_factory=_per_element)
    sizes: Spread = field(default_factory=Spread)
    energy: Spread = field(default_factory=Spread)
    forces: Spread = field(default_factory=Spread)
    stress: Spread = field(default_factory=Spread)
    groups: Distinct = field(default_factory=Distinct)
    charges: Counter[int] = field(default_factory=Counter)
    multiplicities: Counter[int] = field(default_factory=Counter)
    periodic: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, dtype=np.int64))
    edges: int = 0
    edge_atoms: int = 0

    def add(self, frames: Frames, references: References | None = None, edges: NDArray[np.int64] | None = None) -> None:
        """Take in a block; without references no energies are, edges are those of each structure, [g]."""
        if not len(frames):
            return
        composition = compositions(frames)
        self.atoms_of += composition.sum(0)
        self.structures_with += (composition > 0).sum(0)
        self.sizes.add(frames.sizes.astype(float))
        if references is not None:
            self.energy.add(references.residual(frames))
        if frames.forces is not None:
            self.forces.add(np.linalg.norm(frames.forces, axis=1))
        if frames.stress is not None:
            self.stress.add(frames.stress)
        self.groups.add(frames.groups)
        self.charges.update(frames.charge.tolist())
        self.multiplicities.update(frames.multiplicity.tolist())
        self.periodic += np.bincount(frames.periodic.sum(1), minlength=4)
        if edges is not None:
            self.edges += int(edges.sum())
            self.edge_atoms += int(frames.sizes.sum())

    def merge(self, other: Statistics) -> None:
        """Take in what another worker has."""
        for mine, its in zip(self._spreads(), other._spreads(), strict=True):
            mine.merge(its)
        self.groups.merge(other.groups)
        self.atoms_of += other.atoms_of
        self.structures_with += other.structures_with
        self.charges.update(other.charges)
        self.multiplicities.update(other.multiplicities)
        self.periodic += other.periodic
        self.edges += other.edges
        self.edge_atoms += other.edge_atoms

    def _spreads(self) -> tuple[Spread, ...]:
        return self.sizes, self.energy, self.forces, self.stress

    def as_json(self) -> dict[str, Any]:
        """Plain data for an event log, from which from_json makes the same again."""
        return {
            "structures": self.sizes.number,
            "atoms": int(self.atoms_of.sum()),
            "groups_estimate": self.groups.estimate,
            "groups_registers": self.groups.as_text(),
            "elements": {
                chemical_symbols[z]: {"structures": int(self.structures_with[z]), "atoms": int(self.atoms_of[z])}
                for z in np.flatnonzero(self.atoms_of)
            },
            "sizes": self.sizes.as_json(),
            "energy_ev_per_atom": self.energy.as_json(),
            "force_norm_ev_per_a": self.forces.as_json(),
            "stress_ev_per_a3": self.stress.as_json(),
            "charges": {str(k): n for k, n in sorted(self.charges.items())},
            "multiplicities": {str(k): n for k, n in sorted(self.multiplicities.items())},
            "periodic": self.periodic.tolist(),
            "edges": self.edges,
            "edge_atoms": self.edge_atoms,
            "neighbours_mean": self.edges / self.edge_atoms if self.edge_atoms else None,
        }


def from_json(told: dict[str, Any]) -> Statistics:
    """The statistics that as_json told of."""
    found = Statistics(
        sizes=Spread.from_json(told["sizes"]),
        energy=Spread.from_json(told["energy_ev_per_atom"]),
        forces=Spread.from_json(told["force_norm_ev_per_a"]),
        stress=Spread.from_json(told["stress_ev_per_a3"]),
        groups=Distinct.from_text(told["groups_registers"]),
        charges=Counter({int(k): n for k, n in told["charges"].items()}),
        multiplicities=Counter({int(k): n for k, n in told["multiplicities"].items()}),
        periodic=np.array(told["periodic"]),
        edges=told["edges"],
        edge_atoms=told["edge_atoms"],
    )
    for symbol, counts in told["elements"].items():
        z = chemical_symbols.index(symbol)
        found.structures_with[z], found.atoms_of[z] = counts["structures"], counts["atoms"]
    return found
