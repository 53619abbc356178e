"""Checks of physics name planted faults of every kind, and raise no false alarm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from harness.reference.data.structure import Structure
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import Predict, Violation, check_physics, draw_orthogonal_matrix, find_jump
from harness.reference.potentials.process import PotentialPrediction
from harness.reference.potentials.structures import make_alloy, make_cluster
from tests.reference.potentials.faulty import FaultyCalculator


def make_predict(calculator: Calculator) -> Predict:
    """Return a function that predicts structures with an ASE calculator."""

    def predict(structures: Sequence[Structure]) -> list[PotentialPrediction]:
        predictions = []
        for s in structures:
            atoms = Atoms(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=s.periodic)
            calculator.calculate(atoms, ["energy", "forces"], all_changes)
            energy, forces = calculator.results["energy"], np.array(calculator.results["forces"])
            predictions.append(PotentialPrediction(float(energy), forces))
        return predictions

    return predict


def find_violations(fault: str, *, seed: int = 0, transformations: int = 10) -> list[Violation]:
    """Return the checks that EMT with a fault violates, or that could not be measured."""
    checks = check_physics(
        make_predict(FaultyCalculator(fault)), make_alloy(), make_cluster(), dtype="float64",
        transformations=transformations, dynamics_steps=40, seed=seed,
    )  # fmt: skip
    return [check for check in checks if not check.passed]


@pytest.mark.parametrize(
    ("fault", "violated"),
    [
        ("forces_scaled", {"forces from energies"}),
        ("biased_forces", {"rotation: forces"}),
        ("missing_image", {"periodic images: energy"}),
        ("call_dependent", {"batch: energy"}),
        ("wrong_order", {"permutation: forces", "forces from energies"}),
        ("kj_per_mol", {"forces from energies"}),
        ("wrong_sign", {"forces from energies", "drift of the energy"}),
        ("energy_jumps", {"smoothness through the cutoff"}),
        ("not_conservative", {"conservative forces"}),
    ],
)
def test_planted_fault_is_found(fault: str, violated: set[str]) -> None:
    assert violated <= {v.check for v in find_violations(fault)}


@pytest.mark.parametrize("seed", range(3))
def test_potential_without_fault_passes_all_checks(seed: int) -> None:
    assert find_violations("none", seed=seed) == []


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("seed", range(2))
def test_untrained_models_pass_all_checks(precision: str, seed: int) -> None:
    """The rounding errors of untrained PaiNN without a maximum number of neighbours violate no property."""
    torch.manual_seed(seed)
    model = FoundationModel(ModelConfig(hidden_dim=8, num_conv_layers=2))
    model.mark_all_elements_known()
    calculator = ReferenceCalculator(model, precision=precision)
    dtype = {"fp64": "float64", "fp32": "float32"}[precision]
    structures = make_alloy(), make_cluster()
    checks = list(
        check_physics(
            make_predict(calculator), *structures, dtype=dtype, transformations=6, dynamics_steps=20, seed=seed
        )
    )
    assert len(checks) > 20
    assert [check for check in checks if not check.passed] == []


def test_rotations_and_reflections_are_orthogonal() -> None:
    rng = np.random.default_rng(0)
    for mirrored in (False, True):
        q = draw_orthogonal_matrix(rng, mirrored=mirrored)
        assert np.allclose(q @ q.T, np.eye(3))
        assert np.linalg.det(q) == pytest.approx(-1.0 if mirrored else 1.0)


@pytest.mark.parametrize("jump", [0.0, 1e-4])
def test_jump_of_an_energy_is_measured(jump: float) -> None:
    """The energy is sin(3x), with a jump at an irrational x."""

    def predict(distances: Sequence[float]) -> list[tuple[float, float]]:
        return [(np.sin(3 * x) + (jump if x > np.sqrt(0.5) else 0.0), -3 * np.cos(3 * x)) for x in distances]

    measured, _ = find_jump(predict, np.arange(0.0, 2.0, 0.05))
    assert measured == pytest.approx(jump, abs=1e-9)
