"""The model of a screening: its weights, its risk, its reference phases and its scorer, as the case requests them."""

from __future__ import annotations

from functools import partial

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.screening import (
    ScreeningFacts,
    ScreeningModel,
    ScreeningParameters,
    ScreeningScope,
    ScreeningWorkload,
)
from harness.reference.distributed.group import ProcessGroup
from harness.reference.errors import InputError
from harness.reference.inference.calculator import resolve_head
from harness.reference.inference.precision import find_precision
from harness.reference.inference.risk import RiskModel, load_risk
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import select_backend
from harness.reference.ops import segment_sums
from harness.reference.ops.compiler import configure_compiler
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.ood_distance import fit_training_distance
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.scoring import list_columns, score_energies, score_energies_and_forces
from harness.reference.programs.screening.worker import ModelScorer, Score


def load_model(config: ScreeningParameters) -> tuple[FoundationModel, dict[str, object]]:
    """Return the frozen model in its precision on the CPU, and the notes of its checkpoint."""
    notes: dict[str, object] = {}
    if config.checkpoint is not None:
        model, notes = checkpoints.load_named(config.checkpoint)
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(ModelConfig.from_parameters(config.model))
        model.mark_all_elements_known()
    return find_precision(config.precision).apply(model).eval().requires_grad_(False), notes


def find_hull_head(config: ScreeningParameters) -> int | None:
    """Return the index of the head that ranks crystals, or None if none does."""
    is_ranked = config.workload.kind != "random" and config.checkpoint is not None and config.hull_head is not None
    return resolve_head(str(config.hull_head)) if is_ranked else None


def load_reference_phases(config: ScreeningParameters, model: FoundationModel) -> ReferencePhases | None:
    """Return the reference phases of the hull, or None if no head ranks crystals.

    Raises:
        InputError: The head was never trained, or the reference phases cannot be read.
    """
    if find_hull_head(config) is None:
        return None
    phases = ReferencePhases.load(str(config.hull_head), config.reference_phases)
    if not bool(model.trained[phases.head]):
        raise InputError(f"hull_head {config.hull_head!r}: this head of the model was never trained")
    return phases


def load_risk_of_checkpoint(config: ScreeningParameters) -> RiskModel | None:
    """Return the risk of the checkpoint, or None if the case uses none; raise InputError if the two do not match."""
    return load_risk(config.checkpoint)[0] if config.risk and config.checkpoint is not None else None


def build_scorer(
    model: FoundationModel, config: ScreeningParameters, world: ProcessGroup, risk: RiskModel | None
) -> ModelScorer:
    """Build the scorer of batches on the device of this rank; collective."""
    device = world.device
    message_backend = select_backend(config.message_backend, model, world)
    score: Score = partial(
        score_energies if config.energy_only else score_energies_and_forces, fused=message_backend.fused
    )
    torch._dynamo.config.trace_autograd_ops = True
    configure_compiler()
    compiled = torch.compile(score, dynamic=True) if config.compile else None
    distance = fit_training_distance(model, config.reference_structures_per_dataset, world) if config.distance else None
    names = list_columns(forces=not config.energy_only, distance=config.distance, risk=risk is not None)
    dtype = find_precision(config.precision).dtype
    if distance is not None:
        distance = distance.to(device, dtype)
    if risk is not None:
        risk = risk.to(device, dtype)
    return ModelScorer(
        model=model.to(device),
        score=score,
        names=names,
        distance=distance,
        risk=risk,
        device=device,
        dtype=dtype,
        message_backend=message_backend,
        compiled=compiled,
    )


def log_facts(
    config: ScreeningParameters, workload: Workload, parts: IndexPartition, scorer: ModelScorer, log: CaseLog
) -> None:
    """Log the facts of the case."""
    plain = {"name": workload.name, "total": workload.total, **workload.facts}
    model = scorer.model
    log.record_facts(
        ScreeningFacts(
            workload=msgspec.convert(plain, ScreeningWorkload),
            scope=ScreeningScope(parts=len(parts.selected), part_size=parts.size, candidates=parts.candidates),
            model=ScreeningModel(
                checkpoint=config.checkpoint, config=model.config.asdict(), precision=config.precision,
                parameters=sum(p.numel() for p in model.parameters()), columns=list(scorer.names),
                compiled=config.compile, device=str(scorer.device), threads=torch.get_num_threads(),
                message_backend=scorer.message_backend.name, unfused_reason=scorer.message_backend.unfused_reason,
                default_sums_reason=segment_sums.find_default_reason(scorer.device),
            ),
        )
    )  # fmt: skip
