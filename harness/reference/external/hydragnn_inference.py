"""An adapter of HydraGNN's inference stages, which `harness.reference.potentials.worker` loads in its process.

This module runs in the environment of HydraGNN, where the harness cannot be imported. HydraGNN's own functions compute
the predictions, and HydraGNN's own timers measure them. Only the stage branch_skip leaves out branches.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import inference_fused
import torch
from hydragnn.models.create import create_model_config
from hydragnn.train.train_validate_test import move_batch_to_device, resolve_precision
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.data import Batch, Data  # type: ignore[import-untyped]

ENCODER_REUSE = {"encoder_reuse": True}
FUSED = {**ENCODER_REUSE, "fused_energy_grad": True}
BATCHED = {**FUSED, "batched_decoder": True}
# The options of HydraGNN's run_fused_inference for each stage; branch_skip also has a threshold.
STAGES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "encoder_reuse": ENCODER_REUSE,
    "branch_skip": ENCODER_REUSE,
    "fused_gradient": FUSED,
    "batched_heads": BATCHED,
    "torch_compile": BATCHED,
    "tuned_allocator": BATCHED,
}
COMPILED_STAGES = ("torch_compile", "tuned_allocator")
N_ELEMENTS = 118
# The packages whose versions are recorded.
PACKAGES = ("torch", "torch_geometric", "torch_scatter", "e3nn", "numpy")


class FusedInference:
    """A HydraGNN model with its gate, and the batch on which its inference stages run.

    Args:
        config: The content of the checkpoint's config.json.
        checkpoint: The path of the weights; None: the weights with which HydraGNN initializes a model.
        gate: The path of the gate's weights, or a mapping that describes a fixed gate: the `sizes` of its hidden
            layers, and the constant `logits` of the branches.
        skip_threshold: The mean weight below which the stage branch_skip leaves out a branch.
        precision: fp64, fp32 or bf16.
        seed: The seed of the initial weights.
        allocator: The path of a Python module with the function `set_allocator_mode`, which tunes glibc's allocator.
    """

    properties = ("energy", "forces")

    def __init__(
        self, *, config: dict[str, Any], checkpoint: str | None, gate: str | dict[str, Any], skip_threshold: float,
        precision: str, seed: int, allocator: str,
    ) -> None:  # fmt: skip
        self.skip_threshold, self.checkpoint = skip_threshold, checkpoint
        self.allocator = import_file(allocator)
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), config, checkpoint)
            write_gate(Path(folder) / "mlp_weights", gate)
            (
                self.model, self.gate, _, self.device, self.autocast, self.dtype, self.branches, self.gate_device,
                self.gate_autocast, self.is_unified, *_,
            ) = inference_fused.load_fused_stack(folder, precision_override=precision)  # fmt: skip
        self.compiled_model: Any = None
        self.structures: list[Data] = []

    def find_module(self) -> Any:
        """Return the model, from which the worker reads the number and the type of the weights."""
        return self.model

    def describe(self) -> dict[str, Any]:
        """Return the device, the threads, the sizes of the model and the versions of the packages."""
        on_device = self.device.type != "cpu"
        return {
            "device": self.device.type,
            "device_name": torch.get_device_module(self.device).get_device_name(self.device) if on_device else None,
            "threads": torch.get_num_threads(),
            "branches": self.branches,
            "parameters": sum(p.numel() for p in self.model.parameters())
            + sum(p.numel() for p in self.gate.parameters()),
            "vector_bias": any(name.endswith("update_U.bias") for name in self.model.state_dict()),
            "packages": {name: d.version for name in PACKAGES for d in [*distributions(name=name)][:1]},
        }

    def set_batch(self, structures: list[dict[str, Any]]) -> dict[str, Any]:
        """Set the batch on which the stages run, and return the seconds of its collation and of its transfer."""
        self.structures = [convert_structure(s) for s in structures]
        started = time.perf_counter()
        batch = Batch.from_data_list(self.structures)
        collated = time.perf_counter()
        move_batch_to_device(batch, self.dtype)
        self.synchronize()
        return {"collation_s": collated - started, "transfer_s": time.perf_counter() - collated}

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()

    def create_lazy_layers(self) -> dict[str, Any]:
        """Predict once, then load the checkpoint again, now with every weight.

        HydraGNN creates some layers only in the first prediction, so its loader has skipped their weights.

        Raises:
            RuntimeError: The checkpoint does not fit this model.
        """
        self.run_inference(FUSED, self.model)
        if self.checkpoint is not None:
            state = torch.load(self.checkpoint, map_location=self.device)["model_state_dict"]
            self.model.load_state_dict(state, strict=True)
        return {}

    def count_flops(self, stage: str) -> dict[str, Any]:
        """Return the number of floating-point operations in the matrix products of a stage, without compilation."""
        with FlopCounterMode(display=False) as counter:
            self.run_inference(STAGES[stage], self.model)
        return {"flops": float(counter.get_total_flops())}

    def predict_stage(self, stage: str) -> dict[str, Any]:
        """Run a stage on the batch.

        Returns:
            device_s: the seconds by HydraGNN's timer; energies [g] (eV); forces [n, 3] (eV/angstrom); dtype: the type
            of the forces; weights: the weights of the branches, [g, branches].
        """
        if self.device.type == "cpu":
            self.allocator.set_allocator_mode("tuned" if stage == "tuned_allocator" else "default")
        options, model = STAGES[stage], self.model
        if stage in COMPILED_STAGES:
            if self.compiled_model is None:
                options = {**options, "compile_encoder": True}
                self.compiled_model = copy.deepcopy(self.model)  # HydraGNN replaces the layers by compiled ones
            model = self.compiled_model
        threshold = self.skip_threshold if stage == "branch_skip" else 0.0
        energies, forces, _, weights, milliseconds, *_ = self.run_inference(options, model, threshold)
        all_forces = torch.cat(forces)
        return {
            "device_s": milliseconds[0] / 1e3,
            "energies": energies,
            "forces": all_forces.double(),
            "dtype": str(all_forces.dtype),
            "weights": torch.stack(weights).double(),
        }

    def run_inference(self, options: dict[str, Any], model: Any, threshold: float = 0.0) -> Any:
        """Return the result of HydraGNN's run_fused_inference for the batch, without warm-up."""
        return inference_fused.run_fused_inference(
            model, self.gate, self.structures, len(self.structures), self.dtype, self.autocast, self.device,
            self.branches, 0, self.gate_device, self.gate_autocast, unified_mlp_gnn_stack=self.is_unified,
            weight_threshold=threshold, disable_param_grad=True, **options,
        )  # fmt: skip


