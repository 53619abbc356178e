"""The program `vector_biases`: measure how far biases in the vector layers of a network violate rotational symmetry."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.protocol.events import CaseLog
from harness.protocol.programs.model import HydraGNNOptions
from harness.protocol.programs.vector_biases import RotationErrors, VectorBiasFacts, VectorBiasParameters
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import draw_orthogonal_matrix, rotate
from harness.reference.potentials.reference_model import covers_elements, predict
from harness.reference.potentials.structures import CRYSTALS, MOLECULES

StructureKind = Literal["crystal", "molecule"]


def run(config: VectorBiasParameters, log: CaseLog, folder: Path) -> None:
    """Log the errors for every rotation of every structure, for each seed and each factor of the biases."""
    structures: list[tuple[StructureKind, Structure]] = [("crystal", build(1)) for build in CRYSTALS]
    structures += [("molecule", build()) for build in MOLECULES]
    for seed in range(config.seeds):
        log.write(Progress(done=seed, total=config.seeds, activity="seeds"))
        model = build_model(config, seed)
        if seed == 0:
            log.record_facts(describe(model, config))
        rng = np.random.default_rng(seed)
        rotations = [draw_orthogonal_matrix(rng, mirrored=False) for _ in range(config.rotations)]
        for scale in config.scales:
            scaled = scale_vector_biases(model, scale)
            for kind, structure in structures:
                if covers_elements(model, structure):
                    log.write(measure_rotations(scaled, structure, rotations, kind=kind, scale=scale, seed=seed))


def build_model(config: VectorBiasParameters, seed: int) -> FoundationModel:
    """Return the model of the checkpoint, or an untrained model with vector biases, in double precision.

    Raises:
        InputError: The checkpoint cannot be read, or has no vector biases.
    """
    if config.checkpoint is not None:
        model, _ = checkpoints.load_named(config.checkpoint)
        if not find_vector_biases(model):
            raise InputError(f"{config.checkpoint}: the model has no vector biases")
    else:
        torch.manual_seed(seed)
        model_config = ModelConfig(
            hidden_dim=config.hidden_dim,
            num_conv_layers=config.num_conv_layers,
            max_neighbours=config.max_neighbours,
            readout="sum",
            heads=1,
            hydragnn=HydraGNNOptions(vector_bias=True),
        )
        model = FoundationModel(model_config)
        model.mark_all_elements_known()
    return model.double().eval().requires_grad_(False)


def find_vector_biases(model: FoundationModel) -> list[Tensor]:
    """Return the biases of the linear layers that act on vector features."""
    layers = ("mix.bias", "vectors.")
    return [
        parameter
        for name, parameter in model.encoder.named_parameters()
        if name.endswith("bias") and any(layer in name for layer in layers)
    ]


def scale_vector_biases(model: FoundationModel, scale: float) -> FoundationModel:
    """Return a copy of a model whose vector biases are multiplied by a factor."""
    scaled = copy.deepcopy(model)
    for bias in find_vector_biases(scaled):
        bias.mul_(scale)
    return scaled


def describe(model: FoundationModel, config: VectorBiasParameters) -> VectorBiasFacts:
    """Return the facts about the model and about its vector biases before scaling."""
    biases = torch.cat(find_vector_biases(model))
    return VectorBiasFacts(
        checkpoint=config.checkpoint,
        config=model.config.asdict(),
        biases=len(biases),
        bias_rms=float(biases.square().mean().sqrt()),
    )


def measure_rotations(
    model: FoundationModel,
    structure: Structure,
    rotations: Sequence[NDArray[np.float64]],
    *,
    kind: StructureKind,
    scale: float,
    seed: int,
) -> RotationErrors:
    """Return the errors of the predictions for a structure after each rotation.

    Args:
        model: The model with scaled biases.
        structure: The structure before the rotations.
        rotations: Rotation matrices [3, 3].
        kind: The kind of the structure.
        scale: The factor of the biases.
        seed: The seed of the model and the rotations.
    """
    base, *rest = predict(model, [structure, *(rotate(structure, rotation) for rotation in rotations)])
    return RotationErrors(
        seed=seed,
        scale=scale,
        kind=kind,
        structure=structure.name,
        atoms=len(structure),
        energy_errors_ev=[abs(p.energy - base.energy) for p in rest],
        force_errors_ev_per_angstrom=[
            float(np.abs(p.forces - base.forces @ r).max()) for p, r in zip(rest, rotations, strict=True)
        ],
        force_scale_ev_per_angstrom=float(np.abs(base.forces).max()),
    )
