"""Calculators that fail for some elements, or count their calls."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class CalculatorByElement(EMT):  # type: ignore[misc]
    """EMT that hangs for gold, exits for silver, raises for palladium and predicts NaN for platinum."""

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        assert atoms is not None
        super().calculate(atoms, properties or ["energy", "forces"], system_changes)
        match atoms[0].symbol:
            case "Au":
                time.sleep(600)
            case "Ag":
                os._exit(3)
            case "Pd":
                raise RuntimeError("SCF not converged")
            case "Pt":
                self.results["forces"] = np.full((len(atoms), 3), np.nan)


class CountingCalculator(EMT):  # type: ignore[misc]
    """EMT that takes a tenth of a second and appends each structure to a file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        assert atoms is not None
        time.sleep(0.1)
        super().calculate(atoms, properties or ["energy", "forces"], system_changes)
        with Path(self.file).open("a") as file:
            file.write(f"{atoms.get_volume():.6f}\n")
