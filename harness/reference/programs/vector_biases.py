"""Turn structures before a network whose vectors have biases, and scale the biases (suites/vector-biases.yaml)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
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
from harness.reference.potentials.physics import random_orthogonal
from harness.reference.potentials.reference_model import knows, predict
from harness.reference.potentials.structures import CRYSTALS, MOLECULES

Kind = Literal["crystal", "molecule"]


def run(config: VectorBiasParameters, log: CaseLog, folder: Path) -> None:
    """Log the errors of every rotation of every structure for each seed and each size of the biases."""
    everything: list[tuple[Kind, Structure]] = [("crystal", build(1)) for build in CRYSTALS]
    everything += [("molecule", build()) for build in MOLECULES]
    for seed in range(config.seeds):
        log.write(Progress(done=seed, total=config.seeds, activity="seeds"))
        model = make_model(config, seed)
        if seed == 0:
            log.record_facts(describe(model, config))
        rng = np.random.default_rng(seed)
        turns = [random_orthogonal(rng, mirrored=False) for _ in range(config.rotations)]
        for scale in config.scales:
            scaled = scale_vector_biases(model, scale)
            for kind, structure in [(kind, s) for kind, s in everything if knows(model, s)]:
                log.write(measure_rotation(scaled, structure, turns, kind=kind, scale=scale, seed=seed))


def make_model(config: VectorBiasParameters, seed: int) -> FoundationModel:
    """Return the checkpoint, or an untrained model with biases of vectors, in double precision."""
    if config.checkpoint is not None:
        model, _ = checkpoints.load_named(config.checkpoint)
        if not list_vector_biases(model):
            raise InputError(f"{config.checkpoint}: its vectors have no biases")
    else:
        torch.manual_seed(seed)
        sizes = ModelConfig(
            hidden_dim=config.hidden_dim,
            num_conv_layers=config.num_conv_layers,
            max_neighbours=config.max_neighbours,
            readout="sum",
            heads=1,
            hydragnn=HydraGNNOptions(vector_bias=True),
        )
        model = FoundationModel(sizes)
        model.mark_all_elements_known()
    return model.double().eval().requires_grad_(False)


def list_vector_biases(model: FoundationModel) -> list[Tensor]:
    """Return the biases of the linear maps of vectors."""
    names = ("mix.bias", "vectors.")
    return [p for n, p in model.encoder.named_parameters() if n.endswith("bias") and any(name in n for name in names)]


def scale_vector_biases(model: FoundationModel, scale: float) -> FoundationModel:
    """Return a copy of a model whose biases of vectors are multiplied by a factor."""
    scaled = copy.deepcopy(model)
    for bias in list_vector_biases(scaled):
        bias.mul_(scale)
    return scaled


def describe(model: FoundationModel, config: VectorBiasParameters) -> VectorBiasFacts:
    """Return facts of the weights and of the biases at scale 1."""
    biases = torch.cat(list_vector_biases(model))
    return VectorBiasFacts(
        checkpoint=config.checkpoint,
        config=model.config.asdict(),
        biases=len(biases),
        bias_rms=float(biases.square().mean().sqrt()),
    )


def measure_rotation(
    model: FoundationModel,
    structure: Structure,
    turns: Sequence[NDArray[np.float64]],
    *,
    kind: Kind,
    scale: float,
    seed: int,
) -> RotationErrors:
    """Return the errors of the predictions for a structure that is turned by each of the rotations [3, 3]."""
    turned = [replace(structure, positions=structure.positions @ q, cell=structure.cell @ q) for q in turns]
    base, *rest = predict(model, [structure, *turned])
    return RotationErrors(
        seed=seed,
        scale=scale,
        kind=kind,
        structure=structure.name,
        atoms=len(structure),
        energy_errors_ev=[abs(p.energy - base.energy) for p in rest],
        force_errors_ev_per_angstrom=[
            float(np.abs(p.forces - base.forces @ q).max()) for p, q in zip(rest, turns, strict=True)
        ],
        force_scale_ev_per_angstrom=float(np.abs(base.forces).max()),
    )
