"""The inference stages of a checkout of HydraGNN, as an adapter of the process of a potential.

The file is imported in the environment of HydraGNN, and imports nothing of the harness. What it measures is done by
HydraGNN's own functions and timers; stages that are exact skip no branch.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import tempfile
import time
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
# The options of run_fused_inference by stage; branch_skip also has a threshold.
STAGES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "encoder_reuse": ENCODER_REUSE,
    "branch_skip": ENCODER_REUSE,
    "fused_gradient": FUSED,
    "batched_heads": BATCHED,
    "torch_compile": BATCHED,
    "tuned_allocator": BATCHED,
}
COMPILED = ("torch_compile", "tuned_allocator")
ELEMENTS = 118
PACKAGES = ("torch", "torch_geometric", "torch_scatter", "e3nn", "numpy")


class FusedInference:
    """A model of HydraGNN and its gate, and a batch that its stages run on.

    Args:
        config: What config.json of a checkpoint holds.
        checkpoint: A file of weights; None for those with which HydraGNN initializes a model.
        gate: A file of the gate's weights, or a mapping for a gate that is set by hand: `sizes` of its hidden layers,
            and the constant `logits` of the branches.
        skip_threshold: The mean weight below which branch_skip leaves a branch out.
        precision: fp64, fp32 or bf16.
        seed: Seed of the weights.
        allocator: A file with a function that sets the mode of glibc's allocator.
    """

    properties = ("energy", "forces")

    def __init__(
        self, *, config: dict[str, Any], checkpoint: str | None, gate: str | dict[str, Any], skip_threshold: float,
        precision: str, seed: int, allocator: str,
    ) -> None:  # fmt: skip
        self.skip_threshold, self.checkpoint = skip_threshold, checkpoint
        self.allocator = load_file(allocator)
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), config, checkpoint)
            write_gate(Path(folder) / "mlp_weights", gate)
            (
                self.model, self.mlp, _, self.device, self.autocast, self.dtype, self.branches, self.mlp_device,
                self.mlp_autocast, self.is_unified, *_,
            ) = inference_fused.load_fused_stack(folder, precision_override=precision)  # fmt: skip
        self.compiled: Any = None
        self.structures: list[Data] = []

    def find_module(self) -> Any:
        """Return the model."""
        return self.model

    def describe(self) -> dict[str, Any]:
        """Return where and with what the model runs."""
        on_device = self.device.type != "cpu"
        return {
            "device": self.device.type,
            "device_name": torch.get_device_module(self.device).get_device_name(self.device) if on_device else None,
            "threads": torch.get_num_threads(),
            "branches": self.branches,
            "parameters": sum(p.numel() for p in self.model.parameters())
            + sum(p.numel() for p in self.mlp.parameters()),
            "vector_bias": any(name.endswith("update_U.bias") for name in self.model.state_dict()),
            "packages": {name: version for name in PACKAGES if (version := find_version(name))},
        }

    def set_batch(self, structures: list[dict[str, Any]]) -> dict[str, Any]:
        """Set the structures that stages run on, and return the seconds that it takes to collate and to move them."""
        self.structures = [build_data(s) for s in structures]
        started = time.perf_counter()
        batch = Batch.from_data_list(self.structures)
        collated = time.perf_counter()
        move_batch_to_device(batch, self.dtype)
        self.synchronize()
        return {"collation_s": collated - started, "transfer_s": time.perf_counter() - collated}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()

    def complete(self) -> dict[str, Any]:
        """Predict once, and load a checkpoint again, strictly.

        HydraGNN creates some layers in the first prediction; what a checkpoint holds of them is left out before.

        Raises:
            RuntimeError: the checkpoint is not that of this model.
        """
        self.run(FUSED, self.model)
        if self.checkpoint is not None:
            state = torch.load(self.checkpoint, map_location=self.device)["model_state_dict"]
            self.model.load_state_dict(state, strict=True)
        return {}

    def count_flops(self, stage: str) -> dict[str, Any]:
        """Return the floating-point operations of the matrix products of a stage, without compilation."""
        with FlopCounterMode(display=False) as counter:
            self.run(STAGES[stage], self.model)
        return {"flops": float(counter.get_total_flops())}

    def predict_stage(self, stage: str) -> dict[str, Any]:
        """Run a stage on the batch.

        Returns:
            device_s, the time by HydraGNN's timer; energies and forces, by structure; weights of the branches.
        """
        if self.device.type == "cpu":
            self.allocator.set_allocator_mode("tuned" if stage == "tuned_allocator" else "default")
        options, model = STAGES[stage], self.model
        if stage in COMPILED:
            if self.compiled is None:
                options = {**options, "compile_encoder": True}
                self.compiled = copy.deepcopy(self.model)  # HydraGNN replaces its layers by compiled ones
            model = self.compiled
        threshold = self.skip_threshold if stage == "branch_skip" else 0.0
        energies, forces, _, weights, milliseconds, *_ = self.run(options, model, threshold)
        values = torch.cat(forces)
        return {
            "device_s": milliseconds[0] / 1e3,
            "energies": energies,
            "forces": values.double(),
            "dtype": str(values.dtype),
            "weights": torch.stack(weights).double(),
        }

    def run(self, options: dict[str, Any], model: Any, threshold: float = 0.0) -> Any:
        """Call HydraGNN's inference on the batch, without warm-up."""
        return inference_fused.run_fused_inference(
            model, self.mlp, self.structures, len(self.structures), self.dtype, self.autocast, self.device,
            self.branches, 0, self.mlp_device, self.mlp_autocast, unified_mlp_gnn_stack=self.is_unified,
            weight_threshold=threshold, disable_param_grad=True, **options,
        )  # fmt: skip


