"""The physics of each stage: symmetries, forces against energies, and smoothness, on one crystal and one molecule."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import LadderParameters
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.inference.precision import find_precision
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import Predict, check_physics, to_event
from harness.reference.potentials.process import PotentialError, PotentialPrediction
from harness.reference.potentials.structures import CRYSTALS, MOLECULES
from harness.reference.programs.ladder.prepared_stage import PreparedStage, apply_allocator
from harness.reference.programs.ladder.workload import prepare_batch

# Structures per call, always as many: a stage with static shapes compiles few of them.
GROUP = 8


def log_physics(
    stages: Sequence[PreparedStage], model: FoundationModel, config: LadderParameters, log: CaseLog
) -> None:
    """Check every stage, and log the violation of each property with its tolerance."""
    known = set(torch.nonzero(model.elements).flatten().tolist())

    def is_known(structure: Structure) -> bool:
        return known.issuperset(structure.numbers.tolist())

    crystal = next((s for build in CRYSTALS if is_known(s := build(1))), None)
    molecule = next((s for build in MOLECULES if is_known(s := build())), None)
    dtype = str(find_precision(config.precision).dtype).removeprefix("torch.")
    for number, prepared in enumerate(stages):
        log.write(Progress(done=number, total=len(stages), activity=f"physics: {prepared.stage.name}"))
        apply_allocator(prepared.stage, torch.device(config.device))
        rounds_to_bf16 = prepared.stage.name == "mixed_precision" or config.precision == "bf16"
        for violation in check_physics(
            build_predict(prepared, model, config),
            crystal,
            molecule,
            dtype="bfloat16" if rounds_to_bf16 else dtype,
            transformations=config.transformations,
            dynamics_steps=0,
            seed=config.seed,
        ):
            log.write(to_event(violation, stage=prepared.stage.name))


def build_predict(prepared: PreparedStage, model: FoundationModel, config: LadderParameters) -> Predict:
    """Return a function that predicts structures by a stage, in batches of GROUP."""

    def predict(structures: Sequence[Structure]) -> list[PotentialPrediction]:
        predictions: list[PotentialPrediction] = []
        for first in range(0, len(structures), GROUP):
            group = list(structures[first : first + GROUP])
            filled = [group[k % len(group)] for k in range(GROUP)]
            result = prepared(model, prepare_batch(filled, model, config)[0])
            energies = result.energy.double().tolist()
            forces = result.forces.double().cpu().split([len(s) for s in filled])
            for structure, energy, force in zip(group, energies, forces, strict=False):
                if not force.isfinite().all():
                    raise PotentialError(f"{structure.name}: forces are not finite")
                predictions.append(PotentialPrediction(energy, force.numpy()))
        return predictions

    return predict
