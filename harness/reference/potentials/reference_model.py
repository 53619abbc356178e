"""The checks of physics for a model of the reference implementation, in its own precision and in batches."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.prediction import Predict, batched_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import Violation, check_physics
from harness.reference.potentials.process import PotentialError, PotentialPrediction
from harness.reference.potentials.structures import CRYSTALS, MOLECULES

# Structures per batch.
GROUP = 64


def check_model(
    model: FoundationModel,
    *,
    transformations: int,
    dynamics_steps: int = 0,
    skip: Collection[str] = (),
    seed: int = 0,
    formulation: Predict | None = None,
) -> Iterator[Violation]:
    """Yield the result of every check of the gate's weighted sum of heads; for the arguments, see `check_physics`.

    formulation: Computes energies and forces; None: with all heads in one product.

    A kind of structure whose elements no head knows has one result, with the reason. Reference energies, which depend
    on the composition alone, are left out: they may be thousands of eV, whose rounding would hide faults.
    """
    model = copy.deepcopy(model)
    model.reference_energy.zero_()
    crystal, molecule = select_structures(model)
    for kind, structure in (("crystal", crystal), ("molecule", molecule)):
        if structure is None:
            reason = f"no head was trained on all elements of a {kind} that is checked"
            yield Violation("all checks", kind, float("nan"), 0.0, "", reason)
    yield from check_physics(
        partial(predict, model, formulation=formulation),
        crystal,
        molecule,
        dtype=name_dtype(model),
        transformations=transformations,
        dynamics_steps=dynamics_steps,
        skip=skip,
        seed=seed,
    )


def select_structures(model: FoundationModel) -> tuple[Structure | None, Structure | None]:
    """Return the first crystal and the first molecule whose elements a single head was trained on, or None."""
    crystal = next((s for build in CRYSTALS if knows(model, s := build(1))), None)
    return crystal, next((s for build in MOLECULES if knows(model, s := build())), None)


def knows(model: FoundationModel, structure: Structure) -> bool:
    """Return whether a single head was trained on all elements of a structure."""
    return bool(model.known_elements.cpu()[:, np.unique(structure.numbers)].all(1).any())


def name_dtype(model: FoundationModel) -> str:
    """Return the least precise type in which a model computes, as NumPy names it."""
    return str(model.autocast or model.reference_energy.dtype).removeprefix("torch.")


def predict(
    model: FoundationModel, structures: Sequence[Structure], *, formulation: Predict | None = None
) -> list[PotentialPrediction]:
    """Return the predictions of a model; raise PotentialError if a structure has none."""
    predictions: list[PotentialPrediction] = []
    cutoff, limit = model.config.cutoff, model.config.max_neighbours
    for first in range(0, len(structures), GROUP):
        group = structures[first : first + GROUP]
        try:
            graphs = [build_neighbour_list(s, cutoff=cutoff, max_neighbours=limit) for s in group]
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
