"""The PaiNN model has the symmetries and derivatives of an interatomic potential, in double precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import predict_with_stress
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_model, make_molecule, predict

STRUCTURES = [make_molecule(), make_crystal()]
both_structures = pytest.mark.parametrize("structure", STRUCTURES, ids=["molecule", "crystal"])


def compute_energy(model: FoundationModel, structure: Structure) -> float:
    return float(predict(model, [structure]).energy[0])


@both_structures
def test_forces_are_the_negative_gradient_of_the_energy(model: FoundationModel, structure: Structure) -> None:
    forces = predict(model, [structure]).forces.numpy()
    h = 1e-4
    for atom in range(len(structure)):
        for axis in range(3):
            step = np.zeros_like(structure.positions)
            step[atom, axis] = h
            up = compute_energy(model, replace(structure, positions=structure.positions + step))
            down = compute_energy(model, replace(structure, positions=structure.positions - step))
            assert forces[atom, axis] == pytest.approx(-(up - down) / (2 * h), rel=1e-6, abs=1e-7)


def test_stress_is_the_derivative_of_the_energy_with_respect_to_strain(model: FoundationModel) -> None:
    structure = make_crystal()
    batch = make_batch([structure])
    prediction, tensor = predict_with_stress(model, batch, model.gate(batch.composition))
    assert torch.allclose(prediction.forces, predict(model, [structure]).forces, atol=1e-12)
    volume = abs(np.linalg.det(structure.cell))
    h = 1e-5
    for i in range(3):
        for j in range(3):
            strain = np.zeros((3, 3))
            strain[i, j] += h / 2
            strain[j, i] += h / 2
            energies = [
                compute_energy(
                    model,
                    replace(
                        structure,
                        positions=structure.positions @ (np.eye(3) + sign * strain),
                        cell=structure.cell @ (np.eye(3) + sign * strain),
                    ),
                )
                for sign in (1, -1)
            ]
            expected = (energies[0] - energies[1]) / (2 * h) / volume
            assert float(tensor[0, i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_molecule_has_no_stress(model: FoundationModel) -> None:
    batch = make_batch([make_molecule()])
    assert predict_with_stress(model, batch, model.gate(batch.composition))[1].isnan().all()


@both_structures
def test_rotation_rotates_the_forces_and_keeps_the_energy(model: FoundationModel, structure: Structure) -> None:
    rotation = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    rotated = replace(structure, positions=structure.positions @ rotation.T, cell=structure.cell @ rotation.T)
    before, after = predict(model, [structure]), predict(model, [rotated])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces @ torch.from_numpy(rotation).T, atol=1e-11)


@both_structures
def test_translation_changes_neither_energy_nor_forces(model: FoundationModel, structure: Structure) -> None:
    moved = replace(structure, positions=structure.positions + np.array([7.3, -2.2, 0.9]))
    before, after = predict(model, [structure]), predict(model, [moved])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces, atol=1e-11)


@both_structures
def test_permutation_permutes_the_forces(model: FoundationModel, structure: Structure) -> None:
    order = np.random.default_rng(0).permutation(len(structure))
    shuffled = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    before, after = predict(model, [structure]), predict(model, [shuffled])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces[order], atol=1e-11)


def make_supercell(structure: Structure, repeats: tuple[int, int, int]) -> Structure:
    offsets = np.array(list(np.ndindex(repeats))) @ structure.cell
    return replace(
        structure,
        numbers=np.tile(structure.numbers, len(offsets)),
        positions=(structure.positions[None] + offsets[:, None]).reshape(-1, 3),
        cell=structure.cell * np.array(repeats)[:, None],
    )


def test_supercell_has_the_energy_of_all_cells_and_unchanged_forces(model: FoundationModel) -> None:
    cell = make_crystal()
    before, after = predict(model, [cell]), predict(model, [make_supercell(cell, (2, 1, 3))])
    assert float(after.energy[0]) == pytest.approx(6 * float(before.energy[0]), rel=1e-11)
    assert torch.allclose(after.forces, before.forces.repeat(6, 1), atol=1e-11)


def test_structures_of_a_batch_do_not_affect_each_other(model: FoundationModel) -> None:
    structures = [make_molecule(seed=2), make_crystal(), make_molecule(1, seed=3), make_molecule(5, seed=4)]
    batched = predict(model, structures)
    single = [predict(model, [s]) for s in structures]
    assert torch.allclose(batched.energy, torch.cat([p.energy for p in single]), rtol=1e-11)
    assert torch.allclose(batched.forces, torch.cat([p.forces for p in single]), atol=1e-11)


def test_isolated_atom_has_no_force(model: FoundationModel) -> None:
    assert predict(model, [make_molecule(1)]).forces.abs().max() == 0


def test_energy_is_smooth_where_a_neighbour_crosses_the_cutoff(model: FoundationModel) -> None:
    def make_pair(distance: float) -> Structure:
        return Structure("pair", np.array([6, 8]), np.array([[0.0, 0, 0], [distance, 0, 0]]))

    inside, outside = (compute_energy(model, make_pair(SMALL.cutoff + d)) for d in (-1e-4, 1e-4))
    assert inside == pytest.approx(outside, abs=1e-6)
    assert predict(model, [make_pair(SMALL.cutoff - 1e-5)]).forces.abs().max() < 1e-4


def test_features_of_distant_molecules_add_up(model: FoundationModel) -> None:
    a, b = make_molecule(seed=5), make_molecule(seed=6)
    distant_pair = Structure(
        "both",
        np.concatenate([a.numbers, b.numbers]),
        np.concatenate([a.positions, b.positions + np.array([50.0, 0, 0])]),
    )
    pooled = [model.encode(x, x.positions, x.shift) for x in (make_batch([s]) for s in (a, b, distant_pair))]
    assert torch.allclose(pooled[0] + pooled[1], pooled[2], atol=1e-11)


@pytest.mark.parametrize("readout", ["sum", "extensive"])
def test_forces_are_correct_for_both_readouts(readout: str) -> None:
    model = make_model(
        ModelConfig(hidden_dim=8, num_conv_layers=2, cutoff=4.0, num_sharedlayers=0, dim_headlayers=6, readout=readout)
    )  # type: ignore[arg-type]
    structure = make_molecule(6)
    h = np.zeros_like(structure.positions)
    h[2, 1] = 1e-4
    up, down = (compute_energy(model, replace(structure, positions=structure.positions + s * h)) for s in (1, -1))
    assert float(predict(model, [structure]).forces[2, 1]) == pytest.approx(-(up - down) / 2e-4, rel=1e-6)
