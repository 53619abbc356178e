"""The reference model works in torch-sim, and models of torch-sim work in the comparison of potentials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from harness.protocol.programs.models import ModelDefinition
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.potentials.process import PotentialProcess, build_spec
from harness.reference.potentials.structures import build_crystal, make_alloy

torch_sim = pytest.importorskip("torch_sim", reason="torch-sim is not installed")
import torch  # noqa: E402
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from harness.reference.potentials.torch_sim_model import ReferenceModel, split_state  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reference_model_passes_the_validation_of_torch_sim(dtype: torch.dtype) -> None:
    validate_model_outputs(ReferenceModel("painn-64", dtype=dtype), torch.device("cpu"), dtype)


def test_energies_forces_and_stress_equal_those_of_the_calculator() -> None:
    model = ReferenceModel("painn-64")
    crystals = [make_alloy(), build_crystal("Cu", Atoms("Cu", cell=np.eye(3) * 2.6, pbc=True), 2)]
    atoms = [Atoms(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=True) for s in crystals]
    state = torch_sim.io.atoms_to_state(atoms, torch.device("cpu"), torch.float64)
    for structure, expected in zip(split_state(state), crystals, strict=True):
        assert np.array_equal(structure.cell, expected.cell)
    output = model(state)
    first = 0
    for k, system in enumerate(atoms):
        system.calc = ReferenceCalculator("painn-64")
        assert float(output["energy"][k]) == pytest.approx(system.get_potential_energy(), rel=1e-12)
        forces = output["forces"][first : first + len(system)].numpy()
        assert np.allclose(forces, system.get_forces(), atol=1e-9)
        assert np.allclose(output["stress"][k].numpy(), system.get_stress(voigt=False), atol=1e-10)
        first += len(system)


def test_batched_relaxation_lowers_energies() -> None:
    model = ReferenceModel("painn-64")
    crystal = make_alloy()
    atoms = Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
    start = torch_sim.io.atoms_to_state([atoms, atoms], torch.device("cpu"), torch.float64)
    final = torch_sim.optimize(system=start, model=model, optimizer=torch_sim.unit_cell_fire, max_steps=5)
    assert bool((final.energy < model(start)["energy"]).all())


def test_process_predicts_with_models_of_torch_sim(tmp_path: Path) -> None:
    definition = ModelDefinition.model_validate(
        {"torch_sim": {"module": "harness.reference.potentials.torch_sim_model", "class_name": "ReferenceModel",
                       "kwargs": {"model": "painn-64"}}}
    )  # fmt: skip
    spec = build_spec(definition, "published", "cpu")
    crystal = make_alloy()
    atoms = Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
    atoms.calc = ReferenceCalculator("painn-64")
    with PotentialProcess(spec, python=None, threads=1, timeout_s=120.0, log=tmp_path / "log") as process:
        first, second = process.predict([crystal, crystal], with_stress=True)
    assert first.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert np.allclose(second.forces, atoms.get_forces(), atol=1e-9)
    assert first.stress is not None
    assert np.allclose(first.stress, atoms.get_stress(), atol=1e-10)
