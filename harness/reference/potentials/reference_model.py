"""The checks of physics for a reference model in this process, in batches and in the precision of the model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.prediction import Predict, batched_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import Violation, check_physics
from harness.reference.potentials.process import PotentialError, PotentialPrediction
from harness.reference.potentials.structures import CRYSTALS, MOLECULES

BATCH_SIZE = 64  # structures per batch


def check_model(
    model: FoundationModel,
    *,
    transformations: int,
    dynamics_steps: int = 0,
    skip: Collection[str] = (),
    seed: int = 0,
    formulation: Predict | None = None,
) -> Iterator[Violation]:
    """Yield the result of every check of a model, whose heads the gate weights.

    If no head was trained on the elements of any crystal, or of any molecule, a single result says so. Predictions are
    made without reference energies: these depend on the composition alone, but may be thousands of eV, so that their
    rounding errors would hide faults.

    Args:
        model: The model, which is not changed.
        transformations: See `check_physics`.
        dynamics_steps: See `check_physics`.
        skip: See `check_physics`.
        seed: See `check_physics`.
        formulation: The function that computes energies and forces; None: `batched_heads`.
    """
    model = copy.deepcopy(model)
    model.reference_energy.zero_()
    crystal, molecule = select_structures(model)
    for kind, structure in (("crystal", crystal), ("molecule", molecule)):
        if structure is None:
            reason = f"no head was trained on all elements of one of the {kind}s for checks"
            yield Violation("all checks", kind, float("nan"), 0.0, "", reason)
    yield from check_physics(
        partial(predict, model, formulation=formulation),
        crystal,
        molecule,
        dtype=get_dtype_name(model),
        transformations=transformations,
        dynamics_steps=dynamics_steps,
        skip=skip,
        seed=seed,
    )


def select_structures(model: FoundationModel) -> tuple[Structure | None, Structure | None]:
    """Return the first crystal and the first molecule whose elements the model covers; None for a kind without any."""
    crystal = next((s for build in CRYSTALS if covers_elements(model, s := build(1))), None)
    return crystal, next((s for build in MOLECULES if covers_elements(model, s := build())), None)


def covers_elements(model: FoundationModel, structure: Structure) -> bool:
    """Return whether some head was trained on all elements of a structure."""
    return bool(model.known_elements.cpu()[:, np.unique(structure.numbers)].all(1).any())


def get_dtype_name(model: FoundationModel) -> str:
    """Return the least precise floating-point type in which a model computes, by its NumPy name."""
    return str(model.autocast or model.reference_energy.dtype).removeprefix("torch.")


def predict(
    model: FoundationModel, structures: Sequence[Structure], *, formulation: Predict | None = None
) -> list[PotentialPrediction]:
    """Return the predictions of a model; raise PotentialError if it fails or predicts a number that is not finite."""
    predictions: list[PotentialPrediction] = []
    for first in range(0, len(structures), BATCH_SIZE):
        group = structures[first : first + BATCH_SIZE]
        try:
            graphs = [model.config.neighbour_spec.build_list(s) for s in group]
            batch = build_batch(graphs, with_triplets=model.config.needs_triplets)
            batch = batch.to(model.reference_energy.device, model.reference_energy.dtype)
            result = (formulation or batched_heads)(model, batch, model.gate_weights(batch.composition))
        except (InputError, torch.OutOfMemoryError) as error:
            raise PotentialError(str(error)) from None
        forces = result.forces.double().cpu().split([len(s) for s in group])
        for structure, energy, force in zip(group, result.energy.double().tolist(), forces, strict=True):
            if not np.isfinite(energy) or not force.isfinite().all():
                raise PotentialError(f"{structure.name}: its energy or its forces are not finite")
            predictions.append(PotentialPrediction(energy, force.numpy()))
    return predictions
