"""Running a potential in its own process adds little to the time of its calculator; `pytest -s` prints the ratio."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes

from harness.protocol.programs.models import ModelDefinition
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.potentials.process import PotentialProcess, build_spec
from harness.reference.potentials.structures import CRYSTALS, build_supercells

ROUNDS = 15


def test_process_adds_at_most_five_percent(tmp_path: Path) -> None:
    """The reference is the time of direct calls of the same calculator; the limit leaves room for noise."""
    cell = build_supercells(CRYSTALS[0], [64])[0]
    atoms = Atoms(numbers=cell.numbers, positions=cell.positions, cell=cell.cell, pbc=True)
    calculator = ReferenceCalculator("painn-64")
    spec = build_spec(ModelDefinition(checkpoint="painn-64"), "published", "cpu")
    rng = np.random.default_rng(0)
    ratios = []
    with PotentialProcess(spec, python=None, threads=1, timeout_s=120.0, log=tmp_path / "log") as process:
        for number in range(ROUNDS + 2):
            measured = process.time_predictions(cell, repeats=3, displacement=0.01, seed=number)["seconds"]
            direct = []
            for _ in range(3):
                atoms.positions[:] = cell.positions + rng.normal(scale=0.01, size=cell.positions.shape)
                start = time.perf_counter()
                calculator.calculate(atoms, ["energy", "forces"], all_changes)
                direct.append(time.perf_counter() - start)
            ratios.append(min(measured) / min(direct))
    ratio = statistics.median(ratios[2:])
    print(f"time of a prediction in its process over direct calls: {ratio:.3f}")
    assert ratio <= 1.05
