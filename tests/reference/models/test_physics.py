"""What any interatomic potential must obey, in double precision."""

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
from tests.reference.conftest import SMALL, batch_of, crystal, make_model, molecule, predict

STRUCTURES = [molecule(), crystal()]
both = pytest.mark.parametrize("structure", STRUCTURES, ids=["molecule", "crystal"])


def energy(model: FoundationModel, structure: Structure) -> float:
    return float(predict(model, [structure]).energy[0])


@both
def test_forces_are_minus_the_slope_of_the_energy(model: FoundationModel, structure: Structure) -> None:
    forces = predict(model, [structure]).forces.numpy()
    h = 1e-4
    for atom in range(len(structure)):
        for axis in range(3):
            step = np.zeros_like(structure.positions)
            step[atom, axis] = h
            up = energy(model, replace(structure, positions=structure.positions + step))
            down = energy(model, replace(structure, positions=structure.positions - step))
            assert forces[atom, axis] == pytest.approx(-(up - down) / (2 * h), rel=1e-6, abs=1e-7)


def test_stress_is_the_slope_of_the_energy_by_strain(model: FoundationModel) -> None:
    structure = crystal()
    batch = batch_of([structure])
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
                energy(
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
    batch = batch_of([molecule()])
    assert predict_with_stress(model, batch, model.gate(batch.composition))[1].isnan().all()


@both
def test_rotation_turns_the_forces_and_keeps_the_energy(model: FoundationModel, structure: Structure) -> None:
    turn = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    turned = replace(structure, positions=structure.positions @ turn.T, cell=structure.cell @ turn.T)
    before, after = predict(model, [structure]), predict(model, [turned])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces @ torch.from_numpy(turn).T, atol=1e-11)


@both
def test_translation_changes_nothing(model: FoundationModel, structure: Structure) -> None:
    moved = replace(structure, positions=structure.positions + np.array([7.3, -2.2, 0.9]))
    before, after = predict(model, [structure]), predict(model, [moved])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces, atol=1e-11)


@both
def test_permutation_permutes_the_forces(model: FoundationModel, structure: Structure) -> None:
    order = np.random.default_rng(0).permutation(len(structure))
    shuffled = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    before, after = predict(model, [structure]), predict(model, [shuffled])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces[order], atol=1e-11)


def supercell(structure: Structure, repeats: tuple[int, int, int]) -> Structure:
    offsets = np.array(list(np.ndindex(repeats))) @ structure.cell
    return replace(
        structure,
        numbers=np.tile(structure.numbers, len(offsets)),
        positions=(structure.positions[None] + offsets[:, None]).reshape(-1, 3),
        cell=structure.cell * np.array(repeats)[:, None],
    )


def test_a_supercell_has_the_energy_of_its_cells_and_the_same_forces(model: FoundationModel) -> None:
    cell = crystal()
    before, after = predict(model, [cell]), predict(model, [supercell(cell, (2, 1, 3))])
    assert float(after.energy[0]) == pytest.approx(6 * float(before.energy[0]), rel=1e-11)
    assert torch.allclose(after.forces, before.forces.repeat(6, 1), atol=1e-11)


def test_atoms_do_not_feel_the_rest_of_the_batch(model: FoundationModel) -> None:
    structures = [molecule(seed=2), crystal(), molecule(1, seed=3), molecule(5, seed=4)]
    batched = predict(model, structures)
    alone = [predict(model, [s]) for s in structures]
    assert torch.allclose(batched.energy, torch.cat([p.energy for p in alone]), rtol=1e-11)
    assert torch.allclose(batched.forces, torch.cat([p.forces for p in alone]), atol=1e-11)


def test_an_atom_alone_has_no_force(model: FoundationModel) -> None:
    assert predict(model, [molecule(1)]).forces.abs().max() == 0


def test_energy_is_smooth_where_a_neighbour_leaves(model: FoundationModel) -> None:
    def pair(distance: float) -> Structure:
        return Structure("pair", np.array([6, 8]), np.array([[0.0, 0, 0], [distance, 0, 0]]))

    inside, outside = (energy(model, pair(SMALL.cutoff + d)) for d in (-1e-4, 1e-4))
    assert inside == pytest.approx(outside, abs=1e-6)
    assert predict(model, [pair(SMALL.cutoff - 1e-5)]).forces.abs().max() < 1e-4


def test_two_far_molecules_have_the_sum_of_their_features(model: FoundationModel) -> None:
    a, b = molecule(seed=5), molecule(seed=6)
    far = Structure(
        "both",
        np.concatenate([a.numbers, b.numbers]),
        np.concatenate([a.positions, b.positions + np.array([50.0, 0, 0])]),
    )
    pooled = [model.encode(x, x.positions, x.shift) for x in (batch_of([s]) for s in (a, b, far))]
    assert torch.allclose(pooled[0] + pooled[1], pooled[2], atol=1e-11)


@pytest.mark.parametrize("readout", ["sum", "extensive"])
def test_both_readouts_have_right_forces(readout: str) -> None:
    model = make_model(
        ModelConfig(hidden_dim=8, num_conv_layers=2, cutoff=4.0, num_sharedlayers=0, dim_headlayers=6, readout=readout)
    )  # type: ignore[arg-type]
    structure = molecule(6)
    h = np.zeros_like(structure.positions)
    h[2, 1] = 1e-4
    up, down = (energy(model, replace(structure, positions=structure.positions + s * h)) for s in (1, -1))
    assert float(predict(model, [structure]).forces[2, 1]) == pytest.approx(-(up - down) / 2e-4, rel=1e-6)
