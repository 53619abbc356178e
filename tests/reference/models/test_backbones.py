"""Every backbone has the symmetries, smoothness, gradients and dtypes of a potential, compiles, and learns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from harness.protocol.backbones import BACKBONES, BackboneName
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import Prediction, batched_heads, predict_with_stress
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from tests.reference.conftest import make_crystal, make_model, make_molecule
from tests.reference.models.test_physics import make_supercell

SMALL_SIZES: dict[str, dict[str, Any]] = {
    "painn": {"num_radial": 4},
    "pnaeq": {"num_radial": 4},
    "egnn": {},
    "schnet": {"num_filters": 7, "num_gaussians": 9},
    "dimenet": {
        "num_radial": 3,
        "num_spherical": 4,
        "basis_emb_size": 4,
        "int_emb_size": 6,
        "out_emb_size": 9,
        "num_after_skip": 1,
    },
    "mace": {"num_radial": 4, "max_ell": 2},
}
# Backbones that torch.compile cannot compile to one graph, with the reason.
NOT_COMPILED: dict[str, str] = {}
CUTOFF = 4.0


def make_small_config(backbone: str, **changes: Any) -> ModelConfig:
    sizes = {"hidden_dim": 8, "num_conv_layers": 2, "heads": 2}
    head_sizes = {"num_sharedlayers": 0, "num_headlayers": 1, "dim_headlayers": 6}
    return ModelConfig(
        **{"backbone": backbone, "cutoff": CUTOFF, **sizes, **head_sizes, **SMALL_SIZES[backbone], **changes}
    )


MOLECULE = make_molecule(6, seed=1)
CRYSTAL = make_crystal(3, seed=2)
ION = replace(MOLECULE, charge=1, multiplicity=2)
both_structures = pytest.mark.parametrize("structure", [ION, CRYSTAL], ids=["molecule", "crystal"])


ADAPTIVE = "painn with adaptive cutoffs"


@pytest.fixture(scope="module", params=[*BACKBONES, ADAPTIVE])
def model(request: pytest.FixtureRequest) -> FoundationModel:
    """Return a model scaled to forces of up to 1 eV/angstrom, so that tolerances are comparable between backbones."""
    config = make_small_config("painn", adaptive_neighbours=16.0, feature_norm="rms")
    network = make_model(config if request.param == ADAPTIVE else make_small_config(request.param))
    network.scale /= predict(network, [MOLECULE]).forces.abs().max()
    return network


def copy_model(model: FoundationModel) -> FoundationModel:
    other = make_model(model.config)
    other.load_state_dict(model.state_dict())
    return other


def make_batch(model: FoundationModel, structures: list[Structure]) -> Batch:
    graphs = [build_neighbour_list(s, cutoff=CUTOFF) for s in structures]
    return build_batch(graphs, with_triplets=model.config.needs_triplets)


def predict(model: FoundationModel, structures: list[Structure]) -> Prediction:
    batch = make_batch(model, structures)
    return batched_heads(model, batch, model.gate(batch.composition))


def move_atoms(structure: Structure, positions: np.ndarray) -> Structure:
    return replace(structure, positions=positions)


def compute_energy_derivatives(
    model: FoundationModel, up: list[Structure], down: list[Structure], h: float
) -> np.ndarray:
    """Return central differences of the energy, computed in one batch."""
    energy = predict(model, up + down).energy.numpy()
    return (energy[: len(up)] - energy[len(up) :]) / (2 * h)


def test_every_backbone_has_small_sizes_for_these_tests() -> None:
    assert set(SMALL_SIZES) == set(BACKBONES) == set(get_args(BackboneName))


@both_structures
def test_rotation_and_reflection_transform_the_forces_and_keep_the_energy(
    model: FoundationModel, structure: Structure
) -> None:
    for sign in (1.0, -1.0):
        rotation = sign * Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
        rotated = replace(structure, positions=structure.positions @ rotation.T, cell=structure.cell @ rotation.T)
        before, after = predict(model, [structure]), predict(model, [rotated])
        assert before.forces.abs().max() > 0.1
        assert torch.allclose(after.energy, before.energy, rtol=1e-11)
        assert torch.allclose(after.forces, before.forces @ torch.from_numpy(rotation).T, atol=1e-11)


@both_structures
def test_translation_changes_neither_energy_nor_forces(model: FoundationModel, structure: Structure) -> None:
    before = predict(model, [structure])
    after = predict(model, [move_atoms(structure, structure.positions + np.array([7.3, -2.2, 0.9]))])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces, atol=1e-11)


@both_structures
def test_permutation_permutes_the_forces(model: FoundationModel, structure: Structure) -> None:
    order = np.random.default_rng(0).permutation(len(structure))
    shuffled = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    before, after = predict(model, [structure]), predict(model, [shuffled])
    assert torch.allclose(after.energy, before.energy, rtol=1e-11)
    assert torch.allclose(after.forces, before.forces[order], atol=1e-11)


@both_structures
def test_forces_are_the_negative_gradient_of_the_energy(model: FoundationModel, structure: Structure) -> None:
    h = 1e-4
    steps = h * np.eye(structure.positions.size).reshape(-1, *structure.positions.shape)
    up, down = ([move_atoms(structure, structure.positions + s * step) for step in steps] for s in (1, -1))
    forces = predict(model, [structure]).forces.numpy()
    assert forces.ravel() == pytest.approx(-compute_energy_derivatives(model, up, down, h), rel=1e-5, abs=1e-7)


def test_stress_is_the_derivative_of_the_energy_with_respect_to_strain(model: FoundationModel) -> None:
    batch = make_batch(model, [CRYSTAL])
    prediction, tensor = predict_with_stress(model, batch, model.gate(batch.composition))
    assert torch.allclose(prediction.forces, predict(model, [CRYSTAL]).forces, atol=1e-12)
    h = 1e-5

    def make_strained(i: int, j: int, sign: int) -> Structure:
        strain = np.eye(3)
        strain[i, j] += sign * h / 2
        strain[j, i] += sign * h / 2
        return replace(CRYSTAL, positions=CRYSTAL.positions @ strain, cell=CRYSTAL.cell @ strain)

    up, down = ([make_strained(i, j, sign) for i in range(3) for j in range(3)] for sign in (1, -1))
    expected = compute_energy_derivatives(model, up, down, h) / abs(np.linalg.det(CRYSTAL.cell))
    assert tensor[0].numpy().ravel() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_energy_and_forces_are_smooth_where_neighbours_cross_the_cutoff(model: FoundationModel) -> None:
    """Two bonded pairs move apart: the interaction of the nearest atoms ends with neither a step nor a kink."""

    def make_pairs(gap: float) -> Structure:
        x = np.array([[0.0, 0, 0], [0, 1.3, 0], [gap, 0, 0], [gap + 0.8, 0.9, 0]])
        return Structure("pairs", np.array([6, 1, 8, 7]), x)

    separated = predict(model, [make_pairs(CUTOFF + 1e-6)])

    def compute_differences(inside: float) -> tuple[float, float]:
        near = predict(model, [make_pairs(CUTOFF - inside)])
        return abs(float(near.energy[0] - separated.energy[0])), float((near.forces - separated.forces).abs().max())

    (far_energy, far_force), (energy, force) = compute_differences(0.5), compute_differences(1e-3)
    assert far_energy > 1e-4
    assert energy < 1e-4 * far_energy
    assert force < 2e-2 * far_force


def test_supercell_has_the_energy_of_all_cells_and_unchanged_forces(model: FoundationModel) -> None:
    before, after = predict(model, [CRYSTAL]), predict(model, [make_supercell(CRYSTAL, (2, 1, 2))])
    assert float(after.energy[0]) == pytest.approx(4 * float(before.energy[0]), rel=1e-11)
    assert torch.allclose(after.forces, before.forces.repeat(4, 1), atol=1e-11)


def test_structures_of_a_batch_do_not_affect_each_other(model: FoundationModel) -> None:
    structures = [ION, CRYSTAL, make_molecule(1, seed=3), make_molecule(2, seed=4)]
    batched = predict(model, structures)
    single = [predict(model, [s]) for s in structures]
    assert torch.allclose(batched.energy, torch.cat([p.energy for p in single]), rtol=1e-11)
    assert torch.allclose(batched.forces, torch.cat([p.forces for p in single]), atol=1e-11)


def test_isolated_atom_has_no_force_and_a_finite_energy(model: FoundationModel) -> None:
    single = predict(model, [make_molecule(1, seed=3), make_molecule(1, seed=4)])
    assert single.forces.abs().max() == 0
    assert single.energy.isfinite().all()


def compute_squared_loss(model: FoundationModel, batch: Batch, positions: Tensor) -> Tensor:
    """Return a loss that depends on all energies and forces."""
    energies = model.all_energies(model.encode(batch, positions, batch.shift), batch)
    (energy_gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
    return energies.square().sum() + energy_gradient.square().sum()


def compute_gradients(
    model: FoundationModel, batch: Batch, loss: Callable[..., Tensor] = compute_squared_loss
) -> dict[str, Tensor]:
    """Return the gradient of the loss for each parameter except those of the gate; the model is not changed."""
    model.requires_grad_(True)
    loss(model, batch, batch.positions.clone().requires_grad_()).backward()
    result = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("gate."):
            assert parameter.grad is not None, name
            result[name] = parameter.grad
    model.requires_grad_(False).zero_grad()
    return result


def test_gradients_are_finite_for_collinear_and_symmetric_structures(model: FoundationModel) -> None:
    """The structures have collinear bonds, sites whose edge vectors sum to zero, and an atom without edges."""
    line = np.array([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0], [2.3, 0, 0]])
    chain = Structure("chain", np.array([8, 6, 8, 1]), line)
    cubic = Structure("cubic", np.array([29]), np.zeros((1, 3)), 2.6 * np.eye(3), (True, True, True))
    forces = predict(model, [chain, cubic]).forces
    assert forces[:4, 1:].abs().max() < 1e-12
    assert forces[:4, 0].abs().min() > 1e-3
    assert forces[4:].abs().max() < 1e-10
    grads = compute_gradients(model, make_batch(model, [chain, cubic, make_molecule(1, seed=3)]))
    assert all(g.isfinite().all() for g in grads.values())


def test_charge_and_spin_change_every_energy_except_that_of_a_neutral_singlet(model: FoundationModel) -> None:
    states = [(0, 0), (0, 1), (1, 1), (-1, 1), (0, 3)]
    structures = [replace(MOLECULE, charge=q, multiplicity=m) for q, m in states]
    other = copy_model(model)
    for module in other.modules():
        if isinstance(module, FiLM | ChargeSpinEmbedding):
            for parameter in module.parameters():
                parameter.normal_()
    before, after = predict(model, structures), predict(other, structures)
    assert torch.equal(before.energy[:2], after.energy[:2])
    assert before.energy[0] == before.energy[1]
    assert len({round(float(e), 9) for e in before.energy}) == 4
    assert ((before.energy - after.energy)[2:].abs() > 1e-7).all()


Rows = Callable[[int, set[int]], set[int]]


def present_rows(_: int, present: set[int]) -> set[int]:
    return present


def all_but_third(third: int) -> Rows:
    return lambda rows, _: {k for k in range(rows) if not third * (rows // 3) <= k < (third + 1) * (rows // 3)}


# Parameters of which not all rows have a gradient: (backbone, name, rows with a gradient, reason).
EXCEPTIONS: tuple[tuple[str, str, Rows, str], ...] = (
    ("", r"encoder\.embedding\.weight", present_rows, "elements that are not in the batch"),
    ("mace", r"encoder\.(products|kept)\.\d\.(weight|element)", present_rows, "elements that are not in the batch"),
    ("painn", r"encoder\.messages\.0\.(phi|filter)\..*", all_but_third(2), "v is zero before the first message"),
    ("painn|pnaeq", r"encoder\.updates\.1\.a\..*", all_but_third(1), "nothing reads v after the last update"),
)


def test_every_parameter_receives_a_gradient(model: FoundationModel) -> None:
    """Each row of each parameter of encoder and heads is checked."""
    batch = make_batch(model, [ION, CRYSTAL])
    present = set(batch.numbers.tolist())
    for name, grad in compute_gradients(model, batch).items():
        expected = set(range(len(grad)))
        for backbone, pattern, rows, _ in EXCEPTIONS:
            if re.fullmatch(pattern, name) and re.fullmatch(backbone or ".*", model.config.backbone):
                expected = rows(len(grad), present)
        nonzero_rows = grad.reshape(len(grad), -1).abs().amax(1).nonzero().flatten().tolist()
        assert set(nonzero_rows) == expected, name


def predict_with_dtype(model: FoundationModel, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Prediction:
    """Return residual energies and forces of a copy of the model with another dtype."""
    other = copy_model(model)
    other.to(dtype).reference_energy.zero_()
    other.autocast = autocast
    batch = make_batch(model, [ION, CRYSTAL]).to("cpu", dtype)
    weights = torch.full((2, model.config.heads), 1.0 / model.config.heads, dtype=dtype)
    prediction = batched_heads(other, batch, weights)
    assert prediction.energy.dtype == prediction.forces.dtype == dtype
    return prediction


def compute_relative_difference(a: Prediction, b: Prediction) -> float:
    """Return the largest difference of energies and of forces, relative to the largest of each."""
    return max(float((x.double() - y.double()).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


def test_precisions_agree_within_their_rounding(model: FoundationModel) -> None:
    exact = predict_with_dtype(model, torch.float64)
    assert 0 < compute_relative_difference(predict_with_dtype(model, torch.float32), exact) < 1e-4
    assert 1e-6 < compute_relative_difference(predict_with_dtype(model, torch.float32, torch.bfloat16), exact) < 0.2


def test_constants_stay_exact_through_single_precision(model: FoundationModel) -> None:
    """The predictions of a model that was converted to float32 and back have no rounding errors of float32."""
    round_trip = make_model(model.config).float().double()
    round_trip.load_state_dict(model.state_dict())
    before, after = predict(model, [ION, CRYSTAL]), predict(round_trip, [ION, CRYSTAL])
    assert torch.allclose(before.energy, after.energy, rtol=1e-14)
    assert torch.allclose(before.forces, after.forces, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_all_layers_return_the_dtype_of_the_model(model: FoundationModel, dtype: torch.dtype) -> None:
    """No layer of the encoder returns a tensor of another dtype."""
    other = copy_model(model).to(dtype)
    dtypes: set[torch.dtype] = set()

    def record_dtypes(_module: nn.Module, _inputs: object, result: Tensor | tuple[Tensor, ...]) -> None:
        dtypes.update(t.dtype for t in (result if isinstance(result, tuple) else (result,)))

    for module in other.encoder.modules():
        module.register_forward_hook(record_dtypes)
    batch = make_batch(model, [MOLECULE]).to("cpu", dtype)
    other.encode(batch, batch.positions, batch.shift)
    assert dtypes == {dtype}


@pytest.mark.slow
def test_compiled_predictions_match_eager_ones_for_any_shape(model: FoundationModel) -> None:
    """One graph serves all shapes. It is run in eager mode, since compiling C++ for six backbones takes minutes."""
    if model.config.backbone in NOT_COMPILED:
        pytest.skip(NOT_COMPILED[model.config.backbone])
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    run = torch.compile(batched_heads, dynamic=True, fullgraph=True, backend="aot_eager")
    # All sizes differ, since equal sizes would become one symbol.
    first = [ION, CRYSTAL, make_molecule(1, seed=3), make_molecule(2, seed=4)]
    for structures in (first, [*first, make_molecule(7, seed=3)]):
        batch = make_batch(model, structures)
        weights = model.gate(batch.composition)
        got, expected = run(model, batch, weights), batched_heads(model, batch, weights)
        assert torch.allclose(got.energy, expected.energy, rtol=1e-11)
        assert torch.allclose(got.forces, expected.forces, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_compiled_training_has_the_gradients_of_eager_training(model: FoundationModel) -> None:
    """One graph includes the gradient of the forces. It is run in eager mode, since compiling C++ takes minutes."""
    if model.config.backbone in NOT_COMPILED:
        pytest.skip(NOT_COMPILED[model.config.backbone])
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    shallow = make_model(model.config.replace(num_conv_layers=1))
    batch = make_batch(shallow, [ION, CRYSTAL])
    expected = compute_gradients(shallow, batch)
    got = compute_gradients(
        shallow, batch, torch.compile(compute_squared_loss, dynamic=True, fullgraph=True, backend="aot_eager")
    )
    for name, grad in expected.items():
        assert torch.allclose(got[name], grad, rtol=1e-9, atol=1e-11 * float(grad.abs().max())), name


def compute_pair_potential(positions: Tensor) -> Tensor:
    """Return a Morse potential between all atoms, which the model has to learn."""
    i, j = torch.triu_indices(len(positions), len(positions), 1)
    stretch = torch.exp(-1.2 * ((positions[i] - positions[j]).norm(dim=1) - 1.6))
    return (stretch**2 - 2 * stretch).sum()


def test_a_batch_can_be_overfitted(model: FoundationModel) -> None:
    learner = make_model(model.config.replace(hidden_dim=16)).float().requires_grad_(True)
    structures = [make_molecule(n, seed=seed) for n, seed in ((3, 12), (4, 13), (4, 14))]
    batch = make_batch(learner, structures).to("cpu", torch.float32)
    targets, forces = [], []
    for structure in structures:
        x = torch.from_numpy(structure.positions).float().requires_grad_()
        targets.append(compute_pair_potential(x))
        forces.append(-torch.autograd.grad(targets[-1], x)[0])
    target, force = torch.stack(targets).detach(), torch.cat(forces)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    learner.reference_energy.zero_()
    losses: list[float] = []
    while not losses or (losses[-1] > 0.1 * losses[0] and len(losses) < 200):
        positions = batch.positions.clone().requires_grad_()
        energy = learner.all_energies(learner.encode(batch, positions, batch.shift), batch)[:, 0]
        energy_gradient = torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]
        loss = ((energy - target) / batch.n_atoms).abs().mean() + (force + energy_gradient).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] <= 0.1 * losses[0], f"{losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps"