def write_model(folder: Path, config: dict[str, Any], checkpoint: str | None) -> None:
    """Write the configuration and the weights of a model into the folder that HydraGNN's loader reads."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if checkpoint is not None:
        (folder / "model.pk").symlink_to(checkpoint)
        return
    network = config["NeuralNetwork"]
    torch.set_default_dtype(resolve_precision(network["Training"]["precision"])[1])
    state = create_model_config(network, verbosity=0).state_dict()
    torch.save({"model_state_dict": state}, folder / "model.pk")


def write_gate(folder: Path, gate: str | dict[str, Any]) -> None:
    """Write the weights of the gate into the folder that HydraGNN's loader reads."""
    folder.mkdir()
    if isinstance(gate, str):
        (folder / "gate.pt").symlink_to(gate)
        return
    mlp = inference_fused.BranchWeightMLP(N_ELEMENTS, tuple(gate["sizes"]), len(gate["logits"]))
    with torch.no_grad():
        mlp.net[-1].weight.zero_()
        mlp.net[-1].bias.copy_(torch.tensor(gate["logits"]))
    torch.save({"mlp_state_dict": mlp.state_dict()}, folder / "gate.pt")


def convert_structure(structure: dict[str, Any]) -> Data:
    """Return a structure with its edges as HydraGNN's input, in double precision.

    Row 1 of edge_index is the atom in whose neighbour list the edge is, as in HydraGNN's own radius graph.
    """
    numbers = torch.tensor(structure["numbers"])
    return Data(
        x=numbers.double().unsqueeze(1),
        pos=torch.tensor(structure["positions"], dtype=torch.float64).reshape(-1, 3),
        edge_index=torch.tensor([structure["sender"], structure["receiver"]], dtype=torch.long).reshape(2, -1),
        edge_shifts=-torch.tensor(structure["shift"], dtype=torch.float64).reshape(-1, 3),
        chemical_composition=torch.bincount(numbers, minlength=N_ELEMENTS + 1)[1:].double().unsqueeze(1),
        graph_attr=torch.tensor([structure["charge"], structure["multiplicity"]], dtype=torch.float64),
        natoms=torch.tensor([len(numbers)]),
    )


def import_file(path: str) -> Any:
    """Import a Python file as a module, and return the module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
