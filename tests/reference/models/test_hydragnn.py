"""Checkpoints of HydraGNN give the energies and forces of its code, and every tensor is either used or refused."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from harness.protocol.programs.models import ModelDefinition
from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator, build_hydragnn_calculator
from harness.reference.inference.prediction import batched_heads
from harness.reference.models import checkpoints, hydragnn
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.hydragnn import load_hydragnn
from harness.reference.ops import messages
from harness.reference.potentials.physics import Violation, check_physics
from harness.reference.potentials.process import PotentialPrediction, PotentialProcess, build_spec
from harness.reference.potentials.structures import CRYSTALS, MOLECULES

RECORDS = Path(__file__).parent / "recorded_hydragnn"
NAMES = ("biased", "unbiased", "silu")
PNAEQ_NAMES = ("pnaeq-biased", "pnaeq-unbiased")


def load_recorded_model(name: str) -> FoundationModel:
    folder = RECORDS / name
    return load_hydragnn(folder / "model.pk", folder / "config.json").eval().requires_grad_(False)


def read_structures(name: str) -> list[tuple[Structure, np.ndarray, np.ndarray]]:
    """Return each recorded structure, with energy [branches] and forces [branches, n, 3] of HydraGNN's code."""
    recorded = json.loads((RECORDS / name / "structures.json").read_text(encoding="utf-8"))["structures"]
    return [
        (
            Structure(
                s["name"], np.array(s["numbers"]), np.array(s["positions"]), np.array(s["cell"]), tuple(s["periodic"]),
                charge=s["charge"], multiplicity=s["multiplicity"],
            ),
            np.array(s["energy"]), np.array(s["forces"]),
        )
        for s in recorded
    ]  # fmt: skip


