"""Checks of the physics of each stage on a crystal and a molecule: symmetries, exact forces, and smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import LadderParameters
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.errors import get_first_line
from harness.reference.inference.precision import find_precision
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import Predict, build_check_event, check_physics
from harness.reference.potentials.process import PotentialError, PotentialPrediction
from harness.reference.potentials.reference_model import select_structures
from harness.reference.programs.ladder.prepared_stage import PreparedStage, apply_allocator
from harness.reference.programs.ladder.stages import StaticGraphs
from harness.reference.programs.ladder.workload import prepare_batch

# Force constants take most of the time; supercells have other shapes, for which stages would be compiled again.
SKIPPED = ("force constants", "supercell")
# Structures in a batch of a stage that is not compiled, and so serves any shape.
EAGER_BATCH_SIZE = 64


def log_physics(
    stages: Sequence[PreparedStage], model: FoundationModel, graphs: int, *, config: LadderParameters, log: CaseLog
) -> None:
    """Check every stage, and log the result of each check.

    Args:
        stages: The stages after their timing.
        model: The model.
        graphs: Number of structures in a batch of the workload.
        config: The parameters of the case.
        log: The log of the case.
    """
    crystal, molecule = select_structures(model)
    dtype = str(find_precision(config.precision).dtype).removeprefix("torch.")
    structures = [s for s in (crystal, molecule) if s is not None]
    for number, prepared in enumerate(stages):
        log.write(Progress(done=number, total=len(stages), activity=f"physics: {prepared.stage.name}"))
        apply_allocator(prepared.stage, torch.device(config.device))
        rounds_to_bf16 = prepared.stage.name == "mixed_precision" or config.precision == "bf16"
        for violation in check_physics(
            build_predict(
                prepared, model, config, fillers=() if prepared.stage.compiler is None else structures, graphs=graphs
            ),
            crystal,
            molecule,
            dtype="bfloat16" if rounds_to_bf16 else dtype,
            transformations=config.transformations,
            dynamics_steps=0,
            skip=SKIPPED,
            seed=config.seed,
        ):
            log.write(build_check_event(violation, stage=prepared.stage.name))


def build_predict(
    prepared: PreparedStage,
    model: FoundationModel,
    config: LadderParameters,
    *,
    fillers: Sequence[Structure],
    graphs: int,
) -> Predict:
    """Return a function that predicts structures with a stage, if possible without compiling it again.

    With fillers, every batch has equally many structures of each size, which fillers complete, and as many as a batch
    of the workload: code for dynamic shapes is special to the number of structures if it equals that of heads. Static
    shapes of the workload serve these batches if they are large enough, however much padding that takes.

    Args:
        prepared: The stage.
        model: The model.
        config: The parameters of the case.
        fillers: A structure of each size that will be predicted; none for a stage that is not compiled.
        graphs: Number of structures in a batch of the workload.
    """
    per_call = max(1, graphs // len(fillers)) if fillers else EAGER_BATCH_SIZE
    if isinstance(prepared.predict, StaticGraphs):
        buckets = replace(prepared.predict.buckets, max_waste=1.0)
        prepared = replace(prepared, predict=replace(prepared.predict, buckets=buckets))

    def predict(structures: Sequence[Structure]) -> list[PotentialPrediction]:
        predictions: list[PotentialPrediction] = []
        for first in range(0, len(structures), per_call):
            group = list(structures[first : first + per_call])
            rest = [filler for filler in fillers for _ in range(per_call)]
            for structure in group:  # each takes the place of a filler of its size
                place = next((k for k, filler in enumerate(rest) if len(filler) == len(structure)), 0)
                del rest[place : place + 1]
            structures_of_batch = [*group, *rest]
            try:
                result = prepared(model, prepare_batch(structures_of_batch, model, config)[0])
            except Exception as error:  # each compiler raises its own errors, and compiles a new shape only here
                if prepared.stage.compiler is None:
                    raise
                raise PotentialError(get_first_line(error)[:300]) from None
            energies = result.energy.double().tolist()
            forces = result.forces.double().cpu().split([len(s) for s in structures_of_batch])
            for structure, energy, force in zip(group, energies, forces, strict=False):
                if not force.isfinite().all():
                    raise PotentialError(f"{structure.name}: forces are not finite")
                predictions.append(PotentialPrediction(energy, force.numpy()))
        return predictions

    return predict
