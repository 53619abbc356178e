"""Checks of physics raise no false alarm for correct models, and name the faults that are planted in models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from harness.protocol.programs.model import HydraGNNOptions
from harness.reference.data import neighbours
from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import Predict, Prediction, batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages
from harness.reference.potentials import reference_model
from harness.reference.potentials.physics import Violation
from harness.reference.programs.ladder.stages import LADDER, Stage, compile_dynamic

# Stages that differ from batched_heads only in their compilation or their allocator.
SAME_ARITHMETIC = ("torch_compile", "tuned_allocator")
# The compiled code of this stage is that of torch_compile.
SAME_CODE = ("tuned_allocator",)
EXACT = [stage for stage in LADDER if stage.exact]
SEEDS, SEEDS_WITH_SMOOTHNESS = range(20), 3
SIZES: dict[str, Any] = {"hidden_dim": 16, "num_conv_layers": 2, "cutoff": 4.0, "dim_headlayers": 16, "heads": 2}


def make_model(seed: int = 0, precision: str = "fp64", **changes: Any) -> FoundationModel:
    """Return a small untrained model without a maximum number of neighbours, at which energies would jump."""
    torch.manual_seed(seed)
    model = FoundationModel(ModelConfig(**SIZES | changes))
    model.mark_all_elements_known()
    return find_precision(precision).apply(model).requires_grad_(False)


def find_violations(model: FoundationModel, formulation: Predict | None = None, seed: int = 0) -> list[Violation]:
    """Return the checks that are violated or not measured; smoothness, which is slow, is checked for few seeds."""
    skip = ("force constants",) if seed < SEEDS_WITH_SMOOTHNESS else ("force constants", "smoothness")
    options: dict[str, Any] = {"transformations": 6, "skip": skip, "seed": seed}
    checks = list(reference_model.check_model(model, formulation=formulation, **options))
    assert len(checks) == (28 if seed < SEEDS_WITH_SMOOTHNESS else 26)
    return [check for check in checks if not check.passed]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("stage", [s for s in EXACT if s.name not in SAME_ARITHMETIC], ids=lambda s: s.name)
def test_exact_stages_of_random_models_raise_no_alarm(stage: Stage, precision: str) -> None:
    messages.load(torch.device("cpu"))
    for seed in SEEDS:
        assert find_violations(make_model(seed, precision), stage.predict_eager(), seed) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("stage", [s for s in EXACT if s.compiler and s.name not in SAME_CODE], ids=lambda s: s.name)
def test_compiled_exact_stages_of_random_models_raise_no_alarm(stage: Stage, precision: str) -> None:
    """All models share code for dynamic shapes, since static_graphs would be compiled for each of eighteen shapes."""
    messages.load(torch.device("cpu"))
    predict = stage.make(compile_dynamic)
    for seed in SEEDS:
        assert find_violations(make_model(seed, precision), predict, seed) == []


def omit_last_image(structure: Any, **limits: Any) -> NeighbourList:
    """Return the neighbour list of a structure without its last periodic image."""
    graph = build_neighbour_list(structure, **limits)
    is_image = np.flatnonzero(np.abs(graph.shift).max(axis=1) > 0) if len(graph.shift) else []
    other = np.delete(np.arange(len(graph.receiver)), is_image[-1:])
    return replace(graph, receiver=graph.receiver[other], sender=graph.sender[other], shift=graph.shift[other])


def depend_on_batch_size(model: FoundationModel, batch: Batch, weights: torch.Tensor) -> Prediction:
    """Predict energies and forces that depend on the number of structures in the batch."""
    energy, forces = batched_heads(model, batch, weights)
    return Prediction(energy + 1e-3 * len(energy), forces * (1 + 1e-3 * len(energy)))


def enlarge_forces(model: FoundationModel, batch: Batch, weights: torch.Tensor) -> Prediction:
    """Predict forces that are 1% too large."""
    energy, forces = batched_heads(model, batch, weights)
    return Prediction(energy, 1.01 * forces)


def name_violations(violations: Sequence[Violation]) -> set[str]:
    """Return the names of the checks with their structures."""
    return {f"{v.check} of {v.structure}" for v in violations}


def test_missing_image_is_found_in_the_crystal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "build_neighbour_list", omit_last_image)
    names = name_violations(find_violations(make_model()))
    assert {"periodic images: energy of NaCl", "supercell a: energy of NaCl"} <= names
    assert not any(name.endswith("ethanol") for name in names)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (depend_on_batch_size, "batch: energy"),
        (depend_on_batch_size, "batch: forces"),
        (enlarge_forces, "forces from energies"),
    ],
)
def test_fault_of_a_formulation_is_named(fault: Callable[..., Prediction], check: str) -> None:
    names = name_violations(find_violations(make_model(), fault))
    assert {f"{check} of NaCl", f"{check} of ethanol"} <= names


def test_biased_vector_layers_violate_rotation_alone() -> None:
    """Violations without biases are ignored: HydraGNN's gate depends on the number of atoms in a supercell."""
    unbiased, biased = (make_model(hydragnn=HydraGNNOptions(vector_bias=bias)) for bias in (False, True))
    names = name_violations(find_violations(biased)) - name_violations(find_violations(unbiased))
    assert {"rotation: forces of NaCl", "rotation: forces of ethanol"} <= names
    assert all(name.startswith("rotation") for name in names)
