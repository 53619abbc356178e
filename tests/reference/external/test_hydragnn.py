"""Cases run with the code of a checkout of HydraGNN; an error with the checkout is one line that names the setting.

The tests with HydraGNN's own code need two environment variables: HYDRAGNN_FOLDER, a checkout, and HYDRAGNN_PYTHON, an
interpreter that can import it. Without them these tests are skipped. The other tests replace HydraGNN by small files,
which compute nothing and serve to test error messages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.protocol import events
from harness.protocol.errors import UsageError
from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import LadderParameters
from harness.protocol.registry import PROGRAMS, parse_parameters
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.external.training import group_by_epoch
from harness.reference.inference import prediction
from harness.reference.models.config import ModelConfig
from harness.reference.models.hydragnn import load_hydragnn
from harness.reference.programs.ladder import hydragnn
from tests.reference.conftest import make_batch, make_crystal, make_molecule

RECORDED = Path(__file__).parents[1] / "models" / "recorded_hydragnn" / "unbiased"
CASE: dict[str, Any] = {
    "implementation": "hydragnn", "workload": "random", "precision": "fp64", "model": {"hidden_dim": 4}, "rounds": 1,
    "batches": 1, "batch_size": 2, "atoms": [2, 4],
}  # fmt: skip
PROGRAM_FOLDER = Path("examples/multidataset_hpo_sc26")
TRAINING = {"precision": "fp32", "implementation": "hydragnn", "store_folder": "stores"}


# The modules of HydraGNN that the adapter imports, without computations; tests plant faults in `run_fused_inference`.
MODULES = {
    "hydragnn/__init__.py": "",
    "hydragnn/models/create.py": "import torch\ndef create_model_config(*_, **__): return torch.nn.Linear(1, 1)\n",
    "hydragnn/train/train_validate_test.py": "import torch\ndef move_batch_to_device(batch, dtype): return batch\n"
    "def resolve_precision(name): return name, torch.float64, None\n",
    "torch_geometric/data.py": "from types import SimpleNamespace as Data\n"
    "class Batch:\n    from_data_list = staticmethod(list)\n",
}
LOADER = """
import os, torch
class BranchWeightMLP(torch.nn.Module):
    def __init__(self, inputs, sizes, outputs):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(sizes[-1], outputs))
def load_fused_stack(folder, precision_override):
    device = torch.device("cpu")
    model = torch.nn.Linear(1, 1).double()
    return model, model, {}, device, None, torch.float64, 16, device, None, True, "fp64", "fp64"
"""
NAN = """
def run_fused_inference(model, mlp, structures, *_, **__):
    forces = [torch.full((len(s.x), 3), float("nan")) for s in structures]
    return [float("nan")] * len(structures), forces, [], [torch.ones(16)] * len(structures), [1.0]
"""
EXIT = "def run_fused_inference(*_, **__): os._exit(3)"


def write_checkout(folder: Path, inference: str = "") -> Path:
    """Write a folder that looks like a checkout; `inference` is the content of inference_fused.py."""
    template = {"NeuralNetwork": {"Architecture": {}, "Training": {}}}
    contents = MODULES | {
        str(PROGRAM_FOLDER / "gfm_mlip.json"): json.dumps(template),
        str(PROGRAM_FOLDER / "inference_fused.py"): inference,
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, checkout: Path | str, python: str = "", **parameters: Any) -> list[events.Event]:
    """Run the ladder with HydraGNN's code, and return the events of the case."""
    settings = {"hydragnn_folder": str(checkout), "hydragnn_python": python}
    (folder / "case.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    log = CaseLog(folder / "events.jsonl", "ladder")
    hydragnn.run(LadderParameters(**CASE | parameters), log, folder)
    return list(events.read(folder / "events.jsonl"))


@pytest.mark.parametrize("name", ["mlp_branch_weights.pt", "mlp_weights/epoch_9.pt"])
def test_gate_of_a_checkpoint_is_the_only_file_next_to_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "mlp_weights").mkdir()
    with pytest.raises(InputError, match=r"expected one file of the gate's weights, .*; it has none"):
        hydragnn.find_gate_file(tmp_path / "model.pk")
    (tmp_path / name).touch()
    assert hydragnn.find_gate_file(tmp_path / "model.pk") == tmp_path / name
    (tmp_path / "mlp_weights" / "epoch_10.pt").touch()
    with pytest.raises(InputError, match=rf"it has .*{re.escape(name)}"):
        hydragnn.find_gate_file(tmp_path / "model.pk")