def predict(
    model: FoundationModel, structures: Sequence[Structure], *, fused: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the energy [branches] and the forces [branches, n, 3] of each structure, predicted in one batch."""
    config = model.config
    graphs = [build_neighbour_list(s, cutoff=config.cutoff, max_neighbours=config.max_neighbours) for s in structures]
    batch = build_batch(graphs).to("cpu", next(model.parameters()).dtype)
    positions = batch.positions.clone().requires_grad_()
    energies = model.residual_energies(model.encode(batch, positions, batch.shift, fused=fused), batch)
    energies = energies[:, : int(model.trained[model.kept_heads].sum())]
    energy_gradients = [torch.autograd.grad(e.sum(), positions, retain_graph=True)[0] for e in energies.T]
    forces = torch.stack(energy_gradients).neg().split([len(s) for s in structures], dim=1)
    return [(e.detach().numpy(), f.numpy()) for e, f in zip(energies, forces, strict=True)]


@pytest.mark.parametrize(
    ("name", "fused"),
    [*((name, fused) for name in NAMES for fused in (False, True)), *((name, False) for name in PNAEQ_NAMES)],
)
def test_energies_and_forces_match_the_records_of_hydragnn(name: str, fused: bool) -> None:
    if fused:
        messages.load(torch.device("cpu"))
    recorded = read_structures(name)
    predicted = predict(load_recorded_model(name), [s for s, _, _ in recorded], fused=fused)
    for (structure, energy, forces), (predicted_energy, predicted_forces) in zip(recorded, predicted, strict=True):
        assert np.abs(predicted_energy - energy).max() / len(structure) < 1e-13, structure.name
        assert np.abs(predicted_forces - forces).max() < 1e-11 * np.abs(forces).max(), structure.name
        assert np.ptp(predicted_energy) > 0.1 or len(predicted_energy) == 1


def test_recorded_slab_has_asymmetric_limited_neighbours() -> None:
    structure = next(s for s, _, _ in read_structures("unbiased") if s.name == "slab")
    graph = build_neighbour_list(structure, cutoff=5.0, max_neighbours=20)
    assert graph.n_dropped > 0
    assert len(np.unique(np.bincount(graph.sender))) > 2


def test_single_precision_and_a_subset_of_the_heads_agree() -> None:
    model = load_recorded_model("biased")
    structures = [s for s, _, _ in read_structures("biased")]
    exact, fp32_results = predict(model, structures), predict(copy.deepcopy(model).float(), structures)
    for (energy, forces), (rounded_energy, rounded_forces) in zip(exact, fp32_results, strict=True):
        assert np.abs(energy - rounded_energy).max() < 1e-4
        assert np.abs(forces - rounded_forces).max() < 2e-3 * np.abs(forces).max()
    subset = copy.deepcopy(model)
    subset.keep_heads([2])
    (energy, _), *_ = predict(subset, structures[:1])
    assert np.allclose(energy, exact[0][0][2], rtol=0, atol=1e-13)


def test_compiled_predictions_match_eager_ones() -> None:
    model = load_recorded_model("biased")
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    run = torch.compile(batched_heads, dynamic=True, fullgraph=True, backend="aot_eager")
    structures = [s for s, _, _ in read_structures("biased")]
    for selected in (structures, structures[1:]):
        batch = build_batch([build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in selected])
        weights = model.gate(batch.composition)
        compiled, expected = run(model, batch, weights), batched_heads(model, batch, weights)
        assert torch.allclose(compiled.energy, expected.energy, rtol=1e-11)
        assert torch.allclose(compiled.forces, expected.forces, rtol=1e-9, atol=1e-11)


def test_bfloat16_products_give_finite_forces() -> None:
    model = load_recorded_model("unbiased").float()
    model.autocast = torch.bfloat16
    assert all(np.isfinite(f).all() for _, f in predict(model, [s for s, _, _ in read_structures("unbiased")]))


def test_pnaeq_agrees_to_the_last_digits_and_in_single_precision() -> None:
    for name in PNAEQ_NAMES:
        model = load_recorded_model(name)
        recorded = read_structures(name)
        structures = [s for s, _, _ in recorded]
        single = predict(copy.deepcopy(model).float(), structures)
        for (_, energy, forces), exact, rounded in zip(recorded, predict(model, structures), single, strict=True):
            assert np.abs(exact[0] - energy).max() < 1e-12 * np.abs(energy).max()
            assert np.abs(exact[1] - forces).max() < 1e-12 * np.abs(forces).max()
            assert 0 < np.abs(rounded[0] - energy).max() < 1e-4
            assert np.abs(rounded[1] - forces).max() < 1e-2 * np.abs(forces).max()


def test_pnaeq_has_no_fused_messages() -> None:
    config = load_recorded_model("pnaeq-unbiased").config
    with pytest.raises(messages.UnsupportedKernel, match="not HydraGNN's pnaeq"):
        messages.check(config.network, torch.device("cpu"))
    messages.check(load_recorded_model("unbiased").config.network, torch.device("cpu"))


def copy_files(tmp_path: Path, name: str = "biased") -> tuple[Path, Path]:
    """Return copies of a recorded checkpoint and its configuration."""
    for file in ("model.pk", "config.json"):
        shutil.copy(RECORDS / name / file, tmp_path / file)
    return tmp_path / "model.pk", tmp_path / "config.json"


def edit_state(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(checkpoint, weights_only=True)
    change(content["model_state_dict"])
    torch.save(content, checkpoint)


def edit_architecture(config: Path, **changes: Any) -> None:
    content = json.loads(config.read_text(encoding="utf-8"))
    content["NeuralNetwork"]["Architecture"] |= changes
    config.write_text(json.dumps(content), encoding="utf-8")


def list_tensors(name: str) -> list[str]:
    return list(torch.load(RECORDS / name / "model.pk", weights_only=True)["model_state_dict"])


EVERY_TENSOR = [(name, tensor) for name in ("biased", "pnaeq-biased") for tensor in list_tensors(name)]


@pytest.mark.parametrize(("name", "tensor"), EVERY_TENSOR)
def test_missing_tensor_is_named(tmp_path: Path, name: str, tensor: str) -> None:
    checkpoint, config = copy_files(tmp_path, name)
    edit_state(checkpoint, lambda state: state.pop(tensor))
    with pytest.raises(InputError, match=rf"{re.escape(tensor.removeprefix('model.'))} is missing$"):
        load_hydragnn(checkpoint, config)


@pytest.mark.parametrize("name", ["unbiased", "pnaeq-biased"])
def test_every_tensor_changes_a_weight_of_the_model(tmp_path: Path, name: str) -> None:
    before = load_recorded_model(name).state_dict()
    for tensor in list_tensors(name):
        changed = change_tensor(tmp_path, name, tensor)
        assert sum(not torch.equal(before[key], changed[key]) for key in before) == 1, tensor


def change_tensor(tmp_path: Path, name: str, tensor: str) -> dict[str, Any]:
    """Return the weights of a model in whose checkpoint one tensor is changed."""
    checkpoint, config = copy_files(tmp_path, name)
    edit_state(checkpoint, lambda state: state[tensor].add_(1.0))
    return load_hydragnn(checkpoint, config).state_dict()


def test_every_weight_comes_from_the_checkpoint() -> None:
    """A second model, initialized with another random seed, has the same weights."""
    for name in ("biased", "pnaeq-biased"):
        torch.manual_seed(1)
        first = load_recorded_model(name).state_dict()
        torch.manual_seed(2)
        second = load_recorded_model(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"model.extra.weight": torch.zeros(2).double()}), r"describes has no extra\.weight$"),
        (lambda s: s.update({"model.graph_convs.0.module_3.weight": torch.zeros(3, 1).double()}),
         r"graph_convs\.0\.module_3\.weight has the shape \[3, 1\], expected \[10, 1\]"),
        (lambda s: s["model.graph_concat_projector.bias"].fill_(float("nan")),
         r"graph_concat_projector\.bias holds numbers that are not finite"),
        (lambda s: s.update({"model.graph_concat_projector.bias": torch.zeros(10)}),
         "the weights are of type float32, float64, expected float32 or float64 for all of them"),
        (lambda s: s.clear(), "not a checkpoint of HydraGNN \\(it has no model_state_dict\\)"),
    ],
)  # fmt: skip
def test_unexpected_or_invalid_tensor_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    checkpoint, config = copy_files(tmp_path)
    edit_state(checkpoint, change)
    with pytest.raises(InputError, match=message):
        load_hydragnn(checkpoint, config)


def test_tensor_names_of_data_parallel_models_are_accepted(tmp_path: Path) -> None:
    checkpoint, config = copy_files(tmp_path)
    content = torch.load(checkpoint, weights_only=True)
    for prefix in ("module.", "module.model.", ""):
        state = {f"{prefix}{k.removeprefix('model.')}": v for k, v in content["model_state_dict"].items()}
        torch.save({"model_state_dict": state}, checkpoint)
        loaded = load_hydragnn(checkpoint, config).state_dict()
        assert all(
            torch.equal(value, loaded[name]) for name, value in load_recorded_model("biased").state_dict().items()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mpnn_type": "MACE"}, "mpnn_type is 'MACE'; only PAINN and PNAEq are supported"),
        ({"global_attn_engine": "GPS"}, 'global_attn_engine is "GPS"; only null and "" is supported'),
        ({"graph_pooling": "mean"}, 'graph_pooling is "mean"; only "add" and "sum" is supported'),
        ({"activation_function": "elu"}, 'activation_function is "elu"'),
        ({"graph_attr_conditioning_mode": "film"}, 'graph_attr_conditioning_mode is "film"'),
        ({"output_type": ["node"]}, r'output_type is \["node"\]'),
        ({"input_dim": 2}, "input_dim is 2; only 1 is supported"),
        ({"output_heads": {"graph": []}}, "the branches are"),
        ({"hidden_dim": None}, "hidden_dim is null, expected a whole number"),
        ({"hidden_dim": 60_000}, r"has the shape \[10, 1\], expected \[60000, 1\]"),
        ({"num_radial": "x"}, "num_radial is 'x', expected a whole number"),
        ({"radius": None}, "Architecture is incomplete"),
        ({"num_conv_layers": 2}, r"graph_convs\.1\.module_1\.update_mlp\.2\.weight has the shape"),
        ({"use_graph_attr_conditioning": False}, r"describes has no graph_concat_projector\.bias \(and 1 more\)"),
    ],
)
def test_unsupported_option_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoint, config = copy_files(tmp_path)
    edit_architecture(config, **changes)
    with pytest.raises(InputError, match=message):
        load_hydragnn(checkpoint, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mpnn_type": "PAINN"}, r"scalar_message_mlp\.2\.weight has the shape|filter_layer\.weight is missing"),
        ({"edge_dim": 1}, "edge_dim is 1; only null and 0 is supported"),
        ({"num_conv_layers": 1}, r"update_mlp\.2\.weight has the shape"),
    ],
)
def test_a_configuration_that_does_not_fit_a_checkpoint_of_pnaeq_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint, config = copy_files(tmp_path, "pnaeq-unbiased")
    edit_architecture(config, **changes)
    with pytest.raises(InputError, match=message):
        load_hydragnn(checkpoint, config)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"NeuralNetwork": []}', '{"NeuralNetwork": {"Architecture": "x"}}', '{"NeuralNetwork": 1}'],
)
def test_file_without_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    checkpoint, config = copy_files(tmp_path)
    config.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not a configuration of HydraGNN"):
        load_hydragnn(checkpoint, config)


@pytest.mark.parametrize("graph", [[{}], [1], "x", None, {"dim_headlayers": 3}, {"dim_headlayers": []}])
def test_invalid_branches_are_refused(tmp_path: Path, graph: Any) -> None:
    checkpoint, config = copy_files(tmp_path)
    edit_architecture(config, output_heads={"graph": graph})
    with pytest.raises(InputError, match=r"config\.json: "):
        load_hydragnn(checkpoint, config)


def test_checkpoint_in_single_precision_stays_in_single_precision(tmp_path: Path) -> None:
    checkpoint, config = copy_files(tmp_path)
    edit_state(checkpoint, lambda state: state.update({name: value.float() for name, value in state.items()}))
    fp32_results, double = load_hydragnn(checkpoint, config).state_dict(), load_recorded_model("biased").state_dict()
    assert all(torch.equal(value, double[name].to(value.dtype)) for name, value in fp32_results.items())
    assert {value.dtype for value in fp32_results.values()} == {torch.float32, torch.bool}


def test_branches_of_different_sizes_are_refused(tmp_path: Path) -> None:
    checkpoint, config = copy_files(tmp_path)
    content = json.loads(config.read_text(encoding="utf-8"))
    content["NeuralNetwork"]["Architecture"]["output_heads"]["graph"][1]["architecture"]["dim_sharedlayers"] = 7
    config.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="dim_sharedlayers of branch-1 differs from dim_sharedlayers of branch-0"):
        load_hydragnn(checkpoint, config)


class Malicious:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    checkpoint, config = copy_files(tmp_path)
    torch.save({"model_state_dict": Malicious(tmp_path / "ran")}, checkpoint)
    with pytest.raises(InputError, match="not a readable file of tensors"):
        load_hydragnn(checkpoint, config)
    assert not (tmp_path / "ran").exists()
    checkpoint.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(InputError, match="not a readable file of tensors"):
        load_hydragnn(checkpoint, config)
    with pytest.raises(InputError, match="no such file"):
        load_hydragnn(tmp_path / "none.pk", config)
    with pytest.raises(InputError, match="no such file"):
        load_hydragnn(RECORDS / "biased/model.pk", tmp_path / "none.json")


def write_gate(path: Path, heads: int) -> nn.Sequential:
    """Write a gate in HydraGNN's format and return its network."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(118, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, heads))
    torch.save({"mlp_state_dict": {f"net.{name}": value for name, value in net.state_dict().items()}}, path)
    return net.double()


def test_gate_weights_the_branches_by_atom_counts(tmp_path: Path) -> None:
    net = write_gate(tmp_path / "gate.pt", 3)
    folder = RECORDS / "biased"
    files = {"checkpoint": folder / "model.pk", "config": folder / "config.json"}
    calculator = build_hydragnn_calculator(**files, gate=tmp_path / "gate.pt")
    for structure, energies, forces in read_structures("biased"):
        predicted = calculate(calculator, structure)
        counts = torch.from_numpy(np.bincount(structure.numbers, minlength=119)[1:]).double()
        weights = torch.softmax(net(counts), dim=-1).detach().numpy()
        assert weights.max() < 0.9
        assert predicted.energy == pytest.approx(float(weights @ energies), abs=1e-10)
        assert np.allclose(predicted.forces, np.tensordot(weights, forces, axes=1), rtol=0, atol=1e-10)


def test_heads_without_a_branch_have_no_weight() -> None:
    model = load_recorded_model("biased")
    composition = torch.eye(119).double()[[8, 78]]
    for weights in (model.gate(composition), model.gate_weights(composition)):
        assert weights.tolist() == [pytest.approx([1 / 3] * 3 + [0.0] * 13, abs=0)] * 2


def test_gate_with_a_wrong_number_of_branches_is_refused(tmp_path: Path) -> None:
    write_gate(tmp_path / "gate.pt", 4)
    folder = RECORDS / "biased"
    with pytest.raises(InputError, match=r"net\.4\.weight has the shape \[4, 64\], expected \[3, 64\]"):
        load_hydragnn(folder / "model.pk", folder / "config.json", tmp_path / "gate.pt")


def calculate(calculator: ReferenceCalculator, structure: Structure) -> PotentialPrediction:
    atoms = Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.info |= {"charge": structure.charge, "multiplicity": structure.multiplicity}
    atoms.calc = calculator
    return PotentialPrediction(float(atoms.get_potential_energy()), np.array(atoms.get_forces()))


def test_calculator_with_a_head_has_the_forces_of_its_branch() -> None:
    folder = RECORDS / "biased"
    calculator = build_hydragnn_calculator(str(folder / "model.pk"), str(folder / "config.json"), head="MPTrj")
    for structure, energies, forces in read_structures("biased"):
        predicted = calculate(calculator, structure)
        assert predicted.energy == pytest.approx(energies[2], abs=1e-10)
        assert np.allclose(predicted.forces, forces[2], rtol=0, atol=1e-10)


def test_definition_with_hydragnn_files_gives_a_potential(tmp_path: Path) -> None:
    folder = RECORDS / "biased"
    files = {"checkpoint": str(folder / "model.pk"), "config": str(folder / "config.json"), "head": "ANI1x"}
    spec = build_spec(ModelDefinition.model_validate({"hydragnn": files}), "published", "cpu")
    recorded = read_structures("biased")
    with PotentialProcess(spec, python=None, threads=1, timeout_s=120.0, log=tmp_path / "log") as process:
        predictions = process.predict([s for s, _, _ in recorded])
    for prediction, (_, energies, forces) in zip(predictions, recorded, strict=True):
        assert prediction.energy == pytest.approx(energies[1], abs=1e-10)
        assert np.allclose(prediction.forces, forces[1], rtol=0, atol=1e-10)


def test_several_branches_need_a_gate_or_a_head() -> None:
    folder = RECORDS / "biased"
    with pytest.raises(InputError, match="it has 3 branches, so that it needs a gate or a head"):
        build_hydragnn_calculator(folder / "model.pk", folder / "config.json")
    with pytest.raises(InputError, match="head 'OC2020' of this model was never trained"):
        build_hydragnn_calculator(folder / "model.pk", folder / "config.json", head="OC2020")
    build_hydragnn_calculator(RECORDS / "silu/model.pk", RECORDS / "silu/config.json")


def test_a_converted_checkpoint_of_pnaeq_gives_the_recorded_forces(tmp_path: Path) -> None:
    folder, target = RECORDS / "pnaeq-unbiased", tmp_path / "model.safetensors"
    assert hydragnn.main([str(folder / "model.pk"), str(folder / "config.json"), str(target)]) == 0
    calculator = ReferenceCalculator(str(target), head="ANI1x")
    for structure, energies, forces in read_structures("pnaeq-unbiased"):
        predicted = calculate(calculator, structure)
        assert predicted.energy == pytest.approx(energies[1], abs=1e-12)
        assert np.allclose(predicted.forces, forces[1], rtol=0, atol=1e-12)


def test_command_converts_a_checkpoint_with_and_without_a_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RECORDS / "biased"
    target = tmp_path / "model.safetensors"
    arguments = [str(folder / "model.pk"), str(folder / "config.json"), str(target)]
    assert hydragnn.main(arguments) == 0
    assert "its 3 branches have equal weights" in capsys.readouterr().out
    model, notes = checkpoints.load(target)
    expected = load_recorded_model("biased").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    sha256 = hashlib.sha256((folder / "model.pk").read_bytes()).hexdigest()
    assert notes["hydragnn"]["checkpoint"] == {"file": "model.pk", "sha256": sha256}  # type: ignore[index]
    write_gate(tmp_path / "gate.pt", 3)
    assert hydragnn.main([*arguments, str(tmp_path / "gate.pt")]) == 0
    assert "equal" not in capsys.readouterr().out
    assert hydragnn.main(arguments[:2]) == 2
    assert hydragnn.main([arguments[1], arguments[1], arguments[2]]) == 2
    assert "error: " in capsys.readouterr().err


def check_rotations(name: str) -> list[Violation]:
    folder = RECORDS / name
    calculator = build_hydragnn_calculator(folder / "model.pk", folder / "config.json", head="Alexandria")

    def predict_all(structures: Sequence[Structure]) -> list[PotentialPrediction]:
        return [calculate(calculator, s) for s in structures]

    checks = check_physics(
        predict_all, CRYSTALS[0](1), MOLECULES[0](), dtype="float64", transformations=20, dynamics_steps=0
    )
    return [check for check in checks if check.check.startswith("rotation")]


def test_forces_with_biased_vectors_are_not_equivariant() -> None:
    biased, unbiased = check_rotations("biased"), check_rotations("unbiased")
    assert [check.passed for check in unbiased] == [True] * 4
    assert [check.passed for check in biased] == [False] * 4
    assert all(check.value > 0.1 for check in biased if check.check == "rotation: forces")


def test_recorded_files_match_the_digests_in_the_readme() -> None:
    text = (RECORDS / "README.md").read_text(encoding="utf-8")
    sums = dict(re.findall(r"`([\w-]+/[\w.]+)` \| `([0-9a-f]{64})`", text))
    files = {str(p.relative_to(RECORDS)): p for p in RECORDS.rglob("*.*") if p.name != "README.md"}
    assert sums == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}