def write_model(folder: Path, config: dict[str, Any], checkpoint: str | None) -> None:
    """Write the configuration and the weights of a model where HydraGNN's loader reads them."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if checkpoint is not None:
        (folder / "model.pk").symlink_to(checkpoint)
        return
    network = config["NeuralNetwork"]
    torch.set_default_dtype(resolve_precision(network["Training"]["precision"])[1])
    state = create_model_config(network, verbosity=0).state_dict()
    torch.save({"model_state_dict": state}, folder / "model.pk")


def write_gate(folder: Path, gate: str | dict[str, Any]) -> None:
    """Write the weights of the gate where HydraGNN's loader reads them."""
    folder.mkdir()
    if isinstance(gate, str):
        (folder / "gate.pt").symlink_to(gate)
        return
    mlp = inference_fused.BranchWeightMLP(ELEMENTS, tuple(gate["sizes"]), len(gate["logits"]))
    with torch.no_grad():
        mlp.net[-1].weight.zero_()
        mlp.net[-1].bias.copy_(torch.tensor(gate["logits"]))
    torch.save({"mlp_state_dict": mlp.state_dict()}, folder / "gate.pt")


def build_data(structure: dict[str, Any]) -> Data:
    """Return a structure with its edges as HydraGNN reads it, in double precision.

    An atom that counts another as its neighbour is row 1 of edge_index, as in HydraGNN's own radius graph.
    """
    numbers = torch.tensor(structure["numbers"])
    return Data(
        x=numbers.double().unsqueeze(1),
        pos=torch.tensor(structure["positions"], dtype=torch.float64).reshape(-1, 3),
        edge_index=torch.tensor([structure["sender"], structure["receiver"]], dtype=torch.long).reshape(2, -1),
        edge_shifts=-torch.tensor(structure["shift"], dtype=torch.float64).reshape(-1, 3),
        chemical_composition=torch.bincount(numbers, minlength=ELEMENTS + 1)[1:].double().unsqueeze(1),
        graph_attr=torch.tensor([structure["charge"], structure["multiplicity"]], dtype=torch.float64),
        natoms=torch.tensor([len(numbers)]),
    )


def load_file(path: str) -> Any:
    """Import a file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