def test_a_case_without_a_checkout_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the setting hydragnn_folder"):
        run(tmp_path, "")
    with pytest.raises(InputError, match=r"^setting hydragnn_folder: \S+/nothing is not a folder$"):
        run(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("missing", ["hydragnn/__init__.py", "examples/multidataset_hpo_sc26/inference_fused.py"])
def test_a_folder_that_is_not_a_checkout_is_refused_with_the_missing_file(tmp_path: Path, missing: str) -> None:
    checkout = write_checkout(tmp_path / "checkout")
    (checkout / missing).unlink()
    with pytest.raises(
        InputError,
        match=rf"^setting hydragnn_folder: {checkout} is not a checkout of HydraGNN \(it has no {missing}\)$",
    ):
        run(tmp_path, checkout)


@pytest.mark.parametrize(
    ("python", "inference", "message"),
    [
        ("/nowhere/python", "", "/nowhere/python: No such file or directory"),
        (shutil.which("false") or "", "", r"its process ended \(exit code 1\)"),
        ("", "import absent_package", "no module 'absent_package' in"),
        ("", "import os; os._exit(3)", r"its process ended \(exit code 3\)"),
        ("", "raise ImportError('cannot import name Batch')", "ImportError: cannot import name Batch"),
        ("", LOADER, "module 'inference_fused' has no attribute 'run_fused_inference'"),
        ("", LOADER + EXIT, r"its process ended \(exit code 3\)"),
        ("", LOADER + NAN, "the energies or forces of stage baseline are not finite"),
    ],
)
def test_an_error_of_the_environment_is_one_line_with_both_settings(
    tmp_path: Path, python: str, inference: str, message: str
) -> None:
    checkout = write_checkout(tmp_path / "checkout", inference=inference)
    with pytest.raises(InputError, match=message) as raised:
        run(tmp_path, checkout, python)
    assert str(raised.value).endswith(f"hydragnn_python={python or os.sys.executable})")  # type: ignore[attr-defined]
    assert f"(settings hydragnn_folder={checkout}, " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("program", "values", "message"),
    [
        ("ladder", CASE | {"model": {"backbone": "egnn"}}, "hydragnn runs the ladder of painn only, not of egnn"),
        ("ladder", CASE | {"batch_size": "auto"}, "batch_size: only the implementation reference chooses it"),
        ("ladder", CASE | {"checkpoint": "painn-64"}, r"hydragnn reads a file MODEL\.pk"),
        ("ladder", CASE | {"implementation": "hydragn"}, "did you mean 'hydragnn'"),
        ("train", TRAINING | {"store_folder": ""}, "store_folder: hydragnn trains on a store"),
        ("train", TRAINING | {"model": {"backbone": "mace"}}, "hydragnn trains painn only, not mace"),
        ("train", TRAINING | {"model": {"cutoff": 6.0}}, "20 nearest neighbours within 5 angstrom"),
        ("train", TRAINING | {"time_limit_minutes": 5.0}, "hydragnn does not resume"),
        ("data_parallel", TRAINING | {"batch_size": 8, "max_neighbours": 30}, "max_neighbours: the stores of hydragnn"),
        ("hpo", {"space": {"hidden_dim": [8]}, "trial": TRAINING}, "'hpo' has no implementation 'hydragnn'"),
    ],
)
def test_unsupported_parameters_are_refused_before_hydragnn_runs(
    program: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_parameters(program, values)


def test_programs_with_the_parameter_implementation_have_a_module_for_it() -> None:
    for program in PROGRAMS.values():
        assert ("implementation" in program.parameters.model_fields) == bool(program.implementations)


def test_steps_and_losses_are_grouped_by_epoch() -> None:
    def region(name: str, duration_s: float, end_s: float) -> dict[str, Any]:
        return {"kind": "region", "name": name, "duration_s": duration_s, "end_s": end_s}

    def step(start_s: float, atoms: int) -> list[dict[str, Any]]:
        return [
            region("dataload", 0.1, start_s + 0.1),
            {"kind": "batch", "structures": 2, "atoms": atoms, "edges": 3 * atoms},
            region("forward", 0.3, start_s + 0.4),
            region("opt_step", 0.5, start_s + 1.0),
        ]

    def losses(split: str, loss: float) -> dict[str, Any]:
        return {"kind": "losses", "split": split, "loss": loss, "errors": [1.0, 2.0, 3.0]}

    first = [*step(0.0, 10), *step(1.0, 20), losses("train", 5.0), region("train", 2.5, 2.5), losses("validation", 4.0)]
    second = [*step(9.0, 30), losses("train", 3.0), region("train", 1.5, 10.5), losses("validation", 2.0)]
    epochs = group_by_epoch([{"kind": "environment"}, *first, *second, {"kind": "end"}])
    assert [epoch.train_s for epoch in epochs] == [2.5, 1.5]
    assert [[step.atoms for step in epoch.steps] for epoch in epochs] == [[10, 20], [30]]
    assert [step.duration_s for epoch in epochs for step in epoch.steps] == pytest.approx([1.0, 1.0, 1.0])
    assert [(e.losses["train"]["loss"], e.losses["validation"]["loss"]) for e in epochs] == [(5.0, 4.0), (3.0, 2.0)]
    assert epochs[0].steps[0].regions == pytest.approx({"dataload": 0.1, "forward": 0.3, "opt_step": 0.5})


def test_a_batch_is_divided_into_its_structures() -> None:
    structures = [
        make_molecule(),
        make_crystal(),
        Structure("atom", np.array([8]), np.zeros((1, 3)), charge=-1, multiplicity=2),
    ]
    batch = make_batch(structures, ModelConfig(cutoff=4.0))
    parts = hydragnn.split_batch(batch)
    assert [part["numbers"] for part in parts] == [s.numbers.tolist() for s in structures]
    assert [(part["charge"], part["multiplicity"]) for part in parts] == [(0.0, 1.0), (0.0, 1.0), (-1.0, 2.0)]
    assert sum(len(part["sender"]) for part in parts) == len(batch.sender)
    for structure, part in zip(structures, parts, strict=True):
        alone = make_batch([structure], ModelConfig(cutoff=4.0))
        assert part["receiver"] == alone.receiver.tolist()
        assert part["sender"] == alone.sender.tolist()
        assert part["shift"] == alone.shift.tolist()


@pytest.fixture(scope="module")
def real_checkout() -> tuple[str, str]:
    """Return a checkout of HydraGNN and an interpreter that can import it."""
    folder, python = (os.environ.get(name, "") for name in ("HYDRAGNN_FOLDER", "HYDRAGNN_PYTHON"))
    if not folder or not python:
        pytest.skip("HYDRAGNN_FOLDER and HYDRAGNN_PYTHON are not set")
    return folder, python


def test_the_stages_of_hydragnn_agree_with_its_baseline(tmp_path: Path, real_checkout: tuple[str, str]) -> None:
    stages = ["baseline", "encoder_reuse", "branch_skip", "fused_gradient", "batched_heads", "fused_messages"]
    lines = run(tmp_path, *real_checkout, stages=stages, batches=2, rounds=2, atoms=[5, 20], model={"hidden_dim": 8})
    samples = [e for e in lines if e["event"] == "sample"]
    assert [e["stage"] for e in lines if e["event"] == "unavailable"] == ["fused_messages"]
    assert len(samples) == 5 * 2 * 2
    for sample in samples:
        if sample["stage"] != "branch_skip":
            assert sample["force_error_ev_per_angstrom"] <= 1e-12 * sample["force_scale_ev_per_angstrom"], sample
    assert any(s["force_error_ev_per_angstrom"] > 0 for s in samples if s["stage"] == "branch_skip")
    facts = {e["name"]: e["value"] for e in lines if e["event"] == "fact"}
    assert facts["implementation"]["packages"]["torch"] == facts["runtime"]["torch"]
    assert facts["workload"]["edges"] > 0


def test_predictions_of_a_checkpoint_are_the_same_in_hydragnn_and_here(
    tmp_path: Path, real_checkout: tuple[str, str]
) -> None:
    """Equal predictions show that the process has all atoms, edges, shifts and weights of the checkpoint."""
    for file in ("model.pk", "config.json"):
        shutil.copy(RECORDED / file, tmp_path / file)
    settings = dict(zip(("hydragnn_folder", "hydragnn_python"), real_checkout, strict=True))
    (tmp_path / "case.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    config = LadderParameters(**CASE | {"checkpoint": str(tmp_path / "model.pk")})
    checkout = hydragnn.find_checkout(tmp_path)
    content, model_config, branches = hydragnn.read_model(config, checkout)
    gate = {f"net.{k}.weight": torch.zeros(n, m) for k, n, m in ((0, 128, 118), (2, 64, 128), (4, branches, 64))}
    gate |= {name.replace("weight", "bias"): torch.zeros(len(value)) for name, value in gate.items()}
    torch.save({"mlp_state_dict": gate}, tmp_path / "mlp_branch_weights.pt")  # all branches have equal weights
    files = (tmp_path / name for name in ("model.pk", "config.json", "mlp_branch_weights.pt"))
    model = load_hydragnn(*files).eval().requires_grad_(False)
    charged = Structure("ion", np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 1.0]]), charge=-1, multiplicity=2)
    batch = make_batch([make_molecule(), make_crystal(), charged], model_config)
    expected = prediction.fused_gradient(model, batch, model.gate(batch.composition))
    with hydragnn.start_inference(config, checkout, content, branches, tmp_path) as process:
        session = hydragnn.InferenceSession(process)
        session.send(batch)
        process.call("create_lazy_layers")
        for stage in ("baseline", "batched_heads"):
            result, seconds = session.predict(stage, batch)
            assert seconds > 0
            assert torch.allclose(result.energy, expected.energy, rtol=1e-12)
            assert float((result.forces - expected.forces).abs().max() / expected.forces.abs().max()) < 1e-11
